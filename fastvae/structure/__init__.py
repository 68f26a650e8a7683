"""Plain data that every floor reads: the structure of networks, of convolutions, and of a sampler's plan."""

from .convolution import COLOR_LAYOUTS, MASK_TYPES, ORDERS, ConvStructure, colors_of, pair
from .network import ACTIVATION_NAMES, LAYOUTS, MadeStructure, hidden_degrees_of, read_structure, spread_degrees

__all__ = [
    "ACTIVATION_NAMES",
    "COLOR_LAYOUTS",
    "LAYOUTS",
    "MASK_TYPES",
    "ORDERS",
    "ConvStructure",
    "MadeStructure",
    "colors_of",
    "hidden_degrees_of",
    "pair",
    "read_structure",
    "spread_degrees",
]
