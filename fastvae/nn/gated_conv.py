"""Gated masked convolutions in two streams, which have no blind spot."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..ops.gated_activation import gated_activation
from ..ops.masked_conv2d import masked_conv2d
from ..reference.gated_activation import KINDS
from ..structure.convolution import colors_of
from ..structure.integers import integer, integers
from ._hooks import has_hooks
from .masked_conv2d import MaskedConv2d

__all__ = ["GatedActivation", "GatedMaskedConv2d"]


class GatedActivation(nn.Module):
    r"""The gate :math:`\tanh(a) \odot \sigma(b)`, or :math:`a \odot \sigma(b)`, of the halves of x + condition.

    Args:
        kind: ``"tanh"`` or ``"linear"``.
        impl: implementation, see :mod:`fastvae.backend`.

    Shape:
        ``x`` ``(N, 2F, H, W)`` and ``condition`` ``(N, 2F)``, ``(N, 2F, 1, 1)``, ``(N, 2F, H, W)`` (or 1 for N) or None
        to ``(N, F, H, W)``.

    Raises:
        ValueError: an unknown kind, or shapes that do not fit.

    Example:
        >>> GatedActivation()(torch.randn(2, 6, 4, 4), torch.randn(2, 6)).shape
        torch.Size([2, 3, 4, 4])
    """

    # The kind of layer that a sampler sees, see fastvae/sampling/layers.py.
    sampled_as: ClassVar[str] = "gate"

    def __init__(self, kind: str = "tanh", *, impl: str = "auto") -> None:
        super().__init__()
        if kind not in KINDS:
            raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
        self.kind, self.impl = kind, impl

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        return gated_activation(x, condition, kind=self.kind, impl=self.impl)

    def extra_repr(self) -> str:
        return f"kind={self.kind}"


@torch.fx.wrap  # traced networks keep this call, and check shapes when numbers come
def check_context(context: Tensor, features: int, channels: int) -> Tensor:
    """``context``, after a check that it is a vector of ``features`` or a map of ``channels``."""
    if not isinstance(context, Tensor) or not context.is_floating_point():
        kind = context.dtype if isinstance(context, Tensor) else type(context).__name__
        raise TypeError(f"context must be a floating-point tensor (of labels, their nn.Embedding), got {kind}")
    if features and (context.dim() != 2 or context.shape[1] != features):
        raise ValueError(f"context must have shape (N, {features}), got {tuple(context.shape)}")
    if channels and (context.dim() != 4 or context.shape[1] != channels):
        raise ValueError(f"context must have shape (N, {channels}, H, W), got {tuple(context.shape)}")
    return context


@torch.fx.wrap
def check_condition(condition: Tensor, x: Tensor) -> None:
    """Raises unless ``condition``, made of a context, can be added to the maps ``x``."""
    n, _, height, width = x.shape
    # Size by size: a compiler knows no "in" of sizes that it keeps open.
    images, _, rows, columns = condition.shape
    fits = (rows == height and columns == width) or (rows == 1 and columns == 1)
    if not ((images == n or images == 1) and fits):
        raise ValueError(
            f"context must belong to {n} images, and a map must be {height} x {width}, for x {tuple(x.shape)}; what "
            f"was made of it is {tuple(condition.shape)}"
        )


def add_condition(x: Tensor, condition: Tensor | None) -> Tensor:
    """``x`` plus the term that :class:`Conditioning` makes; ``x`` itself without one."""
    if condition is None:
        return x
    check_condition(condition, x)
    return x + condition


def is_plain(weight: Any) -> bool:
    # A weight that torch.fx records has no dispatch at all.
    return getattr(type(weight), "__torch_dispatch__", None) in (None, Tensor.__torch_dispatch__)


@torch.fx.wrap
def project(context: Tensor, weight: Tensor, impl: str) -> Tensor:
    """``(N, I)`` times the transpose of ``(O, I)``, summed in one order whatever N is."""
    if context.shape[0] == 0:
        return context @ weight.t()
    # A matrix product may sum in another order for another number of rows. A convolution's order is the same for every
    # number of pixels, here one for each image.
    pixels = context.t()[None, :, None]
    return masked_conv2d(pixels, weight[:, :, None, None], mask_type="B", impl=impl)[0, :, 0].t()


def check_context_sizes(context_features: int, context_channels: int) -> tuple[int, int]:
    """Both sizes as Python integers; at least one must be 0."""
    features, channels = integers(0, context_features=context_features, context_channels=context_channels)
    if context_features and context_channels:
        raise ValueError(
            "context_features and context_channels exclude each other: the context is a vector or a map, got "
            f"{context_features} and {context_channels}"
        )
    return features, channels


def check_odd(name: str, size: int) -> int:
    """``size`` as a Python integer that is odd and positive."""
    number = integer(name, size)
    if number < 1 or number % 2 == 0:
        raise ValueError(f"{name} must be an odd integer, got {size!r}")
    return number


class Conditioning(nn.Module):
    """The term of a context in a map of F = ``out_channels``: ``(N, F, 1, 1)`` or ``(N, F, H, W)``."""

    def __init__(
        self,
        out_channels: int,
        context_features: int = 0,
        context_channels: int = 0,
        *,
        impl: str = "auto",
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        context_features, context_channels = check_context_sizes(context_features, context_channels)
        self.context_features, self.context_channels, self.impl = context_features, context_channels, impl
        self.layer: nn.Linear | MaskedConv2d | None = None
        options = {"bias": False, "device": device, "dtype": dtype}
        if context_features:
            self.layer = nn.Linear(context_features, out_channels, **options)
        elif context_channels:
            self.layer = MaskedConv2d(context_channels, out_channels, 1, mask_type="B", impl=impl, **options)

    def forward(self, context: Tensor | None) -> Tensor | None:
        if self.layer is None:
            if context is not None:
                raise ValueError(
                    "context must be None: the network was made with context_features=0 and context_channels=0"
                )
            return None
        if context is None:
            wanted = f"{self.context_features}" if self.context_features else f"{self.context_channels}, H, W"
            raise ValueError(f"context must be given, shape (N, {wanted})")
        context = check_context(context, self.context_features, self.context_channels)
        if not self.context_features:
            condition: Tensor = self.layer(context)
            return condition
        if (
            type(self.layer).forward is not nn.Linear.forward
            or has_hooks(self.layer)
            or not is_plain(self.layer.weight)
        ):
            # The layer's own call does more than multiply by its weight, or its weight, such as a quantised one, is no
            # operand of a convolution.
            return self.layer(context)[:, :, None, None]
        return project(context, self.layer.weight, self.impl)[:, :, None, None]


class GatedMaskedConv2d(nn.Module):
    r"""Layer of a gated PixelCNN: a vertical stream, which sees the rows above, and a horizontal one, which sees both.

    .. math::
        u = W_v * v, \quad v' = \operatorname{gate}(u + V_v c), \qquad
        h' = W_o \operatorname{gate}(W_h * h + W_u u + V_h c) + h

    with :math:`\operatorname{gate}(a, b) = \tanh(a) \odot \sigma(b)` of the channels' halves. W_v is k x k: in the
    first layer it sees the rows above, in others also its own row, since the numbers there know the rows above. W_h is
    1 x k and sees the pixels to the left. Together they see every earlier pixel within reach, also the wedge to the
    upper right that stacked masked convolutions miss.

    Args:
        in_channels: channels of both inputs.
        out_channels: channels F of both outputs.
        kernel_size: k, odd.
        first: whether inputs are the image itself, so that a pixel's own value must not be seen; such a layer has no
            residual connection.
        num_colors: colours that a pixel's channels are divided into, contiguous groups. In the first layer each sees
            the groups before it, in others its own as well.
        context_features: width of a context vector c, 0 for none.
        context_channels: channels of a context map c, 0 for none; not together with ``context_features``.
        residual: whether the horizontal input is added to the horizontal output.
        last: whether the vertical stream ends here; its map before the gate, u, then is returned in its place.
        weight_norm: whether weights are normalised, with learned gains; see :func:`initialize_from_data`.
        impl: implementation, see :mod:`fastvae.backend`.

    Shape:
        ``vertical`` and ``horizontal`` ``(N, in_channels, H, W)`` and ``context`` ``(N, context_features)``,
        ``(N, context_channels, H, W)`` or None to ``(N, F, H, W)`` twice; with ``last`` the first is
        ``(N, 2F, H, W)``.

    Raises:
        ValueError: an even kernel; colours that do not divide the channels; a residual connection between different
            numbers of channels; a context missing, unexpected or of another size.

    Note:
        The 1 x 1 convolutions are :class:`MaskedConv2d` too: a sampler that computes pixel by pixel gets the same bits.

    Reference:
        *Conditional Image Generation with PixelCNN Decoders* (van den Oord, Kalchbrenner, Vinyals, Espeholt, Graves,
        Kavukcuoglu, 2016).

    Example:
        >>> first, second = GatedMaskedConv2d(1, 8, 7, first=True), GatedMaskedConv2d(8, 8)
        >>> x = torch.randn(2, 1, 9, 9)
        >>> vertical, horizontal = second(*first(x, x))
        >>> vertical.shape, horizontal.shape
        (torch.Size([2, 8, 9, 9]), torch.Size([2, 8, 9, 9]))
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        *,
        first: bool = False,
        num_colors: int = 1,
        context_features: int = 0,
        context_channels: int = 0,
        residual: bool = True,
        last: bool = False,
        weight_norm: bool = False,
        impl: str = "auto",
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        kernel_size = check_odd("kernel_size", kernel_size)
        in_channels, out_channels = integers(1, in_channels=in_channels, out_channels=out_channels)
        residual = residual and not first
        if residual and in_channels != out_channels:
            raise ValueError(f"out_channels must be in_channels, {in_channels}, for residual=True, got {out_channels}")
        inputs, outputs = colors(in_channels, num_colors, "in_channels"), colors(out_channels, num_colors)
        shared = {"padding": "same", "weight_norm": weight_norm, "impl": impl, "device": device, "dtype": dtype}
        both = 2 * out_channels
        self.residual, self.last = residual, last
        self.vertical = MaskedConv2d(
            in_channels, both, kernel_size, mask_type="vertical_A" if first else "vertical_B", **shared
        )
        # Both halves of a gate belong to one colour. The vertical stream has none: it knows whole rows.
        self.horizontal = MaskedConv2d(
            in_channels,
            both,
            (1, kernel_size),
            mask_type="A" if first else "B",
            **degrees(inputs, outputs, 2),
            **shared,
        )
        self.vertical_to_horizontal = MaskedConv2d(both, both, 1, mask_type="B", bias=False, **shared)
        self.output = MaskedConv2d(out_channels, out_channels, 1, mask_type="B", **degrees(outputs, outputs), **shared)
        self.gate = GatedActivation(impl=impl)
        sizes, options = (both, context_features, context_channels), {"impl": impl, "device": device, "dtype": dtype}
        self.vertical_condition = None if last else Conditioning(*sizes, **options)
        self.horizontal_condition = Conditioning(*sizes, **options)

    def forward(self, vertical: Tensor, horizontal: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        u = self.vertical(vertical)
        h = self.horizontal(horizontal) + self.vertical_to_horizontal(u)
        h = self.output(self._apply_gate(h, self.horizontal_condition(context)))
        if self.residual:
            h = h + horizontal
        return u if self.vertical_condition is None else self._apply_gate(u, self.vertical_condition(context)), h

    def _apply_gate(self, x: Tensor, condition: Tensor | None) -> Tensor:
        if condition is not None:
            check_condition(condition, x)
        gated: Tensor = self.gate(x, condition)
        return gated

    def extra_repr(self) -> str:
        return f"residual={self.residual}, last={self.last}"


def colors(channels: int, num_colors: int, name: str = "out_channels") -> tuple[int, ...] | None:
    """The colours of contiguous groups of channels; None for one colour, which needs no rule."""
    return colors_of(name, channels, num_colors, "contiguous") if num_colors != 1 else None


def degrees(
    inputs: Sequence[int] | None, outputs: Sequence[int] | None, times: int = 1, *, in_times: int = 1
) -> dict[str, Any]:
    """A masked convolution's arguments for channels of these colours, ``times`` over for outputs."""
    if inputs is None or outputs is None:
        return {}
    return {"in_degrees": tuple(inputs) * in_times, "out_degrees": tuple(outputs) * times}
