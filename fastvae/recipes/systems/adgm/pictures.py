"""The pictures of the system ``adgm``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from ...data.labelled import LabelledImages
from ...data.noise import Noise
from ...pictures.grids import draw_grid, save
from .model import ADGM

__all__ = ["draw_auxiliary", "draw_class_samples", "draw_points", "draw_regions"]

CELLS = 120


def draw_class_samples(model: ADGM, path: Path, *, draws: int = 10, seed: int = 0) -> None:
    """Means of p(x | ...), a row for each class."""
    classes = model.config.classes
    labels = torch.arange(classes).repeat_interleave(draws)
    images = model.sample(len(labels), labels=labels, generator=torch.Generator().manual_seed(seed))
    draw_grid(images, classes, draws, "Samples of each class", path)


@torch.no_grad()
def draw_auxiliary(model: ADGM, x: Tensor, labels: np.ndarray, path: Path) -> None:
    """The means of q(a | x) of data ``(N, pixels)`` along their two principal axes, coloured by class."""
    means = model.posterior_a(x).mu.double()
    means = means - means.mean(0)
    along = torch.linalg.svd(means, full_matrices=False)
    places = (means @ along.Vh[:2].T).numpy()
    places = np.pad(places, ((0, 0), (0, 2 - places.shape[1])))
    share = (along.S[:2].square().sum() / along.S.square().sum()).item()
    figure = Figure(figsize=(5.4, 4.8), layout="constrained")
    axes = figure.subplots()
    scatter(axes, places, labels, model.config.classes)
    axes.legend(markerscale=2, fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    axes.set_xlabel("first principal axis")
    axes.set_ylabel("second")
    axes.set_title(f"Means of q(a | x) by class; these axes hold {100 * share:.0f} % of the variance", fontsize=10)
    save(figure, path)


@torch.no_grad()
def draw_regions(model: ADGM, train: LabelledImages, labelled: np.ndarray, path: Path, *, seed: int = 0) -> None:
    """The plane in shades of q(y = 1 | x), with training points, and those with a label large.

    Args:
        model: of points in the plane and two classes.
        train: the points.
        labelled: the rows of those with a label.
        path: the PNG file.
        seed: of the samples of a.
    """
    low, high = train.images.min(0) - 0.4, train.images.max(0) + 0.4
    columns, rows = (torch.linspace(low[axis].item(), high[axis].item(), CELLS) for axis in (0, 1))
    grid = torch.stack(torch.meshgrid(rows, columns, indexing="ij")[::-1], -1).reshape(-1, 2)
    q = model.class_probabilities(grid, noise=Noise(torch.Generator().manual_seed(seed)))[:, 1].view(CELLS, CELLS)
    figure = Figure(figsize=(6.0, 4.4), layout="constrained")
    axes = figure.subplots()
    extent = (low[0], high[0], low[1], high[1])
    axes.imshow(q.numpy(), origin="lower", extent=extent, cmap="coolwarm", vmin=0, vmax=1, alpha=0.6)
    axes.contour(columns.numpy(), rows.numpy(), q.numpy(), levels=[0.5], colors="black", linewidths=1)
    axes.scatter(train.images[:, 0], train.images[:, 1], s=3, color="black", alpha=0.3, linewidths=0)
    known, classes = train.images[labelled], train.labels[labelled]
    colored: dict[str, Any] = {"c": classes, "cmap": "coolwarm", "vmin": 0, "vmax": 1, "edgecolors": "black"}
    axes.scatter(known[:, 0], known[:, 1], s=70, **colored)
    axes.set_aspect("equal")
    axes.set_title(f"q(y | x) with {len(labelled)} labels", fontsize=11)
    save(figure, path)


def draw_points(named: dict[str, tuple[Tensor, Tensor]], path: Path) -> None:
    """Points ``(N, 2)`` and their classes ``(N,)``, a picture for each name."""
    figure = Figure(figsize=(4.2 * len(named), 3.4), layout="constrained")
    for axes, (name, (points, labels)) in zip(
        figure.subplots(1, len(named), squeeze=False, sharex=True, sharey=True)[0], named.items(), strict=True
    ):
        scatter(axes, points.numpy(), labels.numpy(), 2)
        axes.set_aspect("equal")
        axes.set_title(name, fontsize=10)
    save(figure, path)


def scatter(axes: Axes, places: np.ndarray, labels: np.ndarray, classes: int) -> None:
    """Points coloured by class."""
    for label in range(classes):
        own = places[labels == label]
        axes.scatter(own[:, 0], own[:, 1], s=4, color=f"C{label % 10}", label=str(label), linewidths=0)
    axes.set_xticks([])
    axes.set_yticks([])
