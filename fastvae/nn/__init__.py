"""Layers."""

from .gaussian import DiagonalGaussianHead, TriangularGaussianHead

__all__ = ["DiagonalGaussianHead", "TriangularGaussianHead"]
