"""Gated PixelCNN."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ..structure.integers import integer
from .gated_conv import GatedMaskedConv2d
from .pixelcnn import PixelHead, PixelNetwork

__all__ = ["GatedPixelCNN"]


class GatedPixelCNN(PixelNetwork):
    r"""Gated PixelCNN: :math:`p(x) = \prod_i p(x_i \mid x_{<i})` over pixels in raster order, without a blind spot.

    Layers of two streams (:class:`GatedMaskedConv2d`), then two 1 x 1 layers with rectifiers before them.

    Args:
        in_channels: channels C of an image.
        hidden_channels: width F of both streams.
        num_layers: layers, the first one included.
        kernel_size: k of the layers but the first, odd.
        first_kernel_size: that of the first layer.
        context_features: width of a context vector, 0 for none; it enters every gate and both last layers.
        context_channels: channels of a context map of the image's size, 0 for none; not together with
            ``context_features``.
        likelihood: ``"bernoulli"``, ``"categorical"`` (256 levels, values k / 255), ``"logistic_mixture"`` (10
            components, values in [-1, 1]), or an object of :mod:`fastvae.likelihoods.pixels`.
        head_channels: width between the two last layers; None: ``hidden_channels``.
        weight_norm: whether weights are normalised, with learned gains; see :func:`initialize_from_data`.
        impl: implementation, see :mod:`fastvae.backend`.

    Shape:
        ``x`` ``(N, C, H, W)``, values or integer levels, and ``context`` ``(N, context_features)``,
        ``(N, context_channels, H, W)`` or None to the likelihood's parameters, ``(N, P, H, W)``.

    Raises:
        TypeError: a size is no integer.
        ValueError: sizes, names or colours that do not fit; a context missing, unexpected or of another size.

    Note:
        The channels of a pixel see each other in order, with the Bernoulli and the categorical likelihood;
        ``hidden_channels`` must then be a multiple of C.

    Reference:
        *Conditional Image Generation with PixelCNN Decoders* (van den Oord, Kalchbrenner, Vinyals, Espeholt, Graves,
        Kavukcuoglu, 2016).

    Example:
        >>> import torch
        >>> net = GatedPixelCNN(1, 16, 3, context_features=4)
        >>> x, context = torch.bernoulli(torch.full((2, 1, 8, 8), 0.5)), torch.randn(2, 4)
        >>> net(x, context).shape, net.log_prob(x, context).shape
        (torch.Size([2, 1, 8, 8]), torch.Size([2]))
    """

    def __init__(
        self,
        in_channels: int,
        hidden_channels: int,
        num_layers: int,
        kernel_size: int = 3,
        *,
        first_kernel_size: int = 7,
        context_features: int = 0,
        context_channels: int = 0,
        likelihood: Any = "bernoulli",
        head_channels: int | None = None,
        weight_norm: bool = False,
        impl: str = "auto",
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        context: dict[str, Any] = {"context_features": context_features, "context_channels": context_channels}
        super().__init__(in_channels, hidden_channels, num_layers, likelihood=likelihood, impl=impl, **context)
        in_channels, hidden_channels = self.in_channels, self.hidden_channels
        num_layers = integer("num_layers", num_layers)
        options = {"weight_norm": weight_norm, "impl": impl, "device": device, "dtype": dtype}
        shared = {"num_colors": self.num_colors, **options, **context}
        self.layers = nn.ModuleList(
            GatedMaskedConv2d(
                hidden_channels if layer else in_channels,
                hidden_channels,
                kernel_size if layer else first_kernel_size,
                first=layer == 0,
                last=layer == num_layers - 1,
                **shared,
            )
            for layer in range(num_layers)
        )
        width = hidden_channels if head_channels is None else head_channels
        self.head = PixelHead(hidden_channels, width, self.parameter_channels, **shared)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        vertical = horizontal = self.to_numbers(x)
        for layer in self.layers:
            vertical, horizontal = layer(vertical, horizontal, context)
        return self.head(horizontal, context)
