"""Masked linear layer: the mask is a staircase of degrees, never stored, and what it cuts off is skipped."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import backend
from ..backend import Route
from ..precision import compute_dtype
from ..reference import masked_linear as reference
from . import _checks, _layout
from ._contracts import Call
from ._layers import ACTIVATION_IDS, NEED_PRE, activation_of, check_degrees
from ._library import Differentiable, apply, define, extension, needs_grad, needs_of_points, with_reference


def _fwd_cpu(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    weight_scale: Tensor | None,
    in_degrees: Tensor,
    out_degrees: Tensor,
    activation: str,
    keep: bool,
) -> tuple[Tensor, Tensor | None]:
    tensors = _layout.all_to_compute_dtype((x, weight, bias, weight_scale), x.dtype)
    y, pre = extension().masked_linear_fwd(
        *tensors, in_degrees, out_degrees, ACTIVATION_IDS[activation], keep and activation in NEED_PRE
    )
    return _layout.cast(y, x.dtype), pre


def _fwd_fake(
    x: Tensor,
    weight: Tensor,
    bias: Any,
    weight_scale: Any,
    in_degrees: Any,
    out_degrees: Any,
    activation: str,
    keep: bool,
) -> tuple[Tensor, Tensor]:
    y = x.new_empty((x.shape[0], weight.shape[0]))
    return y, y.new_empty(y.shape, dtype=compute_dtype(x.dtype)) if keep and activation in NEED_PRE else x.new_empty(0)


def _bwd_cpu(
    d_y: Tensor,
    at: Tensor,
    x: Tensor,
    weight: Tensor,
    weight_scale: Tensor | None,
    in_degrees: Tensor,
    out_degrees: Tensor,
    activation: str,
    has_bias: bool,
    needs_x: bool = True,
) -> tuple[Tensor | None, ...]:
    tensors = _layout.all_to_compute_dtype((d_y, at, x, weight, weight_scale), x.dtype)
    gradients = extension().masked_linear_bwd(
        *tensors, in_degrees, out_degrees, ACTIVATION_IDS[activation], has_bias, needs_x
    )
    return tuple([None if t is None else _layout.cast(t, x.dtype) for t in gradients])


def _bwd_fake(
    d_y: Any,
    at: Any,
    x: Tensor,
    weight: Tensor,
    weight_scale: Tensor | None,
    in_degrees: Any,
    out_degrees: Any,
    activation: Any,
    has_bias: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    out = weight.shape[0]
    d_bias, d_scale = (x.new_empty(out if there else 0) for there in (has_bias, weight_scale is not None))
    return x.new_empty(x.shape), x.new_empty(weight.shape), d_bias, d_scale


def _norm_cpu(weight: Tensor, in_degrees: Tensor, out_degrees: Tensor) -> Tensor:
    norm = extension().masked_norm_fwd(_layout.to_compute_dtype(weight), in_degrees, out_degrees)
    return _layout.cast(norm, weight.dtype)


def _norm_bwd_cpu(d_norm: Tensor, norm: Tensor, weight: Tensor, in_degrees: Tensor, out_degrees: Tensor) -> Tensor:
    tensors = _layout.all_to_compute_dtype((d_norm, norm, weight), weight.dtype)
    return _layout.cast(extension().masked_norm_bwd(*tensors, in_degrees, out_degrees), weight.dtype)


_ACTIVATIONS: Any = {"activation": ACTIVATION_IDS}


def _check_gradient(call: Call) -> None:
    """Kept is the pre-activation, in the dtype of the kernels, or the output."""
    kept = compute_dtype(call["x"].dtype) if call["activation"] in NEED_PRE else call["x"].dtype
    call.require(call["at"].dtype == kept, "at", f"be of {kept}", call["at"].dtype)


FWD = define(
    "masked_linear_fwd(Tensor x, Tensor weight, Tensor? bias, Tensor? weight_scale, Tensor in_degrees,"
    " Tensor out_degrees, str activation, bool keep) -> (Tensor y, Tensor pre)",
    tensors="x[N,I]r weight[O,I]r bias?[O]c weight_scale?[O]c in_degrees[I]ci out_degrees[O]ci",
    choices=_ACTIVATIONS,
    module="masked_linear", cpu=_fwd_cpu, fake=_fwd_fake,
)  # fmt: skip
BWD = define(
    "masked_linear_bwd(Tensor d_y, Tensor at, Tensor x, Tensor weight, Tensor? weight_scale, Tensor in_degrees,"
    " Tensor out_degrees, str activation, bool has_bias)"
    " -> (Tensor d_x, Tensor d_weight, Tensor d_bias, Tensor d_weight_scale)",
    tensors="x[N,I]r weight[O,I]r weight_scale?[O]c in_degrees[I]ci out_degrees[O]ci d_y[N,O]c at[N,O]ca",
    choices=_ACTIVATIONS, more=_check_gradient,
    module="masked_linear", cpu=_bwd_cpu, fake=_bwd_fake,
)  # fmt: skip
NORM = define(
    "masked_norm_fwd(Tensor weight, Tensor in_degrees, Tensor out_degrees) -> Tensor norm",
    tensors="weight[O,I]r in_degrees[I]ci out_degrees[O]ci",
    module="masked_linear", cpu=_norm_cpu, fake=lambda weight, i, o: weight.new_empty(weight.shape[0]),
)  # fmt: skip
NORM_BWD = define(
    "masked_norm_bwd(Tensor d_norm, Tensor norm, Tensor weight, Tensor in_degrees, Tensor out_degrees)"
    " -> Tensor d_weight",
    tensors="weight[O,I]r in_degrees[I]ci out_degrees[O]ci d_norm[O]c norm[O]c",
    module="masked_linear", cpu=_norm_bwd_cpu, fake=lambda g, norm, weight, i, o: weight.new_empty(weight.shape),
)  # fmt: skip


def _rebuild_layer(ctx: Any) -> Differentiable:
    activation = ctx.activation
    _, x, weight, weight_scale, in_degrees, out_degrees, bias = ctx.saved_tensors

    def layer(x: Tensor, weight: Tensor, bias: Tensor | None, weight_scale: Tensor | None, *_: None) -> Tensor:
        return reference.masked_linear(x, weight, bias, in_degrees, out_degrees, activation, weight_scale)

    return layer, (x, weight, bias, weight_scale, *(None,) * 4)


class _MaskedLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        weight_scale: Tensor | None,
        in_degrees: Tensor,
        out_degrees: Tensor,
        activation: str,
        route: Route,
    ) -> Tensor:
        y, pre = FWD.on(route)(x, weight, bias, weight_scale, in_degrees, out_degrees, activation, True)
        at = pre if activation in NEED_PRE else y
        ctx.save_for_backward(at, x, weight, weight_scale, in_degrees, out_degrees, bias)
        ctx.activation, ctx.route = activation, route
        return y

    @staticmethod
    @with_reference(_rebuild_layer)
    def backward(ctx: Any, route: Route, d_y: Tensor) -> Any:
        *saved, bias = ctx.saved_tensors
        op, needs = BWD.on(route), ctx.needs_input_grad
        d_x, d_weight, d_bias, d_scale = op(
            d_y.contiguous(), *saved, ctx.activation, bias is not None, *needs_of_points(route, needs[0])
        )
        return (
            d_x if needs[0] else None,
            d_weight if needs[1] else None,
            d_bias if needs[2] else None,
            d_scale if needs[3] else None,
            *(None,) * 4,
        )


def _rebuild_norm(ctx: Any) -> Differentiable:
    _, weight, in_degrees, out_degrees = ctx.saved_tensors
    return lambda weight, *_: reference.masked_norm(weight, in_degrees, out_degrees), (weight, None, None, None)


class _MaskedNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, in_degrees: Tensor, out_degrees: Tensor, route: Route) -> Tensor:
        norm = NORM.on(route)(weight, in_degrees, out_degrees)
        ctx.save_for_backward(norm, weight, in_degrees, out_degrees)
        ctx.route = route
        return norm

    @staticmethod
    @with_reference(_rebuild_norm)
    def backward(ctx: Any, route: Route, d_norm: Tensor) -> Any:
        d_weight = NORM_BWD.on(route)(d_norm.contiguous(), *ctx.saved_tensors)
        return d_weight, None, None, None


def masked_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    in_degrees: Tensor,
    out_degrees: Tensor,
    activation: str | None = None,
    weight_scale: Tensor | None = None,
    impl: str = "auto",
) -> Tensor:
    r"""Linear layer that keeps a weight where the degree of its input is at most that of its output.

    .. math::
        y = \operatorname{act}\left(s \odot (W \circ M)\, x + b\right), \qquad
        M_{oi} = [\,d^{in}_i \le d^{out}_o\,]

    The mask is neither stored nor multiplied into a copy of W. With units sorted by degree it is a staircase. The
    forward pass and both gradients skip its empty side, about half of the multiplications; units that are not sorted
    cost the same on a CPU.

    Args:
        x: inputs, ``(*, I)``; float16, bfloat16, float32 or float64.
        weight: W, ``(O, I)``; masked entries are never read into a result, be they NaN.
        bias: b, ``(O,)``, or None.
        in_degrees: integer degree of each input, ``(I,)``.
        out_degrees: integer degree of each output, ``(O,)``.
        activation: ``"relu"``, ``"elu"``, ``"tanh"``, ``"softplus"``, ``"gelu"``, ``"silu"``, ``"identity"`` or None.
        weight_scale: s, a factor for each row of W, ``(O,)``, as weight normalisation has it; None for ones.
        impl: ``"auto"``, ``"triton"``, ``"cpp"`` or ``"reference"``, see :mod:`fastvae.backend`.

    Returns:
        y, ``(*, O)``, in the dtype of ``x``.

    Raises:
        TypeError: an argument is no tensor of the right kind, or dtypes differ outside autocast.
        ValueError: shapes do not fit, devices differ, or the activation is unknown.
        RuntimeError: ``impl`` cannot run here.

    Note:
        Sums are taken in float32 (float64 for float64 inputs). Gradients of masked weights are exactly zero. In the
        kernels an input that is infinite or NaN reaches no output that does not count it; the reference has 0 · inf
        there. The kernels multiply the sums by s, the reference the weights: where W x leaves the dtype's range, y is
        infinite or NaN in the kernels, however small s is.
        Deterministic. Differentiable any number of times, by the reference from the second time on.

    Reference:
        *MADE: Masked Autoencoder for Distribution Estimation* (Germain, Gregor, Murray, Larochelle, 2015).

    Example:
        >>> degrees = torch.arange(4)
        >>> y = masked_linear(torch.ones(2, 4), torch.ones(4, 4), in_degrees=degrees, out_degrees=degrees)
        >>> y[0].tolist()
        [1.0, 2.0, 3.0, 4.0]
    """
    activation = activation_of(activation)
    route, (x, weight, bias, weight_scale, in_degrees, out_degrees) = backend.route(
        impl, x, weight, bias, weight_scale, in_degrees, out_degrees,
        names=("x", "weight", "bias", "weight_scale", "in_degrees", "out_degrees"), floats=4, required=2,
    )  # fmt: skip
    x, weight, bias, weight_scale = _checks.to_kind_of_products(
        x, weight, bias=bias, weight_scale=weight_scale, alike=route.alike
    )
    if weight.dim() != 2:
        raise ValueError(f"weight must have shape (O, I), got {tuple(weight.shape)}")
    out, features = weight.shape
    if x.dim() == 0 or x.shape[-1] != features:
        raise ValueError(f"x must have shape (*, {features}) for a weight {tuple(weight.shape)}, got {tuple(x.shape)}")
    for name, t in (("bias", bias), ("weight_scale", weight_scale)):
        if t is not None and t.shape != (out,):
            raise ValueError(f"{name} must have shape ({out},), got {tuple(t.shape)}")
    in_degrees = check_degrees("in_degrees", in_degrees, features, x)
    out_degrees = check_degrees("out_degrees", out_degrees, out, x)
    if route.impl == "reference":
        return reference.masked_linear(x, weight, bias, in_degrees, out_degrees, activation, weight_scale)
    batch = x.shape[:-1]
    x, weight = _layout.to_rows(x, features), _layout.to_rows(weight, features)
    bias = None if bias is None else bias.contiguous()
    weight_scale = None if weight_scale is None else weight_scale.contiguous()
    tensors = [t for t in (x, weight, bias, weight_scale) if t is not None]
    args = (x, weight, bias, weight_scale, in_degrees, out_degrees, activation)
    y = apply(_MaskedLinear, *args, route) if needs_grad(*tensors) else FWD.on(route)(*args, False)[0]
    return _layout.to_shape(y, (*batch, out))


def masked_norm(weight: Tensor, *, in_degrees: Tensor, out_degrees: Tensor, impl: str = "auto") -> Tensor:
    r"""Euclidean norms of a weight's rows over the entries that count, for weight normalisation.

    Args:
        weight: ``(O, I)``.
        in_degrees: integer degree of each input, ``(I,)``.
        out_degrees: integer degree of each output, ``(O,)``.
        impl: see :mod:`fastvae.backend`.

    Returns:
        Norms, ``(O,)``, 0 for a row without connections (whose gradient is 0).

    Raises:
        TypeError: ``weight`` is no floating-point tensor, or degrees are no integers.
        ValueError: shapes do not fit, or devices differ.

    Example:
        >>> degrees, rows = torch.tensor([1, 2]), torch.tensor([[3.0, 4.0], [3.0, 4.0]])
        >>> masked_norm(rows, in_degrees=degrees, out_degrees=degrees).tolist()
        [3.0, 5.0]
    """
    route, (weight, in_degrees, out_degrees) = backend.route(
        impl, weight, in_degrees, out_degrees, names=("weight", "in_degrees", "out_degrees")
    )
    (weight,) = _checks.to_same_kind(weight=weight)
    if weight.dim() != 2:
        raise ValueError(f"weight must have shape (O, I), got {tuple(weight.shape)}")
    in_degrees = check_degrees("in_degrees", in_degrees, weight.shape[1], weight)
    out_degrees = check_degrees("out_degrees", out_degrees, weight.shape[0], weight)
    if route.impl == "reference":
        return reference.masked_norm(weight, in_degrees, out_degrees)
    weight = _layout.to_rows(weight, weight.shape[1])
    if needs_grad(weight):
        return apply(_MaskedNorm, weight, in_degrees, out_degrees, route)
    return NORM.on(route)(weight, in_degrees, out_degrees)
