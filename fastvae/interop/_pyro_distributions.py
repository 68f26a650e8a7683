"""Gaussians as Pyro's distributions; importing this imports Pyro."""

from __future__ import annotations

from typing import Any

from pyro.distributions.torch_distribution import TorchDistributionMixin

from ..distributions import DiagonalGaussian, StandardNormal, TriangularGaussian

__all__ = ["PyroDiagonalGaussian", "PyroStandardNormal", "PyroTriangularGaussian", "pyro_distribution"]


class PyroDiagonalGaussian(DiagonalGaussian, TorchDistributionMixin):  # type: ignore[misc, unused-ignore]
    """A :class:`DiagonalGaussian` for ``pyro.sample``."""


class PyroStandardNormal(StandardNormal, TorchDistributionMixin):  # type: ignore[misc, unused-ignore]
    """A :class:`StandardNormal` for ``pyro.sample``; ``kl_divergence`` recognises it too."""


class PyroTriangularGaussian(TriangularGaussian, TorchDistributionMixin):  # type: ignore[misc, unused-ignore]
    """A :class:`TriangularGaussian` for ``pyro.sample``."""


def pyro_distribution(gaussian: DiagonalGaussian | TriangularGaussian) -> Any:
    """The same Gaussian with Pyro's methods; its tensors are views of the parameters."""
    if isinstance(gaussian, TorchDistributionMixin):
        return gaussian
    if isinstance(gaussian, TriangularGaussian):
        triangular = PyroTriangularGaussian.__new__(PyroTriangularGaussian)
        return gaussian.expand(gaussian.batch_shape, triangular)
    kind = PyroStandardNormal if isinstance(gaussian, StandardNormal) else PyroDiagonalGaussian
    return gaussian.expand(gaussian.batch_shape, kind.__new__(kind))
