"""Gaussian posteriors as ``torch.distributions``, over the ops of :mod:`fastvae.functional`."""

from .gaussians import DiagonalGaussian, StandardNormal, TriangularGaussian

from . import divergences as _divergences  # isort: skip  # noqa: F401  # registers the divergences of these classes

__all__ = ["DiagonalGaussian", "StandardNormal", "TriangularGaussian"]
