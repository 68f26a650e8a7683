"""Masked convolution: only the taps that count are read and multiplied, and no masked weight is ever made."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import backend
from ..backend import Route
from ..precision import compute_dtype
from ..reference import masked_conv2d as reference
from ..structure.convolution import ConvStructure, pair
from ..structure.integers import integer
from . import _checks, _layout
from ._convolution import ConvCall, check_geometry, check_shapes, lower_degrees, padding_of, structure_of
from ._layers import ACTIVATION_IDS, NEED_PRE, activation_of
from ._library import Differentiable, apply, define, extension, needs_grad, with_reference


def _is_channels_last(t: Tensor) -> bool:
    """Whether channels are the fastest dimension and pixels the next, by the strides, as PyTorch decides it."""
    _, channel, row, column = t.stride()
    _, channels, height, width = t.shape
    laid = channel == 1 and column >= channels and row >= column * width
    return laid and (channels > 1 or height > 1 or width > 1)


def _empty_as(x: Tensor, shape: Sequence[int]) -> Tensor:
    """An uninitialised (N, C, H, W), channels last where ``x`` has them so, contiguous otherwise."""
    n, channels, height, width = shape
    if _is_channels_last(x):
        return x.new_empty((n, height, width, channels)).permute(0, 3, 1, 2)
    return x.new_empty((n, channels, height, width))


def _fwd_cpu(
    x: Tensor, weight: Tensor, bias: Tensor | None, in_degrees: Tensor | None, out_degrees: Tensor | None, *rest: Any
) -> tuple[Tensor, Tensor | None]:
    *geometry, activation, keep = rest
    tensors = _layout.all_to_compute_dtype(
        (x, weight.contiguous(), None if bias is None else bias.contiguous()), x.dtype
    )
    y, pre = extension().masked_conv2d_fwd(
        *tensors, in_degrees, out_degrees, *geometry, ACTIVATION_IDS[activation], keep and activation in NEED_PRE
    )
    return _layout.cast(y, x.dtype), pre


def _fwd_triton(launcher: Any, x: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
    return launcher(x, *args, _is_channels_last(x))


def _fwd_fake(x: Tensor, weight: Tensor, _bias: Any, _ins: Any, _outs: Any, *rest: Any) -> tuple[Tensor, Tensor]:
    *how, keep = rest
    call = ConvCall(*how)
    y = _empty_as(x, call.output_shape(x, weight))
    wide = compute_dtype(x.dtype)
    if keep and call.activation in NEED_PRE:
        return y, torch.empty_like(y, dtype=wide)
    return y, x.new_empty(0)


def _bwd_cpu(
    d_y: Tensor,
    at: Tensor | None,
    x: Tensor,
    weight: Tensor,
    in_degrees: Tensor | None,
    out_degrees: Tensor | None,
    *rest: Any,
) -> tuple[Tensor | None, ...]:
    *geometry, activation, needs = rest
    # `at` may be of another dtype, the pre-activation's.
    tensors = _layout.all_to_compute_dtype((d_y, at, x, weight.contiguous()), x.dtype)
    gradients = extension().masked_conv2d_bwd(
        *tensors, in_degrees, out_degrees, *geometry, ACTIVATION_IDS[activation], needs
    )
    return tuple([None if t is None else _layout.cast(t, x.dtype) for t in gradients])


def _bwd_triton(launcher: Any, *args: Any) -> tuple[Tensor | None, ...]:
    found: tuple[Tensor | None, ...] = launcher(*args, _is_channels_last(args[2]))
    return found


def _bwd_fake(_d_y: Any, _at: Any, x: Tensor, weight: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    needs = rest[-1]
    d_x = _empty_as(x, x.shape) if needs[0] else x.new_empty(0)
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
    "masked_conv2d_bwd(Tensor d_y, Tensor? at, Tensor x, Tensor weight, Tensor? in_degrees, Tensor? out_degrees,"
    " int[] taps, int origin_tap, int[] padding, int[] dilation, int groups, str activation, bool[] needs)"
    " -> (Tensor d_x, Tensor d_weight, Tensor d_bias)",
    tensors="x[N,C,H,W] weight[O,I,R,Q] d_y[N,O,h,w] in_degrees?[C]ci out_degrees?[O]ci",
    choices=_ACTIVATIONS, more=check_geometry,
    module="masked_conv2d_gradients", cpu=_bwd_cpu, fake=_bwd_fake, adapt=_bwd_triton,
)  # fmt: skip


def _rebuild_conv(ctx: Any) -> Differentiable:
    call = ctx.call
    _, x, weight, bias, in_degrees, out_degrees = ctx.saved_tensors

    def conv(x: Tensor, weight: Tensor, bias: Tensor | None, *_: None) -> Tensor:
        return reference.masked_conv2d(x, weight, bias, in_degrees, out_degrees, *call)

    return conv, (x, weight, bias, *(None,) * 4)


class _MaskedConv2d(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        in_degrees: Tensor | None,
        out_degrees: Tensor | None,
        call: ConvCall,
        route: Route,
    ) -> Tensor:
        y, pre = FWD.on(route)(x, weight, bias, in_degrees, out_degrees, *call, True)
        # Without an activation nothing is kept of the output.
        at = pre if call.activation in NEED_PRE or call.activation == "identity" else y
        ctx.save_for_backward(at, x, weight, bias, in_degrees, out_degrees)
        ctx.call, ctx.route = call, route
        return y

    @staticmethod
    @with_reference(_rebuild_conv)
    def backward(ctx: Any, route: Route, d_y: Tensor) -> Any:
        at, x, weight, _, in_degrees, out_degrees = ctx.saved_tensors
        needs = list(ctx.needs_input_grad[:3])
        gradients = BWD.on(route)(d_y, at, x, weight, in_degrees, out_degrees, *ctx.call, needs)
        return *(g if needed else None for g, needed in zip(gradients, needs, strict=True)), *(None,) * 4


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
        weight: W, ``(O, I / groups, kh, kw)``. Masked weights are not read.
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

        An input that is infinite or NaN meets zeros of the mask, as 0 · inf: in the reference at every tap that the
        mask cuts; in the kernels at the origin only, where it may reach all channels of its own pixel, and no other
        pixel that does not count it.

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
    ins, outs = lower_degrees(
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
    """As :func:`masked_conv2d`, for a structure made before and the degrees of :func:`lower_degrees`."""
    activation = activation_of(activation)
    route, (x, weight, bias, in_degrees, out_degrees) = backend.route(
        impl, x, weight, bias, in_degrees, out_degrees,
        names=("x", "weight", "bias", "in_degrees", "out_degrees"), floats=3, required=2,
    )  # fmt: skip
    x, weight, bias = _checks.to_kind_of_products(x, weight, bias=bias, alike=route.alike)
    step = pair("dilation", dilation, 1)
    zeros = padding_of(padding, structure, step)
    check_shapes(x, weight, bias, zeros, step, groups)
    batched = x if x.dim() == 4 else x.unsqueeze(0)
    call = ConvCall(structure.taps, structure.origin_tap, zeros, step, groups, activation)
    if route.impl == "reference":
        y = reference.masked_conv2d(batched, weight, bias, in_degrees, out_degrees, *call)
    else:
        args = (batched, weight, bias, in_degrees, out_degrees)
        tensors = (batched, weight) if bias is None else (batched, weight, bias)
        if needs_grad(*tensors):
            y = apply(_MaskedConv2d, *args, call, route)
        else:
            y = FWD.on(route)(*args, *call, False)[0]
    return y if x.dim() == 4 else y.squeeze(0)
