"""Grids of images, as PNG files."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from ..files import open_replacement

__all__ = [
    "draw_grid",
    "draw_inpainting",
    "draw_means",
    "draw_pixel_samples",
    "draw_reconstructions",
    "draw_sampled_reconstructions",
    "draw_samples",
    "save",
    "show",
    "tile",
]

# Height and width of images that are not square, by the number of their pixels: Frey faces.
OBLONG = {560: (28, 20)}


def tile(images: Tensor, rows: int, columns: int, gap: int = 2) -> Tensor:
    """``(rows * columns, pixels)`` intensities as one picture, with blank gaps between the images."""
    pixels = images.shape[-1]
    height, width = OBLONG.get(pixels, (math.isqrt(pixels),) * 2)
    padded = torch.nn.functional.pad(images.reshape(rows, columns, height, width), (0, gap, 0, gap))
    picture = padded.permute(0, 2, 1, 3).reshape(rows * (height + gap), columns * (width + gap))
    return picture[: picture.shape[0] - gap, : picture.shape[1] - gap]


def show(axes: Axes, picture: Tensor) -> None:
    axes.imshow(picture.cpu().numpy(), cmap="gray_r", vmin=0, vmax=1, interpolation="nearest")
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)


def save(figure: Figure, path: Path) -> None:
    with open_replacement(path) as file:
        figure.savefig(file, format="png", dpi=150, facecolor="white")


@torch.no_grad()
def draw_samples(models: Mapping[str, Any], path: Path, *, rows: int = 8, columns: int = 8, seed: int = 0) -> None:
    """Means of p(x | z) for z drawn from the prior, the same z for each model."""
    figure = Figure(figsize=(3.6 * len(models), 3.9), layout="constrained")
    for axes, (name, model) in zip(figure.subplots(1, len(models), squeeze=False)[0], models.items(), strict=True):
        generator = torch.Generator().manual_seed(seed)
        show(axes, tile(model.sample(rows * columns, generator=generator), rows, columns))
        axes.set_title(f"{name} posterior", fontsize=10)
    figure.suptitle("Samples: mean of p(x | z), z ~ p(z)", fontsize=11)
    save(figure, path)


@torch.no_grad()
def draw_reconstructions(models: Mapping[str, Any], x: Tensor, path: Path, *, seed: int = 0) -> None:
    """Binary images ``(N, pixels)`` above the means that each model decodes from one sample of their posterior."""
    lines = {"test image": x}
    for name, model in models.items():
        z, _ = model.encode(x).rsample_with_log_prob(generator=torch.Generator().manual_seed(seed))
        lines[f"{name}\nposterior"] = model.decode(z).sigmoid()
    figure = Figure(figsize=(0.62 * len(x) + 0.9, 0.72 * len(lines) + 0.4), layout="constrained")
    for axes, (name, images) in zip(figure.subplots(len(lines), 1), lines.items(), strict=True):
        show(axes, tile(images, 1, len(x)))
        axes.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=9)
    figure.suptitle("Reconstructions: mean of p(x | z), z ~ q(z | x)", fontsize=11)
    save(figure, path)


def draw_grid(images: Tensor, rows: int, columns: int, title: str, path: Path) -> None:
    """``(rows * columns, pixels)`` in rows."""
    figure = Figure(figsize=(0.5 * columns + 0.4, 0.5 * rows + 0.6), layout="constrained")
    axes = figure.subplots()
    show(axes, tile(images, rows, columns))
    figure.suptitle(title, fontsize=9)
    save(figure, path)


def draw_means(name: str, model: Any, x: Tensor, folder: Path, *, rows: int = 8, columns: int = 8) -> None:
    """Samples of a model, ``samples.png``, and test images above their reconstructions, ``reconstructions.png``.

    Args:
        name: of the model.
        model: its ``sample`` and ``reconstruct`` give means of p(x | z).
        x: binary test images ``(N, pixels)``.
        folder: of the pictures.
        rows: of samples.
        columns: of samples.
    """
    drawn = model.sample(rows * columns, generator=torch.Generator().manual_seed(0))
    draw_grid(drawn, rows, columns, f"Means of p(x | z): {name}", folder / "samples.png")
    pairs = torch.cat([x, model.reconstruct(x, generator=torch.Generator().manual_seed(0))])
    draw_grid(pairs, 2, len(x), "Test images, and means of p(x | z), z ~ q(z | x)", folder / "reconstructions.png")


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


def draw_inpainting(model: Any, x: Tensor, path: Path, *, draws: int = 6, seed: int = 0) -> None:
    """Test images ``(N, pixels)``, and completions of their upper halves, a row for each image.

    Args:
        model: its ``sample`` completes the images ``given``, which are NaN where a pixel is to be drawn.
        x: the images.
        path: the PNG file.
        draws: completions of each image.
        seed: of the noise.
    """
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
def draw_sampled_reconstructions(
    reconstruct: Callable[..., Tensor], x: Tensor, path: Path, *, draws: int = 4, seed: int = 0
) -> None:
    """Test images ``(N, pixels)`` above several x ~ p(x | z), each with a z ~ q(z | x) of its own.

    Args:
        reconstruct: draws images like those it is given, with a ``generator``: a model's ``reconstruct``.
        x: the images.
        path: the PNG file.
        draws: reconstructions of each image.
        seed: of the noise.
    """
    generator = torch.Generator().manual_seed(seed)
    lines = [x, *(reconstruct(x, generator=generator) for _ in range(draws))]
    title = "Test images, and below them x ~ p(x | z), z ~ q(z | x)"
    draw_grid(torch.cat(lines), 1 + draws, len(x), title, path)
