"""The pictures of the system ``ladder``."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import torch
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from ...pictures.grids import draw_grid, save
from .model import Ladder
from .task import name_costs

__all__ = ["draw_costs", "draw_denoised"]


def draw_costs(metrics: Path, widths: Sequence[int], path: Path) -> None:
    """The cost of every layer against the epoch, without its weight.

    Args:
        metrics: the file ``metrics.csv`` of a run.
        widths: of the layers, from the input up.
        path: the PNG file.
    """
    with open(metrics, newline="") as file:
        rows = list(csv.DictReader(file))
    epochs = [int(row["epoch"]) for row in rows]
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    for layer, (name, width) in enumerate(zip(name_costs(len(widths)), widths, strict=True)):
        color = colormaps["viridis"](layer / len(widths))
        marker = "o" if len(rows) == 1 else None
        label = f"layer {layer}, {width} units"
        axes.plot(epochs, [float(row[name]) for row in rows], color=color, marker=marker, linewidth=1.4, label=label)
    axes.set_yscale("log")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("epoch")
    axes.set_ylabel("mean squared error of a unit")
    axes.set_title("Denoising costs of the layers", fontsize=11)
    axes.grid(axis="y", linewidth=0.4, alpha=0.5)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, ncols=2)
    save(figure, path)


@torch.no_grad()
def draw_denoised(model: Ladder, x: Tensor, path: Path, *, seed: int = 0) -> None:
    """Images ``(N, pixels)``, the same with the noise of the training, and denoised."""
    noise = torch.randn(len(x), model.noise_features, dtype=x.dtype, generator=torch.Generator().manual_seed(seed))
    logits, layers = model.encode_noisy(x, noise, 0)
    lines = torch.cat([x, layers[0], model.decode(logits, layers)[0]]).clamp(0.0, 1.0)
    draw_grid(lines, 3, len(x), "Test images, with noise, and denoised", path)
