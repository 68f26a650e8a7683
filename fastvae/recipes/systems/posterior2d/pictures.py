"""The picture of the recipe ``posterior2d``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from ...pictures.grids import save
from .densities import DENSITIES, grid

__all__ = ["draw_posteriors"]

SHOWN = 4.2
CELLS = 140
TITLES = {"diagonal": "diagonal Gaussian", "triangular": "full-covariance Gaussian", "iaf": "IAF"}


def draw_posteriors(samples: Mapping[str, Mapping[str, Tensor]], results: Mapping[str, Any], path: Path) -> None:
    """Each density, a row, beside the histograms of the samples of its posteriors; a row has one colour scale.

    Args:
        samples: points ``(N, 2)`` by density and kind of posterior.
        results: the figures of :func:`~fastvae.recipes.systems.posterior2d.system.Posterior2dSystem.run`, by density.
        path: the PNG file.
    """
    kinds = list(next(iter(samples.values())))
    figure = Figure(figsize=(2.5 * (1 + len(kinds)), 2.62 * len(samples) + 0.4), layout="constrained")
    rows = figure.subplots(len(samples), 1 + len(kinds), squeeze=False)
    for line, (name, by_kind) in zip(rows, samples.items(), strict=True):
        target = (DENSITIES[name](grid(SHOWN, CELLS)) - results[name]["log_normalizer"]).exp()
        pictures = [target, *(density_of(points) for points in by_kind.values())]
        captions = ["target", *(f"KL {results[name]['posteriors'][kind]['gap']:.2f} nats" for kind in by_kind)]
        for axes, picture, caption in zip(line, pictures, captions, strict=True):
            extent = (-SHOWN, SHOWN, -SHOWN, SHOWN)
            axes.imshow(
                picture.numpy(), origin="lower", extent=extent, cmap="magma_r", vmin=0, vmax=1.1 * float(target.max())
            )
            axes.set_xticks([])
            axes.set_yticks([])
            axes.set_xlabel(caption, fontsize=9)
        line[0].set_ylabel(name, fontsize=10)
    for axes, title in zip(rows[0], ["density", *(TITLES.get(kind, kind) for kind in kinds)], strict=True):
        axes.set_title(title, fontsize=10)
    save(figure, path)


def density_of(points: Tensor) -> Tensor:
    """Histogram ``(CELLS, CELLS)`` of points ``(N, 2)``, scaled to a density and smoothed a little; y runs first."""
    inside = points[(points.abs() < SHOWN).all(-1)].double()
    cell = 2.0 * SHOWN / CELLS
    column, row = ((inside + SHOWN) / cell).long().clamp(0, CELLS - 1).unbind(-1)
    counts = torch.bincount(row * CELLS + column, minlength=CELLS**2).double().view(1, 1, CELLS, CELLS)
    kernel = torch.tensor([1.0, 2.0, 1.0], dtype=torch.float64) / 4.0
    smooth = torch.nn.functional.conv2d(counts, torch.outer(kernel, kernel).view(1, 1, 3, 3), padding=1)
    return smooth[0, 0] / (len(points) * cell**2)
