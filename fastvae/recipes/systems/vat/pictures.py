"""The pictures of the system ``vat``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor

from ...pictures.grids import save, show, tile
from .model import VATClassifier
from .moons import Moons
from .perturbation import adversarial_direction

__all__ = ["draw_adversarial", "draw_moons"]

CELLS = 160


def draw_adversarial(model: VATClassifier, x: Tensor, path: Path, *, factor: float = 10.0, seed: int = 0) -> None:
    """Images ``(N, pixels)``, the direction that changes their prediction most, and images far along it.

    Numbers below are predicted classes.

    Args:
        model: the classifier, in evaluation.
        x: the images.
        path: the PNG file.
        factor: how many times the perturbation of the training the images are moved by.
        seed: of the noise that the search begins with.
    """
    with torch.no_grad():
        log_p = model(x).log_softmax(-1)
    noise = torch.randn(x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(seed))
    # More turns than in training: the picture shows the eigenvector itself.
    direction = adversarial_direction(model, x, log_p, noise, step=model.config.xi, turns=10)
    moved = x + factor * model.config.epsilon * direction
    largest = direction.abs().amax(-1, keepdim=True).clamp_min(torch.finfo(x.dtype).tiny)
    with torch.no_grad():
        classes = [log_p.argmax(1).tolist(), model(moved).argmax(1).tolist()]
    lines = {
        "test image": (x, classes[0]),
        "direction": (0.5 + 0.5 * direction / largest, None),
        f"{factor * model.config.epsilon:g} along it": (moved.clamp(0, 1), classes[1]),
    }
    figure = Figure(figsize=(0.62 * len(x) + 1.2, 3.0), layout="constrained")
    for axes, (name, (images, found)) in zip(figure.subplots(len(lines), 1), lines.items(), strict=True):
        picture = tile(images, 1, len(images))
        show(axes, picture)
        axes.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=9)
        if found is not None:
            width = picture.shape[1] / len(found)
            axes.set_xticks([(index + 0.5) * width for index in range(len(found))], [str(each) for each in found])
            axes.tick_params(length=0, labelsize=8)
    figure.suptitle("Images, and what changes their predicted class most", fontsize=10)
    save(figure, path)


@torch.no_grad()
def draw_moons(models: Mapping[str, VATClassifier], moons: Moons, path: Path) -> None:
    """The plane in shades of p(y = 1 | x), one picture for each model; points, and the labelled ones large."""
    low, high = moons.points.amin(0) - 0.4, moons.points.amax(0) + 0.4
    columns, rows = (torch.linspace(float(low[axis]), float(high[axis]), CELLS) for axis in (0, 1))
    grid = torch.stack(torch.meshgrid(rows, columns, indexing="ij")[::-1], -1).reshape(-1, 2)
    extent = (float(low[0]), float(high[0]), float(low[1]), float(high[1]))
    figure = Figure(figsize=(4.0 * len(models), 3.2), layout="constrained")
    for axes, (name, model) in zip(figure.subplots(1, len(models), squeeze=False)[0], models.items(), strict=True):
        p = model(grid).softmax(-1)[:, 1].reshape(CELLS, CELLS)
        axes.imshow(p.numpy(), origin="lower", extent=extent, cmap="RdBu_r", vmin=0, vmax=1, alpha=0.6)
        axes.contour(columns.numpy(), rows.numpy(), p.numpy(), levels=[0.5], colors="black", linewidths=1)
        axes.scatter(*moons.points.T.numpy(), s=2, color="black", alpha=0.3, linewidths=0)
        chosen = moons.points[moons.labelled]
        colors = ["#b2182b" if label else "#2166ac" for label in moons.labels[moons.labelled].tolist()]
        axes.scatter(*chosen.T.numpy(), s=60, color=colors, edgecolors="white")
        wrong = (model(moons.points).argmax(1) != moons.labels).double().mean()
        axes.set_title(f"{name}: error {100 * float(wrong):.1f} %", fontsize=10)
        axes.set_xticks([])
        axes.set_yticks([])
    save(figure, path)
