"""PixelCNN++ at one resolution."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..structure.integers import integer
from ._start import Start, start_as
from .gated_conv import Conditioning, GatedActivation, check_odd, colors, degrees
from .masked_conv2d import MaskedConv2d
from .pixelcnn import PixelNetwork
from .shifted_conv import DownRightShiftedConv2d, DownShiftedConv2d

__all__ = ["PixelCNNpp"]

# The last convolution of a block starts small, so that a deep network starts near the identity.
RESIDUAL_SCALE = 0.1


def concat_elu(x: Tensor) -> Tensor:
    """Exponential linear units of x and of -x."""
    return functional.elu(torch.cat([x, -x], 1))


class _GatedResidual(nn.Module):
    """x + a sigmoid(b), with a and b two convolutions of x; other maps join in by 1 x 1 convolutions.

    ``own`` are the colours of x, ``others`` those of each map that joins in; None for a map without colours.
    """

    def __init__(
        self,
        conv: type[MaskedConv2d],
        channels: int,
        kernel_size: tuple[int, int],
        own: Sequence[int] | None,
        others: Sequence[Sequence[int] | None],
        dropout: float,
        context_features: int,
        context_channels: int,
        **options: Any,
    ) -> None:
        super().__init__()
        self.first = conv(2 * channels, channels, kernel_size, **degrees(own, own, in_times=2), **options)
        self.joins = nn.ModuleList(
            MaskedConv2d(
                2 * channels, channels, 1, mask_type="B", bias=False, **degrees(other, own, in_times=2), **options
            )
            for other in others
        )
        self.dropout = nn.Dropout(dropout)
        self.second = conv(2 * channels, 2 * channels, kernel_size, **degrees(own, own, 2, in_times=2), **options)
        options.pop("weight_norm")
        self.condition = Conditioning(2 * channels, context_features, context_channels, **options)
        self.gate = GatedActivation("linear", impl=options["impl"])
        start_as(self.second, Start(weight_scale=RESIDUAL_SCALE, data_std=RESIDUAL_SCALE))

    def forward(self, x: Tensor, context: Tensor | None, *others: Tensor) -> Tensor:
        h = self.first(concat_elu(x))
        for join, other in zip(self.joins, others, strict=True):
            h = h + join(concat_elu(other))
        h = self.second(self.dropout(concat_elu(h)))
        return x + self.gate(h, self.condition(context))


class PixelCNNpp(PixelNetwork):
    r"""PixelCNN++: two streams of gated residual blocks, by shifted convolutions, with skips between two halves.

    The upper stream u sees the rows above. The other stream, ul, also sees the pixels to the left in the own row; each
    of its blocks reads u. Every block of the second half also reads its twin of the first.

    Args:
        in_channels: channels C of an image.
        hidden_channels: width F of both streams.
        num_layers: blocks of each half, in both streams.
        kernel_size: k, odd: u has kernels of (k + 1) / 2 rows and k columns, ul of (k + 1) / 2 rows and columns.
        first_kernel_size: k of the first layer, which sees (k + 1) / 2 rows above.
        context_features: width of a context vector, 0 for none; it enters every gate.
        context_channels: channels of a context map of the image's size, 0 for none; not together with
            ``context_features``.
        likelihood: ``"logistic_mixture"`` (10 components, values in [-1, 1]), ``"bernoulli"``, ``"categorical"`` (256
            levels, values k / 255), or an object of :mod:`fastvae.likelihoods.pixels`.
        dropout: probability of dropping a number within a block, in training mode.
        weight_norm: whether weights are normalised, with learned gains; see :func:`initialize_from_data`.
        impl: implementation, see :mod:`fastvae.backend`.

    Shape:
        ``x`` ``(N, C, H, W)``, values or integer levels, and ``context`` ``(N, context_features)``,
        ``(N, context_channels, H, W)`` or None to the likelihood's parameters, ``(N, P, H, W)``.

    Raises:
        TypeError: a size is no integer.
        ValueError: sizes, names or colours that do not fit; a context missing, unexpected or of another size.

    Note:
        This network leaves out two parts of the paper's. It has no levels of lower resolution, since a sampler
        computes every activation once only if all layers keep the image's size. It has no input channel of ones, which
        marks the image's border. The paper's layers have ``weight_norm`` and a data-dependent start.

        The sampler's parameters equal those of ``forward`` to a few ulp; for :class:`PixelCNN` and
        :class:`GatedPixelCNN` they are the same bits on a CPU. The reason is the elu between convolutions: ``forward``
        takes PyTorch's, the sampler its own. The sampler's parameters are the same bits for every batch size.

    Reference:
        *PixelCNN++: Improving the PixelCNN with Discretized Logistic Mixture Likelihood and Other Modifications*
        (Salimans, Karpathy, Chen, Kingma, 2017).

    Example:
        >>> net = PixelCNNpp(3, 8, 1).eval()
        >>> x = torch.randint(0, 256, (2, 3, 6, 6)) / 127.5 - 1
        >>> net(x).shape, net.log_prob(x).shape
        (torch.Size([2, 100, 6, 6]), torch.Size([2]))
    """

    def __init__(
        self,
        in_channels: int,
        hidden_channels: int,
        num_layers: int,
        kernel_size: int = 3,
        *,
        first_kernel_size: int = 3,
        context_features: int = 0,
        context_channels: int = 0,
        likelihood: Any = "logistic_mixture",
        dropout: float = 0.5,
        weight_norm: bool = False,
        impl: str = "auto",
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        context: dict[str, Any] = {"context_features": context_features, "context_channels": context_channels}
        super().__init__(in_channels, hidden_channels, num_layers, likelihood=likelihood, impl=impl, **context)
        in_channels, hidden_channels = self.in_channels, self.hidden_channels
        num_layers = integer("num_layers", num_layers)
        kernel_size = check_odd("kernel_size", kernel_size)
        first_kernel_size = check_odd("first_kernel_size", first_kernel_size)
        options = {"weight_norm": weight_norm, "impl": impl, "device": device, "dtype": dtype}
        pixels, own = colors(in_channels, self.num_colors), colors(hidden_channels, self.num_colors)
        rows = first_kernel_size // 2 + 1
        self.first_above = DownShiftedConv2d(
            in_channels, hidden_channels, (rows + 1, first_kernel_size), first=True, **options
        )
        self.first_row_above = DownShiftedConv2d(
            in_channels, hidden_channels, (2, first_kernel_size), first=True, **options
        )
        self.first_left = DownRightShiftedConv2d(
            in_channels, hidden_channels, (rows, rows), first=True, bias=False, **degrees(pixels, own), **options
        )
        rows = kernel_size // 2 + 1
        shared = {"dropout": dropout, **context, **options}
        blocks = [
            (
                _GatedResidual(DownShiftedConv2d, hidden_channels, (rows, kernel_size), None, [None] * twin, **shared),
                _GatedResidual(
                    DownRightShiftedConv2d, hidden_channels, (rows, rows), own, [None, *[own] * twin], **shared
                ),
            )
            for twin in [0] * num_layers + [1] * num_layers
        ]
        self.above, self.left = (nn.ModuleList(stream) for stream in zip(*blocks, strict=True))
        self.output = MaskedConv2d(
            hidden_channels, self.parameter_channels, 1, mask_type="B",
            **degrees(own, colors(self.parameter_channels, self.num_colors)), **options,
        )  # fmt: skip

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        x = self.to_numbers(x)
        u, ul = self.first_above(x), self.first_row_above(x) + self.first_left(x)
        twins: list[tuple[Tensor, Tensor]] = []
        half = len(self.above) // 2
        for index, (above, left) in enumerate(zip(self.above, self.left, strict=True)):
            if index < half:
                twins.append((u, ul))
                u = above(u, context)
                ul = left(ul, context, u)
            else:
                twin_u, twin_ul = twins.pop()
                u = above(u, context, twin_u)
                ul = left(ul, context, u, twin_ul)
        return self.output(functional.elu(ul))
