"""Layers."""

from .checks import AutoregressiveError, AutoregressiveReport, check_autoregressive
from .flows import InverseAutoregressiveFlow, MaskedAutoregressiveFlow
from .gaussian import DiagonalGaussianHead, TriangularGaussianHead
from .householder import HouseholderFlow
from .linear_iaf import LinearInverseAutoregressiveFlow
from .made import MADE
from .masked import MaskedLinear
from .planar import PlanarFlow
from .sequence import FlowSequence
from .sylvester import SylvesterFlow

__all__ = [
    "MADE",
    "AutoregressiveError",
    "AutoregressiveReport",
    "DiagonalGaussianHead",
    "FlowSequence",
    "HouseholderFlow",
    "InverseAutoregressiveFlow",
    "LinearInverseAutoregressiveFlow",
    "MaskedAutoregressiveFlow",
    "MaskedLinear",
    "PlanarFlow",
    "SylvesterFlow",
    "TriangularGaussianHead",
    "check_autoregressive",
]
