"""Affine flow step with its log-determinant in one pass over memory."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import backend
from ..backend import Route
from ..precision import compute_dtype
from ..reference import affine_flow as reference
from . import _checks, _layout
from ._contracts import Call, check_log_det_gradient
from ._layers import KIND_IDS, check_kind
from ._library import (
    Differentiable,
    apply,
    define,
    extension,
    keep_none,
    needs_grad,
    with_reference,
    zeros_for_rows,
)

# The kind, whether the map is the inverse, and whether log_det has shares.
Options = tuple[str, bool, bool]


def _fwd_cpu(
    z: Tensor, shift: Tensor, scale_logit: Tensor | None, kind: str, inverse: bool, log_det_map: bool
) -> tuple[Tensor, Tensor]:
    tensors = _layout.all_to_compute_dtype((z, shift, scale_logit), z.dtype)
    out, log_det = extension().affine_flow_fwd(*tensors, KIND_IDS[kind], inverse, log_det_map)
    return _layout.cast(out, z.dtype), log_det


def _fwd_fake(
    z: Tensor, shift: Any, scale_logit: Any, kind: Any, inverse: Any, log_det_map: bool
) -> tuple[Tensor, Tensor]:
    shape = z.shape if log_det_map else z.shape[:1]
    return z.new_empty(z.shape), z.new_empty(shape, dtype=compute_dtype(z.dtype))


def _bwd_cpu(
    d_out: Tensor,
    d_log_det: Tensor,
    z: Tensor,
    shift: Tensor,
    scale_logit: Tensor | None,
    kind: str,
    inverse: bool,
) -> tuple[Tensor | None, ...]:
    g, *tensors = _layout.all_to_compute_dtype((d_out, z, shift, scale_logit), z.dtype)
    gradients = extension().affine_flow_bwd(g, d_log_det, *tensors, KIND_IDS[kind], inverse)
    return tuple([None if t is None else _layout.cast(t, z.dtype) for t in gradients])


def _bwd_fake(
    d_out: Any, d_log_det: Any, z: Tensor, shift: Any, scale_logit: Any, kind: Any, inverse: Any
) -> tuple[Tensor, Tensor, Tensor]:
    return z.new_empty(z.shape), z.new_empty(z.shape), z.new_empty(0 if scale_logit is None else z.shape)


def _check_call(call: Call) -> None:
    kind, scale_logit = call["kind"], call["scale_logit"]
    call.require(kind in reference.KINDS, "kind", f"be one of {', '.join(reference.KINDS)}", repr(kind))
    has_scale = kind != "location_only"
    call.require(
        (scale_logit is not None) is has_scale, "scale_logit", f"fit kind={kind!r}", type(scale_logit).__name__
    )


def _check_gradient_call(call: Call) -> None:
    _check_call(call)
    check_log_det_gradient(call)


# With `log_det_map` log_det has every feature's share, (N, D), and so has its gradient.
FWD = define(
    "affine_flow_fwd(Tensor z, Tensor shift, Tensor? scale_logit, str kind, bool inverse, bool log_det_map)"
    " -> (Tensor out, Tensor log_det)",
    tensors="z[N,D]r shift[N,D]r scale_logit?[N,D]r", more=_check_call,
    module="affine_flow", cpu=_fwd_cpu, fake=_fwd_fake,
)  # fmt: skip
BWD = define(
    "affine_flow_bwd(Tensor d_out, Tensor d_log_det, Tensor z, Tensor shift, Tensor? scale_logit, str kind,"
    " bool inverse) -> (Tensor d_z, Tensor d_shift, Tensor d_scale_logit)",
    tensors="z[N,D]r shift[N,D]r scale_logit?[N,D]r d_out[N,D]c", more=_check_gradient_call,
    module="affine_flow", cpu=_bwd_cpu, fake=_bwd_fake,
)  # fmt: skip


def _rebuild_step(ctx: Any) -> Differentiable:
    options = ctx.options

    def step(z: Tensor, shift: Tensor, scale_logit: Tensor | None, *_: None) -> tuple[Tensor, Tensor]:
        return reference.affine_flow(z, shift, scale_logit, *options)

    return step, (*ctx.saved_tensors, None)


class _AffineFlow(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, z: Tensor, shift: Tensor, scale_logit: Tensor | None, call: tuple[Route, Options]
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(z, shift, scale_logit)
        ctx.route, ctx.options = call
        keep_none(ctx)
        return FWD.on(ctx.route)(z, shift, scale_logit, *ctx.options)

    @staticmethod
    @with_reference(_rebuild_step)
    def backward(ctx: Any, route: Route, d_out: Tensor | None, d_log_det: Tensor | None) -> Any:
        (kind, inverse, _), (z, shift, scale_logit) = ctx.options, ctx.saved_tensors
        op, wants_scale = BWD.on(route), ctx.needs_input_grad[2]
        if d_out is None:
            # The log-determinant is a function of the scale alone, whatever the points are.
            if d_log_det is None or not wants_scale:
                return None, None, None, None
            zeros = torch.zeros_like(z, memory_format=torch.contiguous_format)
            return None, None, op(zeros, d_log_det.contiguous(), zeros, zeros, scale_logit, kind, inverse)[2], None
        if d_log_det is None:
            d_log_det = zeros_for_rows(d_out)
        d_z, d_shift, d_scale_logit = op(
            d_out.contiguous(), d_log_det.contiguous(), z, shift, scale_logit, kind, inverse
        )
        return d_z, d_shift, d_scale_logit if wants_scale else None, None


def affine_flow(
    z: Tensor,
    shift: Tensor,
    scale_logit: Tensor | None = None,
    *,
    kind: str = "gated",
    inverse: bool = False,
    log_det_map: bool = False,
    impl: str = "auto",
) -> tuple[Tensor, Tensor]:
    r"""Affine flow step :math:`z' = a(s) \odot z + c(s) \odot m` with its log-determinant :math:`\sum_i \log a(s_i)`.

    ==================  =================================  ==============  ==================================
    kind                log a(s)                           c(s)            used by
    ==================  =================================  ==============  ==================================
    ``gated``           -softplus(-s), s within ±30        1 - a(s)        IAF (paper)
    ``exp``             s / (1 + abs(s) / log 1000)        1               zuko
    ``clamped_exp``     s within [-5, 3]                   1               Pyro
    ``softplus``        log(softplus(s) + 0.001)           1               nflows
    ``sigmoid``         log(sigmoid(s) + 0.001)            1               normflows
    ``location_only``   0                                  1               NICE-like, VLAE
    ``iaf_release``     -0.1 s, s within ±300              -0.1 a(s)       released IAF code
    ==================  =================================  ==============  ==================================

    Args:
        z: points, ``(*, D)``; with ``inverse`` the points z' to map back.
        shift: m, ``(*, D)``; batches broadcast.
        scale_logit: s, ``(*, D)``; None for ``location_only``.
        kind: one of the above.
        inverse: whether to map back, :math:`z = (z' - c(s)\, m) / a(s)`.
        log_det_map: whether to return every feature's share of the log-determinant in place of their sum.
        impl: ``"auto"``, ``"triton"``, ``"cpp"`` or ``"reference"``, see :mod:`fastvae.backend`.

    Returns:
        The points, ``(*, D)``, dtype of ``z``, and ``log_det`` of the map taken, ``(*)``, with ``log_det_map``
        ``(*, D)``, float32 (float64 for float64 inputs).

    Raises:
        TypeError: an argument is no floating-point tensor, or dtypes differ outside autocast.
        ValueError: shapes do not fit, devices differ, ``kind`` is unknown, or ``scale_logit`` is missing or
            unexpected.
        RuntimeError: ``impl`` cannot run here.

    Note:
        log a(s) is bounded in both directions, so that a saturated s gives no NaN; beyond a clamp the gradient of s is
        0. An inverse can still overflow to inf where 1 / a(s), at most e^30, meets large points. Deterministic.
        Differentiable any number of times, by the reference from the second time on.

    Reference:
        *Improving Variational Inference with Inverse Autoregressive Flow* (Kingma et al., 2016).

    Example:
        >>> z, log_det = affine_flow(torch.ones(2, 3), torch.zeros(2, 3), torch.zeros(2, 3))
        >>> z[0].tolist()
        [0.5, 0.5, 0.5]
    """
    check_kind(kind)
    if (scale_logit is None) != (kind == "location_only"):
        raise ValueError(
            f"scale_logit must be {'None' if kind == 'location_only' else 'a tensor'} for kind={kind!r}, got "
            f"{'None' if scale_logit is None else type(scale_logit).__name__}"
        )
    names = ("z", "shift", "scale_logit")
    route, (z, shift, scale_logit) = backend.route(impl, z, shift, scale_logit, names=names, required=2)
    options = kind, inverse, log_det_map
    if route.rows:
        return _step(route, z, shift, scale_logit, options)
    named = {"z": z, "shift": shift}
    if scale_logit is not None:
        named["scale_logit"] = scale_logit
    if not route.alike:
        named = dict(zip(named, _checks.to_same_kind(**named), strict=True))
    _checks.check_features(**named)
    z, shift, *rest = _checks.broadcast_batch((1,) * len(named), **named)
    if route.impl == "reference":
        return reference.affine_flow(z, shift, rest[0] if rest else None, *options)
    batch, d = z.shape[:-1], z.shape[-1]
    z, shift = _layout.to_rows(z, d), _layout.to_rows(shift, d)
    logit = _layout.to_rows(rest[0], d) if rest else None
    out, log_det = _step(route, z, shift, logit, options)
    return _layout.to_shape(out, (*batch, d)), _layout.to_shape(log_det, (*batch, d) if log_det_map else batch)


def _step(
    route: Route, z: Tensor, shift: Tensor, scale_logit: Tensor | None, options: Options
) -> tuple[Tensor, Tensor]:
    if needs_grad(z, shift) or (scale_logit is not None and needs_grad(scale_logit)):
        return apply(_AffineFlow, z, shift, scale_logit, (route, options))
    return FWD.on(route)(z, shift, scale_logit, *options)
