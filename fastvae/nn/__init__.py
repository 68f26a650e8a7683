"""Layers."""

from ._replicas import shared_first_batch
from .autoregressive_check import AutoregressiveError, AutoregressiveReport, check_autoregressive
from .class_linear import ClassLinear
from .code_embedding import CodeEmbedding
from .conv_flows import ConvInverseAutoregressiveFlow, ConvMADE
from .data_start import initialize_from_data
from .fixed import AffineTransform, Permutation
from .flows import InverseAutoregressiveFlow, MaskedAutoregressiveFlow
from .gated_conv import GatedActivation, GatedMaskedConv2d
from .gated_pixelcnn import GatedPixelCNN
from .gaussian import DiagonalGaussianHead, TriangularGaussianHead
from .householder import HouseholderFlow
from .input_baseline import InputBaseline
from .linear_iaf import LinearInverseAutoregressiveFlow
from .made import MADE
from .masked_conv2d import MaskedConv2d
from .masked_linear import MaskedLinear
from .pixelcnn import PixelCNN
from .pixelcnnpp import PixelCNNpp
from .planar import PlanarFlow
from .sequence import FlowSequence
from .shifted_conv import DownRightShiftedConv2d, DownShiftedConv2d
from .sylvester import SylvesterFlow

__all__ = [
    "MADE",
    "AffineTransform",
    "AutoregressiveError",
    "AutoregressiveReport",
    "ClassLinear",
    "CodeEmbedding",
    "ConvInverseAutoregressiveFlow",
    "ConvMADE",
    "DiagonalGaussianHead",
    "DownRightShiftedConv2d",
    "DownShiftedConv2d",
    "FlowSequence",
    "GatedActivation",
    "GatedMaskedConv2d",
    "GatedPixelCNN",
    "HouseholderFlow",
    "InputBaseline",
    "InverseAutoregressiveFlow",
    "LinearInverseAutoregressiveFlow",
    "MaskedAutoregressiveFlow",
    "MaskedConv2d",
    "MaskedLinear",
    "Permutation",
    "PixelCNN",
    "PixelCNNpp",
    "PlanarFlow",
    "SylvesterFlow",
    "TriangularGaussianHead",
    "check_autoregressive",
    "initialize_from_data",
    "shared_first_batch",
]
