"""Weight-normalised residual blocks, and their data-dependent initialisation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

__all__ = ["ResidualBlock", "apply_weight_norm", "halve", "initialize_from_data"]

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


@torch.no_grad()
def initialize_from_data(
    model: nn.Module, run: Callable[[], Any], *, target_std: Mapping[nn.Module, float] | None = None
) -> None:
    r"""Sets gains and biases such that, on the data of ``run``, outputs have mean 0 and standard deviation 1.

    .. math::
        f = c / \operatorname{std}(t), \qquad g \leftarrow f g, \qquad b \leftarrow f\,(b - \operatorname{mean}(t))

    for the outputs t of every weight-normalised layer. A layer sees what those before it give after their own
    initialisation. One without a bias keeps its mean; an output that does not vary keeps its gain.

    Args:
        model: holds the layers that :func:`apply_weight_norm` made.
        run: runs the model on a first batch.
        target_std: standard deviation c of layers that shall have another than 1.

    Reference:
        *Weight Normalization: A Simple Reparameterization to Accelerate Training of Deep Neural Networks* (Salimans,
        Kingma, 2016).

    Example:
        >>> layer, x = apply_weight_norm(nn.Linear(5, 3)), torch.randn(100, 5)
        >>> initialize_from_data(layer, lambda: layer(x))
        >>> torch.allclose(layer(x).std(0, correction=0), torch.ones(3), atol=1e-4)
        True
    """
    targets = target_std or {}

    def hook(layer: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        dims = [dim for dim in range(output.dim()) if dim != (1 if output.dim() == 4 else output.dim() - 1)]
        std, mean = torch.std_mean(output, dims, correction=0)
        factor = torch.where(std > 1e-6, targets.get(layer, 1.0) / std.clamp(min=1e-6), 1.0)
        gain: Any = layer.get_submodule("parametrizations.weight").get_parameter("original0")
        gain.mul_(factor.view_as(gain))
        bias: Any = layer.bias
        if bias is not None:
            bias.sub_(mean).mul_(factor)
        else:
            mean = torch.zeros_like(mean)
        shape = [1, -1, 1, 1] if output.dim() == 4 else [-1]
        return (output - mean.view(shape)) * factor.view(shape)

    handles = [
        layer.register_forward_hook(hook)
        for layer in model.modules()
        if isinstance(layer, nn.Linear | nn.Conv2d | nn.ConvTranspose2d) and parametrize.is_parametrized(layer)
    ]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
