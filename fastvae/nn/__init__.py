"""Layers."""

from .flows import InverseAutoregressiveFlow, MaskedAutoregressiveFlow
from .gaussian import DiagonalGaussianHead, TriangularGaussianHead
from .made import MADE
from .masked import MaskedLinear

__all__ = [
    "MADE",
    "DiagonalGaussianHead",
    "InverseAutoregressiveFlow",
    "MaskedAutoregressiveFlow",
    "MaskedLinear",
    "TriangularGaussianHead",
]
