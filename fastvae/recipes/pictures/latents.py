"""Pictures of trained ``pixelcnn`` and ``pixelvae``, as PNG files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor

from .pictures import save, show, tile
from .pixelcnn import BinaryPixelCNN
from .pixelvae import PixelVAE

__all__ = ["draw_inpainting", "draw_interpolations", "draw_pixel_samples", "draw_sampled_reconstructions"]


def draw_grid(images: Tensor, rows: int, columns: int, title: str, path: Path) -> None:
    """``(rows * columns, pixels)`` in rows."""
    figure = Figure(figsize=(0.5 * columns + 0.4, 0.5 * rows + 0.6), layout="constrained")
    axes = figure.subplots()
    show(axes, tile(images, rows, columns))
    figure.suptitle(title, fontsize=9)
    save(figure, path)


def draw_pixel_samples(
    sample: Callable[..., Tensor], path: Path, *, rows: int = 8, columns: int = 8, seed: int = 0
) -> None:
    """Binary images of a model.

    Args:
        sample: draws ``n`` images with a ``generator``: a model's ``sample``.
        path: the PNG file.
        rows: of images.
        columns: of images.
        seed: of the noise.
    """
    images = sample(rows * columns, generator=torch.Generator().manual_seed(seed))
    draw_grid(images, rows, columns, "Samples: x ~ p(x)", path)


def draw_inpainting(model: BinaryPixelCNN, x: Tensor, path: Path, *, draws: int = 6, seed: int = 0) -> None:
    """Test images ``(N, pixels)``, and completions of their upper halves, a row for each image."""
    given = x.repeat_interleave(draws, 0)
    given[:, x.shape[1] // 2 :] = torch.nan
    drawn = model.sample(len(given), given=given, generator=torch.Generator().manual_seed(seed))
    upper = x.clone()
    upper[:, x.shape[1] // 2 :] = 0.0
    lines = torch.cat([x[:, None], upper[:, None], drawn.unflatten(0, (-1, draws))], 1)
    columns = 2 + draws
    title = "Test image, its upper half, and lower halves drawn given it"
    draw_grid(lines.flatten(0, 1), len(x), columns, title, path)


@torch.no_grad()
def draw_sampled_reconstructions(model: PixelVAE, x: Tensor, path: Path, *, draws: int = 4, seed: int = 0) -> None:
    """Test images ``(N, pixels)`` above several x ~ p(x | z), each with a z ~ q(z | x) of its own."""
    generator = torch.Generator().manual_seed(seed)
    lines = [x]
    for _ in range(draws):
        latents, _ = model.draw(model.encode(x), generator=generator)
        lines.append(model.sample_images(latents[0], generator=generator))
    title = "Test images, and below them x ~ p(x | z), z ~ q(z | x)"
    draw_grid(torch.cat(lines), 1 + draws, len(x), title, path)


@torch.no_grad()
def draw_interpolations(
    model: PixelVAE, first: Tensor, second: Tensor, path: Path, *, steps: int = 8, seed: int = 0
) -> None:
    r"""Images between pairs of test images: x ~ p(x | z) with z on the line between the means of q(z | x).

    Args:
        model: the model.
        first: images ``(N, pixels)`` to begin with.
        second: images to end with.
        path: the PNG file.
        steps: images between a pair, both ends' included.
        seed: of the noise of p(x | z), which is the same all along a line.
    """
    start, end = (model.encode(x)[0].mu for x in (first, second))
    columns = [first]
    for share in torch.linspace(0, 1, steps).tolist():
        generator = torch.Generator().manual_seed(seed)
        columns.append(model.sample_images(torch.lerp(start, end, share), generator=generator))
    columns.append(second)
    title = "Between two test images: x ~ p(x | z), z between the means of q(z | x)"
    draw_grid(torch.stack(columns, 1).flatten(0, 1), len(first), len(columns), title, path)
