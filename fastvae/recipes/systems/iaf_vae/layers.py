"""Weight-normalised residual blocks."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

__all__ = ["ResidualBlock", "apply_weight_norm", "halve"]

LayerT = TypeVar("LayerT", nn.Linear, nn.Conv2d, nn.ConvTranspose2d)

RESIDUAL_SCALE = 0.1


def apply_weight_norm(layer: LayerT) -> LayerT:
    r"""The layer with weights :math:`w = g\, v / \lVert v \rVert`, one gain g for each output feature or map."""
    return parametrizations.weight_norm(layer, dim=_output_dim(layer))


def _output_dim(layer: nn.Module) -> int:
    return 1 if isinstance(layer, nn.ConvTranspose2d) else 0


def halve(side: int) -> int:
    """The side of an image after a convolution of stride 2."""
    return (side + 1) // 2


class ResidualBlock(nn.Module):
    r"""Pre-activation block :math:`S(x) + 0.1\, C_2(\operatorname{ELU}(C_1(\operatorname{ELU}(x))))`.

    C are 3×3 convolutions, S is the identity. With ``stride=2``, S and the first convolution halve the image. With
    ``transposed_to``, S and the second convolution are transposed ones of stride 2 that lead to this side: the mirror
    image of the former.

    Args:
        in_maps: feature maps of x.
        out_maps: feature maps of the output; equal to ``in_maps`` where S is the identity.
        stride: 1 or 2.
        transposed_to: side of the larger image, or None.

    Shape:
        ``(N, in_maps, H, H)`` to ``(N, out_maps, H', H')``.

    Reference:
        *Identity Mappings in Deep Residual Networks* (He, Zhang, Ren, Sun, 2016).
    """

    def __init__(self, in_maps: int, out_maps: int, *, stride: int = 1, transposed_to: int | None = None) -> None:
        super().__init__()
        self.elu = nn.ELU()
        self.skip: nn.Module
        self.second: nn.Module
        if transposed_to is not None:
            # A transposed convolution makes of the side n a side of 2n - 1, plus the pixels added at one end.
            added = transposed_to - (2 * halve(transposed_to) - 1)
            self.first = _convolution(in_maps, in_maps)
            self.second, self.skip = (_make_transposed(in_maps, out_maps, added) for _ in range(2))
        else:
            self.first = _convolution(in_maps, out_maps, stride)
            self.second = _convolution(out_maps, out_maps)
            self.skip = _convolution(in_maps, out_maps, stride) if stride != 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        change = self.second(self.elu(self.first(self.elu(x))))
        return torch.add(self.skip(x), change, alpha=RESIDUAL_SCALE)


def _convolution(in_maps: int, out_maps: int, stride: int = 1) -> nn.Conv2d:
    return apply_weight_norm(nn.Conv2d(in_maps, out_maps, 3, stride, padding=1))


def _make_transposed(in_maps: int, out_maps: int, added: int) -> nn.ConvTranspose2d:
    return apply_weight_norm(nn.ConvTranspose2d(in_maps, out_maps, 3, 2, padding=1, output_padding=added))
