"""The part of a likelihood that the sampler's ops use."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

__all__ = ["PixelLikelihood"]


class PixelLikelihood(Protocol):
    """The part of :class:`fastvae.likelihoods.pixels.PixelLikelihood` that draws."""

    def columns(self, channels: int) -> int:
        """Uniform numbers that a pixel takes."""

    def head(self, channels: int) -> Sequence[int] | None:
        """The numbers by which kernels know the likelihood, or None where they do not."""

    def draw(self, parameters: Tensor, uniforms: Tensor, temperature: float = 1.0) -> Tensor:
        """Pixels (N, C) from parameters (N, P) and uniforms (N, columns) in (0, 1)."""
