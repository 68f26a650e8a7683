"""Pictures of latent spaces, as PNG files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from .grids import draw_grid, save, tile

__all__ = ["draw_interpolations", "draw_manifold", "draw_plane", "draw_scatter"]


@torch.no_grad()
def draw_manifold(model: Any, path: Path, *, size: int = 20) -> None:
    r"""Means of p(x | z) over a latent plane.

    .. math::
        z = \Phi^{-1}\left(\frac{i + 1/2}{n}\right) \quad \text{on both axes}

    Args:
        model: a model with two latent dimensions.
        path: the PNG file.
        size: n, images along an axis.

    Raises:
        ValueError: the latent space of ``model`` has not two dimensions.
    """
    if model.config.latent_features != 2:
        raise ValueError(f"model must have 2 latent features, got {model.config.latent_features}")
    draw_plane(lambda z: model.decode(z).sigmoid(), path, size=size)


@torch.no_grad()
def draw_plane(decode: Callable[[Tensor], Tensor], path: Path, *, size: int = 20) -> None:
    """As :func:`draw_manifold`, by a function from latents ``(N, 2)`` to intensities ``(N, pixels)``."""
    quantiles = (torch.arange(size) + 0.5) / size
    grid = torch.special.ndtri(quantiles)
    # Rows run downwards in a picture, z2 upwards.
    z = torch.stack(torch.meshgrid(grid.flip(0), grid, indexing="ij")[::-1], -1).reshape(-1, 2)
    picture = tile(decode(z), size, size, gap=0)
    figure = Figure(figsize=(6.2, 6.4), layout="constrained")
    axes = figure.subplots()
    axes.imshow(picture.numpy(), cmap="gray_r", vmin=0, vmax=1, extent=(0, 1, 0, 1), interpolation="nearest")
    ticks = torch.tensor([0.05, 0.25, 0.5, 0.75, 0.95])
    labels = [f"{z:.2g}".replace("-", "\u2212") for z in torch.special.ndtri(ticks).tolist()]
    axes.set_xticks(ticks.tolist(), labels)
    axes.set_yticks(ticks.tolist(), labels)
    axes.set_xlabel("$z_1$")
    axes.set_ylabel("$z_2$")
    axes.set_title("Mean of p(x | z) over the latent plane, at quantiles of the prior", fontsize=11)
    save(figure, path)


def draw_scatter(means: Tensor, labels: Tensor, path: Path) -> None:
    """Points ``(N, 2)`` of the latent plane, a colour for each label ``(N,)``."""
    figure = Figure(figsize=(6.8, 6.2), layout="constrained")
    axes = figure.subplots()
    for label in labels.unique().tolist():
        first, second = means[labels == label].T.numpy()
        axes.scatter(first, second, s=4, linewidths=0, color=f"C{label % 10}", label=str(label))
    axes.set_xlabel("$z_1$")
    axes.set_ylabel("$z_2$")
    axes.set_aspect("equal", "datalim")
    axes.set_title("Means of q(z | x) of test images, by class", fontsize=11)
    axes.legend(frameon=False, markerscale=3, loc="center left", bbox_to_anchor=(1.0, 0.5))
    save(figure, path)


@torch.no_grad()
def draw_interpolations(
    model: Any, first: Tensor, second: Tensor, path: Path, *, steps: int = 8, seed: int = 0
) -> None:
    r"""Images between pairs of test images: x ~ p(x | z) with z on the line between the means of q(z | x).

    Args:
        model: the lowest latent of its ``encode`` has a mean; ``sample_images`` draws images of such a latent.
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
