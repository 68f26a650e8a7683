"""Log-likelihood of binary data whose logits a dense layer makes: the logits are never all in memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import backend
from ..backend import Route
from ..precision import compute_dtype
from ..reference import linear_bernoulli as reference
from . import _checks, _layout
from ._contracts import Call
from ._library import Differentiable, apply, define, extension, needs_grad, with_reference
from ._network import LANES

# Row m of h belongs to row m // inner % N of x: samples come first, then data points, then `inner` classes of each.
#
# `kept` is x - sigmoid(l): a CPU computes it in the forward pass where it is small. What is larger is computed again.
_MOST_KEPT_BYTES = 64 << 20


def _is_kept(rows: int, pixels: int, dtype: torch.dtype) -> bool:
    return rows * pixels * compute_dtype(dtype).itemsize <= _MOST_KEPT_BYTES


def count_kept(rows: int, points: int, pixels: int, inner: int) -> int:
    """The numbers of `kept`, in blocks of samples as csrc lays them out."""
    if points == 0:
        return 0
    of_points = _divide_up(points, LANES)
    stacked = inner == 1 and points >= LANES and of_points * LANES - points <= of_points * LANES // 8
    blocks = rows // points * of_points if stacked else _divide_up(rows, LANES)
    return blocks * pixels * LANES


def _divide_up(count: int, by: int) -> int:
    return (count + by - 1) // by


def _fwd_cpu(
    h: Tensor, weight: Tensor, bias: Tensor | None, x: Tensor, inner: int, keep: bool
) -> tuple[Tensor, Tensor | None]:
    tensors = _layout.all_to_compute_dtype((h, weight, bias), h.dtype)
    log_p, kept = extension().linear_bernoulli_fwd(*tensors, x, inner, keep)
    return log_p, kept


def _fwd_triton(launcher: Any, *args: Any) -> tuple[Tensor, Tensor | None]:
    return launcher(*args[:-1]), None


def _fwd_fake(h: Tensor, weight: Tensor, bias: Any, x: Tensor, inner: int, keep: bool) -> tuple[Tensor, Tensor]:
    log_p = h.new_empty(h.shape[0], dtype=compute_dtype(h.dtype))
    if not (keep and h.device.type == "cpu"):
        return log_p, h.new_empty(0)
    return log_p, log_p.new_empty(count_kept(h.shape[0], x.shape[0], weight.shape[0], inner))


def _bwd_cpu(
    d_log_p: Tensor,
    h: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    x: Tensor,
    kept: Tensor | None,
    inner: int,
    needs: Sequence[bool],
) -> tuple[Tensor | None, ...]:
    tensors = _layout.all_to_compute_dtype((h, weight, bias), h.dtype)
    gradients = extension().linear_bernoulli_bwd(d_log_p, *tensors, x, kept, inner, needs)
    return tuple([None if g is None else _layout.cast(g, h.dtype) for g in gradients])


def _bwd_triton(
    launcher: Any,
    d_log_p: Tensor,
    h: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    x: Tensor,
    kept: Any,
    inner: int,
    needs: Sequence[bool],
) -> Any:
    return launcher(d_log_p, h, weight, bias, x, inner, needs)


def _bwd_fake(
    d_log_p: Tensor, h: Tensor, weight: Tensor, bias: Any, x: Any, kept: Any, inner: Any, needs: Sequence[bool]
) -> tuple[Tensor, ...]:
    shapes = h.shape, weight.shape, weight.shape[:1]
    return tuple(
        h.new_empty(shape) if need else d_log_p.new_empty(0) for shape, need in zip(shapes, needs, strict=True)
    )


def _check_call(call: Call) -> None:
    inner, rows, points = call["inner"], call.sizes["M"], call.sizes["N"]
    call.require(inner >= 1, "inner", "be >= 1", inner)
    whole = rows % (points * inner) == 0 if points else rows == 0
    call.require(whole, "h", f"have a multiple of {points} x {inner} rows", rows)
    if "needs" in call.arguments:
        needs, kept = call["needs"], call["kept"]
        if kept is not None:
            count = count_kept(rows, points, call.sizes["P"], inner)
            call.tensor("kept", kept, (str(count),), "cw")
        call.require(len(needs) == 3, "needs", "be three truth values", needs)
        call.require(not needs[2] or call["bias"] is not None, "needs", "want no gradient of an absent bias", needs)


_TENSORS = "h[M,H]r weight[P,H]r bias?[P]c x[N,P]rw"
FWD = define(
    "linear_bernoulli_fwd(Tensor h, Tensor weight, Tensor? bias, Tensor x, SymInt inner, bool keep)"
    " -> (Tensor log_p, Tensor kept)",
    tensors=_TENSORS, more=_check_call,
    module="linear_bernoulli", cpu=_fwd_cpu, fake=_fwd_fake, adapt=_fwd_triton,
)  # fmt: skip
BWD = define(
    "linear_bernoulli_bwd(Tensor d_log_p, Tensor h, Tensor weight, Tensor? bias, Tensor x, Tensor? kept, SymInt inner,"
    " bool[] needs) -> (Tensor d_h, Tensor d_weight, Tensor d_bias)",
    tensors=f"{_TENSORS} d_log_p[M]cw", more=_check_call,
    module="linear_bernoulli", cpu=_bwd_cpu, fake=_bwd_fake, adapt=_bwd_triton,
)  # fmt: skip


def _rebuild_log_prob(ctx: Any) -> Differentiable:
    h, weight, bias, x, _ = ctx.saved_tensors

    def log_prob(h: Tensor, weight: Tensor, bias: Tensor | None, *_: None) -> Tensor:
        return reference.linear_bernoulli_log_prob(h, weight, bias, x, ctx.inner)

    return log_prob, (h, weight, bias, None, None)


class _LinearBernoulliLogProb(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, h: Tensor, weight: Tensor, bias: Tensor | None, x: Tensor, call: tuple[int, Route]) -> Tensor:
        inner, route = call
        keeps = route.impl == "cpp" and _is_kept(h.shape[0], weight.shape[0], h.dtype)
        log_p, kept = FWD.on(route)(h, weight, bias, x, inner, keeps)
        ctx.save_for_backward(h, weight, bias, x, kept if keeps else None)
        ctx.inner, ctx.route = inner, route
        return log_p

    @staticmethod
    @with_reference(_rebuild_log_prob)
    def backward(ctx: Any, route: Route, d_log_p: Tensor) -> Any:
        needs = list(ctx.needs_input_grad[:3])
        found = BWD.on(route)(d_log_p.contiguous(), *ctx.saved_tensors, ctx.inner, needs)
        return *(g if need else None for g, need in zip(found, needs, strict=True)), None, None


def _check(h: Tensor, weight: Tensor, bias: Tensor | None, x: Tensor) -> None:
    if weight.dim() != 2 or weight.shape[0] == 0:
        raise ValueError(f"weight must have shape (P, H) with P >= 1, got {tuple(weight.shape)}")
    pixels, features = weight.shape
    if h.dim() == 0 or h.shape[-1] != features:
        raise ValueError(f"h must have shape (*, {features}), got {tuple(h.shape)}")
    if bias is not None and bias.shape != (pixels,):
        raise ValueError(f"bias must have shape ({pixels},), got {tuple(bias.shape)}")
    _checks.check_data(x, pixels, h=h)


def linear_bernoulli_log_prob(
    h: Tensor, weight: Tensor, bias: Tensor | None, x: Tensor, *, impl: str = "auto"
) -> Tensor:
    r"""Log-likelihood of binary data under the logits of a dense layer, without the logits in memory.

    .. math::
        l = W h + b, \qquad \log p(x \mid h) = \sum_j x_j l_j - \operatorname{softplus}(l_j)

    It is :func:`torch.nn.functional.linear` followed by :func:`fastvae.likelihoods.bernoulli_log_prob`, for the last
    layer of a decoder: for K samples of N data points the logits ``(K, N, P)`` would be by far its largest tensor.

    Args:
        h: inputs of the layer, ``(*sample_shape, *, H)``; float16, bfloat16, float32 or float64.
        weight: W, ``(P, H)``.
        bias: b, ``(P,)``, or None.
        x: data, ``(*, P)``: bool, integer or floating point, in [0, 1]. Missing or unit batch dimensions broadcast
            against those of ``h`` and are not repeated in memory: ``(N, P)`` against ``(K, N, H)``, or ``(N, 1, P)``
            against ``(N, C, H)`` for C classes.
        impl: ``"auto"``, ``"triton"``, ``"cpp"`` or ``"reference"``, see :mod:`fastvae.backend`.

    Returns:
        ``log_p_x``, nats, shape of ``h`` without its last dimension; float32 (float64 for float64 ``h``).

    Raises:
        TypeError: an argument is no tensor of the right kind, or dtypes differ outside autocast.
        ValueError: shapes do not fit or devices differ.
        RuntimeError: ``impl`` cannot run here.

    Note:
        Under autocast the layer runs in its dtype, as :func:`torch.nn.functional.linear` does. On a CPU the gradients
        of up to 64 MiB of logits are kept for the backward pass. It computes larger ones again, a thousand rows at a
        time, and so takes a third more products; a GPU always does.
        A gradient of ``x`` is the reference's. The values of ``x`` are not checked. Deterministic. Differentiable any
        number of times, by the reference from the second time on.

    Example:
        >>> h, weight, bias = torch.zeros(5, 2, 4), torch.zeros(3, 4), torch.zeros(3)
        >>> x = torch.tensor([[True, False, True], [False, False, True]])
        >>> linear_bernoulli_log_prob(h, weight, bias, x).shape
        torch.Size([5, 2])
    """
    route, (h, weight, bias, x) = backend.route(
        impl, h, weight, bias, x, names=("h", "weight", "bias", "x"), floats=3, required=2
    )
    h, weight, bias = _checks.to_kind_of_products(h, weight, bias=bias, alike=route.alike, name="h")
    _check(h, weight, bias, x)
    x, inner = _checks.align_data(x.to(compute_dtype(h.dtype)), h=h)
    if needs_grad(x):
        if backend.is_asked_for(impl) and route.impl != "reference":
            raise RuntimeError(f"impl={impl!r} cannot run here: x requires a gradient, which only the reference gives")
        route = Route("reference")
    batch, (pixels, features) = h.shape[:-1], weight.shape
    h = _layout.to_rows(h, features)
    x = _layout.to_rows(x, pixels)
    if route.impl == "reference":
        return reference.linear_bernoulli_log_prob(h, weight, bias, x, inner).reshape(batch)
    weight = _layout.to_rows(weight, features)
    bias = None if bias is None else bias.contiguous()
    if needs_grad(h, weight) or (bias is not None and needs_grad(bias)):
        log_p = apply(_LinearBernoulliLogProb, h, weight, bias, x, (inner, route))
    else:
        log_p = FWD.on(route)(h, weight, bias, x, inner, False)[0]
    return _layout.to_shape(log_p, batch)
