"""Masked convolution: only the taps that count are read and multiplied, and no masked weight is ever made."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import backend
from .._integers import integer
from ..backend import Route
from ..conv_structure import ConvStructure, pair
from ..reference import masked_conv2d as reference
from . import _checks
from ._convolution import check_geometry, check_shapes, lowered_degrees, padding_of, structure_of
from ._library import Differentiable, apply, define, empty, extension, needs_grad, with_reference
from ._network import ACTIVATION_IDS, NEED_PRE, activation_of


def _is_channels_last(t: Tensor) -> bool:
    """Whether channels are the fastest dimension and pixels the next; told by the strides, as PyTorch does."""
    _, channel, row, column = t.stride()
    _, channels, height, width = t.shape
    laid = channel == 1 and column >= channels and row >= column * width
    return laid and (channels > 1 or height > 1 or width > 1)


def _sizes(x: Tensor, weight: Tensor, padding: Sequence[int], dilation: Sequence[int]) -> tuple[int, int, int, int]:
    top, left, bottom, right = padding
    height = x.shape[2] + top + bottom - dilation[0] * (weight.shape[2] - 1)
    width = x.shape[3] + left + right - dilation[1] * (weight.shape[3] - 1)
    return x.shape[0], weight.shape[0], height, width


def _laid_out_as(x: Tensor, shape: Sequence[int], fake: bool = False) -> Tensor:
    """An uninitialised (N, C, H, W), channels last where ``x`` has them so, contiguous otherwise."""
    n, channels, height, width = shape
    make = (lambda sizes: x.new_empty(sizes)) if fake else (lambda sizes: empty(x, sizes))
    if _is_channels_last(x):
        return make((n, height, width, channels)).permute(0, 3, 1, 2)
    return make((n, channels, height, width))


def _geometry(
    x: Tensor,
    weight: Tensor,
    taps: Sequence[int],
    origin_tap: int,
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    activation: str,
) -> list[int]:
    """The sizes, for the extension: in the order of csrc/base/types.h."""
    _, outputs, height, width = _sizes(x, weight, padding, dilation)
    return [
        *x.shape, outputs, height, width, *weight.shape[2:], *padding[:2], *dilation, groups,
        ACTIVATION_IDS[activation], origin_tap, *taps,
    ]  # fmt: skip


def _address(t: Tensor | None) -> int:
    return 0 if t is None else t.data_ptr()


def _placed(t: Tensor) -> tuple[int, list[int]]:
    """Address and strides of an image; of nothing, where ``t`` stands for a tensor that is not there."""
    return (t.data_ptr(), list(t.stride())) if t.dim() == 4 else (0, [0, 0, 0, 0])


def _fwd_cpu(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    in_degrees: Tensor | None,
    out_degrees: Tensor | None,
    taps: Sequence[int],
    origin_tap: int,
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    activation: str,
    keep: bool,
) -> tuple[Tensor, Tensor]:
    dtype = x.dtype
    x, w = _checks.compute(x), _checks.compute(weight).contiguous()
    b = None if bias is None else _checks.compute(bias).contiguous()
    shape = _sizes(x, w, padding, dilation)
    y = _laid_out_as(x, shape)
    keep = keep and activation in NEED_PRE
    pre = _laid_out_as(x, shape) if keep else x.new_empty(0)
    extension().masked_conv2d_fwd(
        x.dtype == torch.float64, _geometry(x, w, taps, origin_tap, padding, dilation, groups, activation),
        *_placed(x), w.data_ptr(), _address(b), _address(in_degrees), _address(out_degrees),
        y.data_ptr(), pre.data_ptr() if keep else 0, list(y.stride()),
    )  # fmt: skip
    return _checks.cast(y, dtype), pre


def _fwd_triton(launcher: Any, x: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
    return launcher(x, *args, _is_channels_last(x))


def _fwd_fake(
    x: Tensor,
    weight: Tensor,
    bias: Any,
    in_degrees: Any,
    out_degrees: Any,
    taps: Any,
    origin_tap: Any,
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: Any,
    activation: str,
    keep: bool,
) -> tuple[Tensor, Tensor]:
    y = _laid_out_as(x, _sizes(x, weight, padding, dilation), fake=True)
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    if keep and activation in NEED_PRE:
        return y, torch.empty_like(y, dtype=wide)
    return y, y.new_empty(0, dtype=wide)


def _bwd_cpu(
    d_y: Tensor,
    at: Tensor,
    x: Tensor,
    weight: Tensor,
    in_degrees: Tensor | None,
    out_degrees: Tensor | None,
    taps: Sequence[int],
    origin_tap: int,
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    activation: str,
    needs: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    dtype = x.dtype
    g, at, x, w = (_checks.compute(t) for t in (d_y, at, x, weight))
    w = w.contiguous()
    d_x = _laid_out_as(x, x.shape) if needs[0] else x.new_empty(0)
    d_weight = empty(x, w.shape) if needs[1] else x.new_empty(0)
    d_bias = x.new_empty(w.shape[0] if needs[2] else 0)
    extension().masked_conv2d_bwd(
        x.dtype == torch.float64, _geometry(x, w, taps, origin_tap, padding, dilation, groups, activation),
        *_placed(g), *_placed(at), *_placed(x), w.data_ptr(), _address(in_degrees), _address(out_degrees),
        *_placed(d_x), d_weight.data_ptr() if needs[1] else 0, d_bias.data_ptr() if needs[2] else 0,
    )  # fmt: skip
    return _checks.cast(d_x, dtype), _checks.cast(d_weight, dtype), _checks.cast(d_bias, dtype)


def _bwd_triton(launcher: Any, *args: Any) -> tuple[Tensor, ...]:
    x = args[2]
    return tuple(x.new_empty(0) if t is None else t for t in launcher(*args, _is_channels_last(x)))


def _bwd_fake(
    d_y: Any,
    at: Any,
    x: Tensor,
    weight: Tensor,
    in_degrees: Any,
    out_degrees: Any,
    taps: Any,
    origin_tap: Any,
    padding: Any,
    dilation: Any,
    groups: Any,
    activation: Any,
    needs: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    d_x = _laid_out_as(x, x.shape, fake=True) if needs[0] else x.new_empty(0)
    d_weight = x.new_empty(weight.shape if needs[1] else 0)
    return d_x, d_weight, x.new_empty(weight.shape[0] if needs[2] else 0)


_ACTIVATIONS: Any = {"activation": ACTIVATION_IDS}

FWD = define(
    "masked_conv2d_fwd(Tensor x, Tensor weight, Tensor? bias, Tensor? in_degrees, Tensor? out_degrees, int[] taps,"
    " int origin_tap, int[] padding, int[] dilation, int groups, str activation, bool keep)"
    " -> (Tensor y, Tensor pre)",
    tensors="x[N,C,H,W] weight[O,I,R,Q] bias?[O] in_degrees?[C]ci out_degrees?[O]ci",
    choices=_ACTIVATIONS, more=check_geometry,
    module="masked_conv2d", cpu=_fwd_cpu, fake=_fwd_fake, adapt=_fwd_triton,
)  # fmt: skip
BWD = define(
    "masked_conv2d_bwd(Tensor d_y, Tensor at, Tensor x, Tensor weight, Tensor? in_degrees, Tensor? out_degrees,"
    " int[] taps, int origin_tap, int[] padding, int[] dilation, int groups, str activation, bool[] needs)"
    " -> (Tensor d_x, Tensor d_weight, Tensor d_bias)",
    tensors="x[N,C,H,W] weight[O,I,R,Q] d_y[N,O,h,w] in_degrees?[C]ci out_degrees?[O]ci",
    choices=_ACTIVATIONS, more=check_geometry,
    module="masked_conv2d_gradients", cpu=_bwd_cpu, fake=_bwd_fake, adapt=_bwd_triton,
)  # fmt: skip


def _conv_again(ctx: Any) -> Differentiable:
    how = ctx.how
    _, x, weight, bias, in_degrees, out_degrees = ctx.saved_tensors

    def conv(x: Tensor, weight: Tensor, bias: Tensor | None, *_: None) -> Tensor:
        return reference.masked_conv2d(x, weight, bias, in_degrees, out_degrees, *how)

    return conv, (x, weight, bias, *(None,) * 9)


class _MaskedConv2d(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        in_degrees: Tensor | None,
        out_degrees: Tensor | None,
        taps: Sequence[int],
        origin_tap: int,
        padding: Sequence[int],
        dilation: Sequence[int],
        groups: int,
        activation: str,
        route: Route,
    ) -> Tensor:
        how = taps, origin_tap, padding, dilation, groups, activation
        y, pre = FWD.on(route)(x, weight, bias, in_degrees, out_degrees, *how, True)
        # Without an activation nothing is kept of the output.
        at = pre if activation in NEED_PRE or activation == "identity" else y
        ctx.save_for_backward(at, x, weight, bias, in_degrees, out_degrees)
        ctx.how, ctx.route = how, route
        return y

    @staticmethod
    @with_reference(_conv_again)
    def backward(ctx: Any, route: Route, d_y: Tensor) -> Any:
        at, x, weight, _, in_degrees, out_degrees = ctx.saved_tensors
        needs = list(ctx.needs_input_grad[:3])
        gradients = BWD.on(route)(d_y, at, x, weight, in_degrees, out_degrees, *ctx.how, needs)
        return *(g if needed else None for g, needed in zip(gradients, needs, strict=True)), *(None,) * 9


def masked_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    mask_type: str,
    padding: int | Sequence[int] | str = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    num_colors: int = 1,
    color_layout: str = "contiguous",
    in_degrees: Sequence[int] | Tensor | None = None,
    out_degrees: Sequence[int] | Tensor | None = None,
    origin: tuple[int, int] | None = None,
    order: str = "raster",
    activation: str | None = None,
    impl: str = "auto",
) -> Tensor:
    r"""Convolution over the pixels before one's own, in raster order, as PixelCNN has it.

    .. math::
        y = \operatorname{act}((W \circ M) * x + b)

    M keeps the taps above the origin's row and those left of the origin. At the origin itself type ``"A"`` keeps the
    weights from an input to an output channel of a later colour (R, G, B), type ``"B"`` to one of the same colour as
    well; with one colour A keeps nothing there, B everything. ``"vertical_A"`` keeps the rows above, whole, and
    ``"vertical_B"`` the origin's row as well; for them colours and degrees do not count.

    Args:
        x: ``(N, I, H, W)`` or ``(I, H, W)``.
        weight: W, ``(O, I / groups, kh, kw)``. What stands in masked weights is not read.
        bias: b, ``(O,)``, or None.
        mask_type: ``"A"``, ``"B"``, ``"vertical_A"`` or ``"vertical_B"``.
        padding: zeros around the image, one number or (rows, columns); ``"same"`` puts the origin over the output's own
            pixel and keeps the image's size.
        dilation: distance between taps, one number or (rows, columns).
        groups: blocks that input and output channels are divided into, as in :func:`torch.nn.functional.conv2d`.
        num_colors: colours that channels are divided into.
        color_layout: ``"contiguous"``: the channels of a colour are neighbours; ``"interleaved"``: the colour is the
            channel modulo ``num_colors``.
        in_degrees: integer degree of each input channel, ``(I,)``, in place of colours.
        out_degrees: integer degree of each output channel, ``(O,)``: at the origin a weight counts where the degree of
            its input is below (A), or at most (B), that of its output.
        origin: (row, column) of the tap over the output's own pixel; the centre by default, of odd kernels.
        order: ``"raster"``, or ``"reversed"`` for its mirror image: rows below, and what is right of the origin.
        activation: ``"relu"``, ``"elu"``, ``"tanh"``, ``"softplus"``, ``"gelu"``, ``"silu"``, ``"identity"`` or None.
        impl: ``"auto"``, ``"triton"``, ``"cpp"`` or ``"reference"``, see :mod:`fastvae.backend`.

    Returns:
        y, ``(N, O, H', W')`` or ``(O, H', W')``, in the dtype of ``x``; channels last where ``x`` is.

    Raises:
        TypeError: an argument is no tensor of the right kind, degrees are no integers, or dtypes differ outside
            autocast.
        ValueError: shapes do not fit, the image is smaller than the dilated kernel, devices differ, an even kernel has
            no origin, colours or groups do not divide the channels, or a name is unknown.
        RuntimeError: ``impl`` cannot run here.

    Note:
        Sums are taken in float32 (float64 for float64 inputs) in the kernels; the reference computes as
        :func:`torch.nn.functional.conv2d` does. ``x`` may have any strides and is not copied. Gradients of masked
        weights are exactly zero. Deterministic. Differentiable any number of times, by the reference from the second
        time on.

        A stack of layers of types A and B never sees some of the pixels above and to the right: its blind spot. A
        vertical stack beside a horizontal one has none.

    Reference:
        *Pixel Recurrent Neural Networks* (van den Oord, Kalchbrenner, Kavukcuoglu, 2016); *Conditional Image
        Generation with PixelCNN Decoders* (van den Oord et al., 2016).

    Example:
        >>> x, weight = torch.ones(1, 1, 3, 3), torch.ones(1, 1, 3, 3)
        >>> masked_conv2d(x, weight, mask_type="A", padding=1)[0, 0].tolist()
        [[0.0, 1.0, 1.0], [2.0, 4.0, 3.0], [2.0, 4.0, 3.0]]
    """
    if not isinstance(weight, Tensor) or weight.dim() != 4:
        shape = tuple(weight.shape) if isinstance(weight, Tensor) else type(weight).__name__
        error = ValueError if isinstance(weight, Tensor) else TypeError
        raise error(f"weight must be a tensor of shape (O, I / groups, kh, kw), got {shape}")
    structure = structure_of(
        (weight.shape[2], weight.shape[3]), mask_type, origin, order, num_colors, color_layout, in_degrees, out_degrees
    )
    groups = integer("groups", groups)
    out_channels, in_channels = weight.shape[0], weight.shape[1] * groups
    ins, outs = lowered_degrees(
        structure, in_channels, out_channels, num_colors, color_layout, in_degrees, out_degrees, weight.device
    )
    return masked_conv2d_of(
        x, weight, bias, structure, ins, outs,
        padding=padding, dilation=dilation, groups=groups, activation=activation, impl=impl,
    )  # fmt: skip


def masked_conv2d_of(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    structure: ConvStructure,
    in_degrees: Tensor | None,
    out_degrees: Tensor | None,
    *,
    padding: int | Sequence[int] | str = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    activation: str | None = None,
    impl: str = "auto",
) -> Tensor:
    """As :func:`masked_conv2d`, for a structure made before and the degrees of :func:`lowered_degrees`."""
    activation = activation_of(activation)
    route, (x, weight, bias, in_degrees, out_degrees) = backend.route(
        impl, x, weight, bias, in_degrees, out_degrees,
        names=("x", "weight", "bias", "in_degrees", "out_degrees"), floats=3, required=2,
    )  # fmt: skip
    x, weight, bias = _checks.for_products(x, weight, bias=bias, alike=route.alike)
    step = pair("dilation", dilation, 1)
    zeros = padding_of(padding, structure, step)
    check_shapes(x, weight, bias, zeros, step, groups)
    batched = x if x.dim() == 4 else x.unsqueeze(0)
    how = structure.taps, structure.origin_tap, zeros, step, groups, activation
    if route.impl == "reference":
        y = reference.masked_conv2d(batched, weight, bias, in_degrees, out_degrees, *how)
    else:
        args = (batched, weight, bias, in_degrees, out_degrees, *how)
        tensors = (batched, weight) if bias is None else (batched, weight, bias)
        y = apply(_MaskedConv2d, *args, route) if needs_grad(*tensors) else FWD.on(route)(*args, False)[0]
    return y if x.dim() == 4 else y.squeeze(0)
