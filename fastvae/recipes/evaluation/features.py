"""Latents of images as features: means and standard deviations of the units that are active."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = ["Features", "features", "find_active"]

# A unit is active if the mean of its posterior has a larger standard deviation over images, and of how many.
LEAST, IMAGES = 0.1, 1000


class Features(NamedTuple):
    """Gaussian posteriors of N images, in the A units that are active.

    Args:
        mean: ``(N, A)``.
        std: standard deviations, ``(N, A)``.
        active: which of the D units are, bool ``(D,)``.
    """

    mean: Tensor
    std: Tensor
    active: Tensor


@torch.no_grad()
def find_active(model: Any, x: Tensor, *, images: int = IMAGES, least: float = LEAST) -> Tensor:
    """The units whose posterior mean varies over images: bool ``(D,)``, on the CPU.

    Args:
        model: its ``encode`` returns a posterior with ``mu``.
        x: images ``(N, pixels)``.
        images: how many of the first ones are looked at.
        least: the least standard deviation of the mean.
    """
    mu = model.encode(x[:images].to(next(model.parameters()))).mu
    return (mu.double().std(0, correction=0) > least).cpu()


@torch.no_grad()
def features(model: Any, x: Tensor, *, active: Tensor | None = None, chunk: int = 1000) -> Features:
    """What the encoder says of images; the features of an image do not depend on the others.

    Args:
        model: its ``encode`` returns a diagonal Gaussian with ``mu`` and ``log_sigma``; its device is used.
        x: images ``(N, pixels)``, binary or intensities.
        active: which units to take, bool ``(D,)``; those of :func:`find_active` on ``x`` if None. Training and test
            images need the same.
        chunk: images at a time.

    Returns:
        Means and standard deviations on the CPU.

    Raises:
        ValueError: ``active`` does not fit the latents.
    """
    active = find_active(model, x) if active is None else active
    like, found = next(model.parameters()), []
    for rows in x.split(chunk):
        q = model.encode(rows.to(like))
        if active.shape != q.mu.shape[1:]:
            raise ValueError(f"active must have shape {tuple(q.mu.shape[1:])}, got {tuple(active.shape)}")
        found.append(torch.stack([q.mu, q.log_sigma.exp()]).cpu()[..., active])
    mean, std = torch.cat(found, 1)
    return Features(mean, std, active)
