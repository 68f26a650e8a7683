"""Noise of images with several samples and classes each, which no number of processes changes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .... import backend

__all__ = ["Noise"]


@dataclass(frozen=True)
class Noise:
    """The noise of images: of a, then of z.

    Args:
        generator: the torch generator that it comes from.
        first: number of the first image in a joint batch.
        rows: images of the joint batch; those at hand if None.
        eps: the noise, if it is given: of a, then of z.
    """

    generator: torch.Generator | None = None
    first: int = 0
    rows: int | None = None
    eps: Sequence[Tensor] = field(default=())

    def options(self, which: int, mu: Tensor, impl: str) -> dict[str, Any]:
        """What the ops take.

        Args:
            which: 0 for a, 1 for z.
            mu: a mean for each sample, ``(N, *, D)``.
            impl: implementation of the ops.
        """
        if self.eps:
            return {"eps": self.eps[which]}
        images, *copies, features = mu.shape
        if backend.resolve(impl, mu) != "reference":
            return {"generator": self.generator, "row_offset": self.first * math.prod(copies)}
        rows = images if self.rows is None else self.rows
        joint = torch.randn((rows, *copies, features), dtype=mu.dtype, device=mu.device, generator=self.generator)
        return {"eps": joint[self.first : self.first + images]}
