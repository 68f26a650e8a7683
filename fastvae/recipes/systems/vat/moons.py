"""Two moons with few labels: a problem on the plane that a classifier alone solves badly."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ...batch_statistics import collect_statistics
from .config import VATConfig
from .model import VATClassifier

__all__ = ["Moons", "fit_moons", "make_moons"]


class Moons(NamedTuple):
    """Points ``(N, 2)``, the moon of each, 0 or 1, and the rows of those with a label."""

    points: Tensor
    labels: Tensor
    labelled: Tensor


def make_moons(count: int = 250, labelled: int = 2, noise: float = 0.1, seed: int = 0) -> Moons:
    """Two half circles that reach into each other.

    Args:
        count: points of each moon.
        labelled: of them, spread evenly along the moon.
        noise: standard deviation of a point.
        seed: of the noise.
    """
    angle = torch.linspace(0.0, math.pi, count)
    upper = torch.stack([angle.cos(), angle.sin()], 1)
    lower = torch.stack([1.0 - angle.cos(), 0.5 - angle.sin()], 1)
    points = torch.cat([upper, lower])
    points += noise * torch.randn(points.shape, generator=torch.Generator().manual_seed(seed))
    rows = torch.linspace(0.1 * count, 0.9 * count, labelled).long()
    return Moons(points, torch.arange(2).repeat_interleave(count), torch.cat([rows, rows + count]))


def fit_moons(moons: Moons, weight: float, *, steps: int = 150, seed: int = 0) -> VATClassifier:
    """A classifier of the moons, in evaluation.

    Args:
        moons: the points.
        weight: of smoothness; with 0 the labels alone are used.
        steps: of Adam, each on all points.
        seed: of initial weights and noise.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = VATClassifier(VATConfig((64, 64), data_features=2, classes=2, epsilon=0.1))
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3, fused=True)
    x_l, y_l = moons.points[moons.labelled], moons.labels[moons.labelled]
    for _ in range(steps):
        loss = torch.nn.functional.cross_entropy(model(x_l), y_l)
        if weight:
            noise = torch.randn(moons.points.shape, generator=generator)
            loss = loss + weight * model.smoothness(moons.points, noise).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    collect_statistics(model, [moons.points])
    return model.eval()
