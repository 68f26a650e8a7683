"""The picture of the recipe ``posterior2d``."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from ...leapfrog import leapfrog
from ...pictures.grids import save
from .densities import DENSITIES, grid
from .four_points import POINTS

__all__ = ["draw_four_points", "draw_posteriors", "draw_trajectories"]

SHOWN = 4.2
CELLS = 140
# Points of a scatter plot, and the colours of the four posteriors.
SCATTERED = 8000
POINT_COLORS = ("#1f6fb4", "#d1571b", "#3b8f4a", "#7a4fa3")
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


def draw_four_points(samples: Mapping[str, Tensor], results: Mapping[str, Any], path: Path) -> None:
    """The prior, and the posteriors of four data points, a colour each, beside it for each kind of posterior.

    Args:
        samples: points ``(N, 2)`` by kind of posterior, those of the four data points in turn.
        results: the figures of the VAE, with ``posteriors`` by kind.
        path: the PNG file.
    """
    figure = Figure(figsize=(3.1 * (1 + len(samples)), 3.6), layout="constrained")
    panels = figure.subplots(1, 1 + len(samples))
    count = min(map(len, samples.values()))
    prior = torch.randn(min(count, SCATTERED), 2, generator=torch.Generator().manual_seed(0))
    panels[0].scatter(*prior.T.numpy(), s=1.5, color="#8b9199", linewidths=0)
    panels[0].set_title("prior", fontsize=10)
    panels[0].set_xlabel(f"largest bound {_signed(results['log_normalizer'])} nats", fontsize=9)
    for axes, (kind, points) in zip(panels[1:], samples.items(), strict=True):
        shown = points[: SCATTERED // POINTS * POINTS]
        colors = [POINT_COLORS[i % POINTS] for i in range(len(shown))]
        axes.scatter(*shown.T.numpy(), s=1.5, c=colors, linewidths=0)
        axes.set_title({"diagonal": "factorised posteriors", "iaf": "IAF posteriors"}[kind], fontsize=10)
        axes.set_xlabel(f"bound {_signed(results['posteriors'][kind]['bound'])} nats", fontsize=9)
    for axes in panels:
        axes.set_xlim(-3.4, 3.4)
        axes.set_ylim(-3.4, 3.4)
        axes.set_aspect("equal")
        axes.set_xticks([])
        axes.set_yticks([])
    save(figure, path)


def _signed(value: float) -> str:
    return f"{value:.3f}".replace("-", "\u2212")


def draw_trajectories(
    starts: Mapping[str, Tensor], path: Path, *, count: int = 5, steps: int = 40, step_size: float = 0.05, seed: int = 0
) -> None:
    """Leapfrog steps on each density: from points of a posterior, with momenta from N(0, I) and masses of 1.

    Args:
        starts: points ``(N, 2)`` by density.
        path: the PNG file.
        count: trajectories on each density.
        steps: of each.
        step_size: of each step.
        seed: of the momenta.
    """
    generator, step, mass = torch.Generator().manual_seed(seed), torch.full((2,), step_size), torch.ones(2)
    figure = Figure(figsize=(3.1 * len(starts), 3.6), layout="constrained")
    for axes, (name, points) in zip(figure.subplots(1, len(starts), squeeze=False)[0], starts.items(), strict=True):
        target, extent = DENSITIES[name](grid(SHOWN, CELLS)).exp().numpy(), (-SHOWN, SHOWN, -SHOWN, SHOWN)
        axes.imshow(target, origin="lower", extent=extent, cmap="Greys", vmin=0, vmax=1.8 * target.max())
        z = points[:count].float()
        v, path_of = torch.randn(z.shape, generator=generator), [z]
        for _ in range(steps):
            z, v = leapfrog(z, v, partial(gradient_of, name), step, mass)
            path_of.append(z)
        for i, line in enumerate(torch.stack(path_of, 1)):
            axes.plot(*line.T.numpy(), color=f"C{i % 10}", linewidth=1.2, marker=".", markersize=2.0)
            # Ends lie above the lines of others.
            for end, face in ((line[0], "white"), (line[-1], f"C{i % 10}")):
                axes.plot(*end.numpy(), color=f"C{i % 10}", marker="o", markersize=6, markerfacecolor=face, zorder=3)
        axes.set_xlim(-SHOWN, SHOWN)
        axes.set_ylim(-SHOWN, SHOWN)
        axes.set_xticks([])
        axes.set_yticks([])
        axes.set_title(name, fontsize=10)
    figure.supxlabel(
        f"{steps} leapfrog steps of {step_size:g}, from the diagonal Gaussian (hollow) to the end (full)", fontsize=9
    )
    save(figure, path)


def gradient_of(name: str, z: Tensor) -> Tensor:
    """Of a log-density, to points ``(N, 2)``."""
    with torch.enable_grad():
        at = z.detach().requires_grad_()
        return torch.autograd.grad(DENSITIES[name](at).sum(), at)[0]


def density_of(points: Tensor) -> Tensor:
    """Histogram ``(CELLS, CELLS)`` of points ``(N, 2)``, scaled to a density and smoothed a little; y runs first."""
    inside = points[(points.abs() < SHOWN).all(-1)].double()
    cell = 2.0 * SHOWN / CELLS
    column, row = ((inside + SHOWN) / cell).long().clamp(0, CELLS - 1).unbind(-1)
    counts = torch.bincount(row * CELLS + column, minlength=CELLS**2).double().view(1, 1, CELLS, CELLS)
    kernel = torch.tensor([1.0, 2.0, 1.0], dtype=torch.float64) / 4.0
    smooth = torch.nn.functional.conv2d(counts, torch.outer(kernel, kernel).view(1, 1, 3, 3), padding=1)
    return smooth[0, 0] / (len(points) * cell**2)
