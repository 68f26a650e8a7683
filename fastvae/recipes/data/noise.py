"""Noise of a process's share of a joint batch, which no number of processes changes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ... import backend

__all__ = ["Noise", "share_noise"]


def share_noise(
    x: Tensor, shape: Sequence[int], impl: str, *, generator: torch.Generator | None, first: int, rows: int
) -> dict[str, Any]:
    """What a sampling op takes, such that a share of a joint batch has its rows of the noise of the whole.

    Args:
        x: the share, ``(N, ...)``: its number of rows, dtype and device.
        shape: of the noise of one row: ``(D,)``, or ``(*copies, D)``.
        impl: implementation of the op.
        generator: the torch generator of the whole noise.
        first: number of the share's first row in the joint batch.
        rows: of the joint batch.
    """
    if backend.resolve(impl, x) != "reference":
        return {"generator": generator, "row_offset": first * math.prod(shape[:-1])}
    joint = torch.randn((rows, *shape), dtype=x.dtype, device=x.device, generator=generator)
    return {"eps": joint[first : first + len(x)]}


@dataclass(frozen=True)
class Noise:
    """The noise of images, for one latent vector after the other.

    Args:
        generator: the torch generator that it comes from.
        first: number of the first image in a joint batch.
        rows: images of the joint batch; those at hand if None.
        eps: the noise, if it is given: of each latent vector.
    """

    generator: torch.Generator | None = None
    first: int = 0
    rows: int | None = None
    eps: Sequence[Tensor] = field(default=())

    def options(self, which: int, mu: Tensor, impl: str) -> dict[str, Any]:
        """What the ops take.

        Args:
            which: number of the latent vector, from 0.
            mu: a mean for each sample, ``(N, *, D)``.
            impl: implementation of the ops.
        """
        if self.eps:
            return {"eps": self.eps[which]}
        rows = len(mu) if self.rows is None else self.rows
        return share_noise(mu, mu.shape[1:], impl, generator=self.generator, first=self.first, rows=rows)
