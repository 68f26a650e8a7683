"""Inverse autoregressive flow over maps, by masked convolutions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..ops.affine_flow import affine_flow
from ..reference.affine_flow import KINDS
from ..reference.masked_linear import ACTIVATIONS
from ..structure import spread_degrees
from ..structure.integers import integer, integers
from ._start import Start, start_as
from .flows import SCALE_BIAS
from .gated_conv import Conditioning, add_condition
from .made import widths_of
from .masked_conv2d import MaskedConv2d

__all__ = ["ConvInverseAutoregressiveFlow", "ConvMADE"]

# Initialisation from data starts a flow near the identity.
OUTPUT_STD = 0.1


class ConvMADE(nn.Module):
    r"""A masked convolutional network: parameters of a number depend on the numbers before it, and on a context map.

    The order is raster order, pixel by pixel and, within a pixel, channel by channel; or its reverse. Masked
    convolutions see the pixels before. At the own pixel degrees decide, as in :class:`MADE`: inputs have the degrees
    1, ..., Z, hidden channels 0, ..., Z - 1 in groups of equal size, outputs of channel i the degree i. A weight counts
    where the degree of its input is at most that of its output.

    Args:
        channels: number Z of channels.
        hidden_channels: widths of the hidden layers.
        kernel_size: of every layer, odd.
        params_per_channel: parameters P of each number.
        context_channels: channels of the context map, 0 for none; a 1 x 1 convolution of it is added to the first
            layer, before its activation.
        order: ``"raster"`` or ``"reversed"``.
        activation: ``"elu"``, ``"relu"``, ``"tanh"``, ``"softplus"``, ``"gelu"``, ``"silu"`` or ``"identity"``.
        weight_norm: whether weights are normalised, with learned gains; see :func:`initialize_from_data`. What it
            initialises gives the last layer's outputs a standard deviation of 0.1.
        impl: implementation, see :mod:`fastvae.backend`.

    Shape:
        ``z`` ``(N, Z, H, W)`` and ``context`` ``(N, context_channels, H, W)`` or None to ``(N, P Z, H, W)``, the first
        parameter of all channels first.

    Raises:
        ValueError: sizes or names that do not fit; a context missing, unexpected or of another size.

    Reference:
        *Improving Variational Inference with Inverse Autoregressive Flow* (Kingma, Salimans, Jozefowicz, Chen,
        Sutskever, Welling, 2016).

    Example:
        >>> net = ConvMADE(3, (12, 12), context_channels=5)
        >>> net(torch.randn(2, 3, 4, 4), torch.randn(2, 5, 4, 4)).shape
        torch.Size([2, 6, 4, 4])
    """

    def __init__(
        self,
        channels: int,
        hidden_channels: Sequence[int] = (64, 64),
        *,
        kernel_size: int = 3,
        params_per_channel: int = 2,
        context_channels: int = 0,
        order: str = "raster",
        activation: str = "elu",
        weight_norm: bool = False,
        impl: str = "auto",
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        channels, params_per_channel = integers(1, channels=channels, params_per_channel=params_per_channel)
        context_channels = integer("context_channels", context_channels, 0)
        hidden_channels = widths_of("hidden_channels", hidden_channels)
        kernel_size = integer("kernel_size", kernel_size)
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be an odd integer, got {kernel_size!r}")
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}, got {activation!r}")
        self.channels, self.context_channels = channels, context_channels
        self.order, self.activation = order, activation
        places = range(channels) if order == "raster" else range(channels - 1, -1, -1)
        self.places = tuple(places)
        # Hidden channels of degree 0 see earlier pixels and the context only: the first channel needs them.
        hidden = [spread_degrees(width, channels, True) for width in hidden_channels]
        degrees = [tuple(place + 1 for place in places), *hidden, tuple(places) * params_per_channel]
        options = {"impl": impl, "device": device, "dtype": dtype}
        last = len(hidden)
        self.layers = nn.ModuleList(
            MaskedConv2d(
                len(degrees[i]),
                len(degrees[i + 1]),
                kernel_size,
                mask_type="B",
                padding="same",
                in_degrees=degrees[i],
                out_degrees=degrees[i + 1],
                order=order,
                # A context comes between the first layer and its activation.
                activation=None if i == last or (i == 0 and context_channels) else activation,
                weight_norm=weight_norm,
                **options,
            )
            for i in range(last + 1)
        )
        start_as(self.layers[-1], Start(data_std=OUTPUT_STD))
        self.condition = Conditioning(len(hidden[0]), 0, context_channels, **options)

    def forward(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        first, *others = self.layers
        h = first(z)
        term = self.condition(context)
        if term is not None:
            h = ACTIVATIONS[self.activation](add_condition(h, term))
        for layer in others:
            h = layer(h)
        return h

    def extra_repr(self) -> str:
        return f"channels={self.channels}, order={self.order}, activation={self.activation}"


class ConvInverseAutoregressiveFlow(nn.Module):
    r"""Inverse autoregressive flow over maps: ``forward``, base noise to sample, computes all numbers at once.

    Each of ``steps`` steps maps :math:`z' = a(s) \odot z + c(s) \odot m`, where m and s of a number come from a masked
    convolutional network (:class:`ConvMADE`) of the numbers of z before it, and of a context map.

    Args:
        channels: number Z of channels.
        hidden_channels: widths of each network's hidden layers.
        kernel_size: of every layer, odd.
        steps: number of steps, with weights of their own.
        context_channels: channels of the context map, 0 for none.
        kind: the affine step, see :func:`fastvae.functional.affine_flow`: ``"gated"`` is the paper's,
            ``"iaf_release"`` that of its released code.
        activation: of the hidden layers.
        reverse: whether every other step takes pixels and channels in reversed order.
        weight_norm: whether weights are normalised, see :class:`ConvMADE`.
        impl: implementation, see :mod:`fastvae.backend`.

    Shape:
        ``z`` ``(N, Z, H, W)`` and ``context`` ``(N, context_channels, H, W)`` or None to ``(N, Z, H, W)`` and
        ``log_det`` ``(N,)``, the logarithm of :math:`|\det \partial out / \partial in|` of the direction called.

    Raises:
        ValueError: sizes or names that do not fit; a context missing, unexpected or of another size.

    Reference:
        *Improving Variational Inference with Inverse Autoregressive Flow* (Kingma, Salimans, Jozefowicz, Chen,
        Sutskever, Welling, 2016).

    Example:
        Free bits of every latent map, from one sample: log q is that of the noise less the log-determinants.

        >>> from fastvae.objectives import free_bits
        >>> flow = ConvInverseAutoregressiveFlow(4, (16, 16), context_channels=6)
        >>> eps, context = torch.randn(8, 4, 5, 5), torch.randn(8, 6, 5, 5)
        >>> z, log_det = flow(eps, context, log_det_map=True)
        >>> log_q, log_p = -0.5 * eps.square() - log_det, -0.5 * z.square()
        >>> loss = free_bits(log_q - log_p, 0.1)
        >>> z.shape, log_det.shape, loss.shape
        (torch.Size([8, 4, 5, 5]), torch.Size([8, 4, 5, 5]), torch.Size([]))
    """

    def __init__(
        self,
        channels: int,
        hidden_channels: Sequence[int] = (64, 64),
        *,
        kernel_size: int = 3,
        steps: int = 1,
        context_channels: int = 0,
        kind: str = "gated",
        activation: str = "elu",
        reverse: bool = True,
        weight_norm: bool = False,
        impl: str = "auto",
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        channels, steps = integers(1, channels=channels, steps=steps)
        if kind not in KINDS:
            raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
        self.channels, self.context_channels, self.kind, self.impl = channels, context_channels, kind, impl
        self.networks = nn.ModuleList(
            ConvMADE(
                channels,
                hidden_channels,
                kernel_size=kernel_size,
                params_per_channel=1 if kind == "location_only" else 2,
                context_channels=context_channels,
                order="reversed" if reverse and step % 2 else "raster",
                activation=activation,
                weight_norm=weight_norm,
                impl=impl,
                device=device,
                dtype=dtype,
            )
            for step in range(steps)
        )
        for network in self.steps():
            shift = SCALE_BIAS.get(kind, 0.0)
            start_as(network.layers[-1], Start(shift=shift, first=channels, data_std=OUTPUT_STD))

    def steps(self) -> list[ConvMADE]:
        return cast("list[ConvMADE]", list(self.networks))

    def forward(self, z: Tensor, context: Tensor | None = None, log_det_map: bool = False) -> tuple[Tensor, Tensor]:
        """Base noise to sample (fast).

        Args:
            z: base noise, ``(N, Z, H, W)``.
            context: ``(N, context_channels, H, W)``, if the flow has one.
            log_det_map: whether to return every number's share of the log-determinant, ``(N, Z, H, W)``, as free bits
                per channel need it; otherwise their sum over an image is returned.

        Returns:
            The sample and log |det| of the map, float32 (float64 for float64 inputs).
        """
        self._check(z)
        total: Tensor | float = 0.0
        for network in self.steps():
            shift, scale_logit = self._shift_and_scale(network, z, context)
            logits = None if scale_logit is None else scale_logit.flatten(1)
            out, log_det = affine_flow(
                z.flatten(1), shift.flatten(1), logits, kind=self.kind, log_det_map=log_det_map, impl=self.impl
            )
            z = _lay_out_as(z, out.view(z.shape))
            total = total + (log_det.view(z.shape) if log_det_map else log_det)
        assert isinstance(total, Tensor)
        return z, total

    @torch.no_grad()
    def inverse(self, z: Tensor, context: Tensor | None = None, log_det_map: bool = False) -> tuple[Tensor, Tensor]:
        """Sample to base noise: the noise and log |det| of the inverse map, ``(N,)``, or by ``log_det_map`` its shares.

        Exact and slow: numbers are solved for one after another, each at the cost of a forward pass of its network,
        hence Z H W of them for each step. No gradients are recorded.
        """
        self._check(z)
        total = z.new_zeros(z.shape if log_det_map else z.shape[:1], dtype=torch.promote_types(z.dtype, torch.float32))
        _, channels, height, width = z.shape
        for network in reversed(self.steps()):
            solved = torch.zeros_like(z)
            numbers = [
                (row, column, channel)
                for row in range(height)
                for column in range(width)
                for channel in range(channels)
            ]
            for row, column, channel in numbers if network.order == "raster" else reversed(numbers):
                at = (slice(None), slice(channel, channel + 1), row, column)
                shift, scale_logit = self._shift_and_scale(network, solved, context)
                logit = None if scale_logit is None else scale_logit[at]
                solved[at], log_det = affine_flow(z[at], shift[at], logit, kind=self.kind, inverse=True, impl=self.impl)
                if log_det_map:
                    total[at] += log_det[:, None]
                else:
                    total += log_det
            z = solved
        return z, total

    def _shift_and_scale(self, network: ConvMADE, z: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor | None]:
        parameters = network(z, context)
        if self.kind == "location_only":
            return parameters, None
        shift, scale_logit = parameters.chunk(2, 1)
        return shift, scale_logit

    def _check(self, z: Tensor) -> None:
        if z.dim() != 4 or z.shape[1] != self.channels:
            raise ValueError(f"z must have shape (N, {self.channels}, H, W), got {tuple(z.shape)}")

    def extra_repr(self) -> str:
        return f"channels={self.channels}, steps={len(self.networks)}, kind={self.kind}"


def _lay_out_as(z: Tensor, out: Tensor) -> Tensor:
    """``out`` channels last where ``z`` is. The strides decide: under torch.func a tensor has no memory format."""
    if z.stride(1) == 1 and not z.is_contiguous():
        return out.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    return out
