"""Two half moons with few labels: a problem on the plane that a classifier alone solves badly."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ...batch_statistics import collect_statistics
from ...data.moons import make_moons
from .config import VATConfig
from .model import VATClassifier

__all__ = ["Moons", "fit_moons", "label_moons"]


class Moons(NamedTuple):
    """Points ``(N, 2)``, the moon of each, 0 or 1, and the rows of those with a label."""

    points: Tensor
    labels: Tensor
    labelled: Tensor


def label_moons(count: int = 500, *, seed: int = 0) -> Moons:
    """Two half moons with a label near each of their four ends.

    Args:
        count: points of both moons.
        seed: of the points.
    """
    train = make_moons(count, seed=seed).train
    points, labels = torch.from_numpy(train.images), torch.from_numpy(train.labels)
    found = []
    for moon in (0, 1):
        rows = (labels == moon).nonzero().flatten()
        along = rows[points[rows, 0].argsort()]
        found += [along[len(along) // 10], along[-(len(along) // 10)]]
    return Moons(points, labels, torch.stack(found))


def fit_moons(moons: Moons, weight: float, *, steps: int = 150, seed: int = 0) -> VATClassifier:
    """A classifier of the moons, in evaluation.

    Args:
        moons: the points.
        weight: of smoothness; with 0 the labels alone are used.
        steps: of Adam, each on all points.
        seed: of initial weights and noise.
    """
    # Four labelled points have other batch statistics than all points.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = VATClassifier(VATConfig((64, 64), data_features=2, classes=2, epsilon=0.1, norm_logits=False))
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
