"""Pictures of ``draw``: canvases with the windows that are read and written, and the divergence of each glimpse."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from ....reference.attention_window import grid_of
from ...pictures.grids import save, show
from .model import DRAW, Drawing

__all__ = ["draw_canvases", "draw_divergences", "rectangle_of"]

READ, WRITTEN = "#3b8f4a", "#d1571b"
# Glimpses of a row of pictures.
MOST_SHOWN = 10


def rectangle_of(window: Tensor, points: int, side: int) -> tuple[float, float, float]:
    """Left, top and length of the square of a window's outer points, ``(5,)``, in pixels counted from 0."""
    grid = grid_of(window, points, side, side)
    length = (points - 1) * float(grid.stride)
    return float(grid.centre_x) - 1.0 - 0.5 * length, float(grid.centre_y) - 1.0 - 0.5 * length, length


def _rows(model: DRAW, drawn: Drawing, count: int) -> list[list[Tensor]]:
    """The pictures of each image: the canvas after some glimpses, evenly spread, the last among them."""
    return [[drawn.canvases[t][row].sigmoid() for t in _shown(len(drawn.canvases))] for row in range(count)]


def _shown(glimpses: int) -> Sequence[int]:
    count = min(glimpses, MOST_SHOWN)
    return [(k + 1) * glimpses // count - 1 for k in range(count)]


@torch.no_grad()
def draw_canvases(model: DRAW, x: Tensor, path: Path, *, samples: int = 4, seed: int = 0) -> None:
    """Canvases after glimpses, with their windows: of test images ``(N, pixels)``, and below of new images.

    Args:
        model: the model, on the CPU.
        x: binary images.
        path: the PNG file.
        samples: how many new images are drawn.
        seed: of the latents.
    """
    generator = torch.Generator().manual_seed(seed)
    parts = [(model.draw(x, generator=generator), len(x)), (model.imagine(samples, generator=generator), samples)]
    side, shown = model.config.side, _shown(model.config.glimpses)
    figure = Figure(figsize=(0.8 * len(shown) + 0.3, 0.8 * (len(x) + samples) + 0.7), layout="constrained")
    axes = figure.subplots(len(x) + samples, len(shown), squeeze=False)
    above = 0
    for drawn, count in parts:
        for row, pictures in enumerate(_rows(model, drawn, count)):
            for place, t, picture in zip(axes[above + row], shown, pictures, strict=True):
                show(place, picture.view(side, side))
                for windows, points, color in (
                    (drawn.read, model.config.read_points, READ),
                    (drawn.written, model.config.write_points, WRITTEN),
                ):
                    if windows:
                        left, top, length = rectangle_of(windows[t][row], points, side)
                        place.add_patch(Rectangle((left, top), length, length, fill=False, edgecolor=color))
                place.set(xlim=(-0.5, side - 0.5), ylim=(side - 0.5, -0.5))
                if above + row == 0:
                    place.set_title(str(t + 1), fontsize=8)
        above += count
    figure.suptitle("Canvas after glimpses: read through green, written through red", fontsize=9)
    save(figure, path)


@torch.no_grad()
def draw_divergences(model: DRAW, x: Tensor, path: Path, *, seed: int = 0) -> None:
    """The KL divergence of each glimpse, the mean over images ``(N, pixels)``."""
    _, kl = model.measure(x, generator=torch.Generator().manual_seed(seed))
    figure = Figure(figsize=(5.2, 3.2), layout="constrained")
    axes = figure.subplots()
    axes.bar(range(1, kl.shape[1] + 1), kl.mean(0).tolist(), color="#1f6fb4")
    axes.set(xlabel="glimpse", ylabel="KL (nats)", title=f"KL of each glimpse, {kl.sum(1).mean():.1f} nats in all")
    axes.spines[["top", "right"]].set_visible(False)
    save(figure, path)
