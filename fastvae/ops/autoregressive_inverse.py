"""Inverse of an autoregressive affine flow in one sweep over the features, with gradients in one transposed sweep."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..backend import Route
from ..precision import keep_autocast
from ..reference import autoregressive_inverse as reference
from ..reference.made import MadeParameters
from ..structure import MadeStructure
from . import _layout, autoregressive_flow
from ._library import (
    Differentiable,
    apply,
    define,
    keep_none,
    needs_grad,
    reference_gradients,
    with_reference,
    zeros_for_rows,
)
from ._network import check_network, route_network, structure_fields
from ._network_call import NetworkCall, Tensors, prepare, rebuild_network, recognise, save_network
from ._network_contract import check_forward, check_gradient
from .autoregressive_flow import GRADIENT_ARGUMENTS, NETWORK, step_gradients


def _fwd_cpu(*args: Any) -> tuple[Tensor, Tensor, Tensor | None]:
    return autoregressive_flow.fwd_cpu(True, *args)


# The Triton kernels sweep through a network of another form, see _TritonInverse.
_INSTEAD = "the flows of fastvae.nn, or fastvae.ops.autoregressive_inverse.autoregressive_inverse"
FWD = define(
    f"autoregressive_inverse_fwd(Tensor z, {NETWORK}, bool keep) -> (Tensor x, Tensor log_det, Tensor saved)",
    tensors="z[N,D]r", more=check_forward,
    module=None, cpu=_fwd_cpu, fake=autoregressive_flow.fwd_fake, dispatched=autoregressive_flow.fwd_for_dispatcher,
    instead=_INSTEAD,
)  # fmt: skip
BWD = define(
    f"autoregressive_inverse_bwd({GRADIENT_ARGUMENTS}) -> (Tensor d_z, Tensor[] d_tensors)",
    tensors="d_out[N,O]c", more=check_gradient,
    module=None, cpu=autoregressive_flow.bwd_cpu("autoregressive_inverse_bwd"), fake=autoregressive_flow.bwd_fake,
    instead=_INSTEAD,
)  # fmt: skip


def _rebuild_inverse(ctx: Any) -> Differentiable:
    return rebuild_network(ctx, reference.autoregressive_inverse)


class _AutoregressiveInverse(torch.autograd.Function):
    # By the implicit function theorem: with F the step and z = F(x), the gradient d_z solves J^T d_z = d_x, plus what
    # comes through log_det.
    @staticmethod
    def forward(ctx: Any, call: NetworkCall, z: Tensor, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        used, kept = call.with_factors(tensors)
        x, log_det, saved = FWD.on(call.route)(z, used, call.present, call.degrees, call.fields, True)
        save_network(ctx, call, saved, kept, z, tensors)
        return x, log_det

    @staticmethod
    @with_reference(_rebuild_inverse)
    def backward(ctx: Any, route: Route, d_x: Tensor | None, d_log_det: Tensor | None) -> Any:
        if d_x is None:
            return reference_gradients(_rebuild_inverse, ctx, (None, d_log_det))
        return None, *step_gradients(ctx, BWD.on(route), d_x, d_log_det)


def _rebuild_triton_inverse(ctx: Any) -> Differentiable:
    call, (_, z, *tensors) = ctx.call, ctx.saved_tensors

    def inverse(_call: None, _structure: None, _kind: None, z: Tensor, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        context_term, weights, biases, scales = call.unflat(tensors)
        parameters = MadeParameters(weights, biases, scales, call.degrees)
        return reference.autoregressive_inverse(z, context_term, parameters, ctx.structure, ctx.kind)

    return inverse, (None, None, None, z, *tensors)


class _TritonInverse(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, call: NetworkCall, structure: MadeStructure, kind: str, z: Tensor, *tensors: Tensor
    ) -> tuple[Tensor, Tensor]:
        from ..kernels.autoregressive_inverse import autoregressive_inverse_fwd

        x, log_det = autoregressive_inverse_fwd(z, *call.unflat(tensors), structure, kind)
        ctx.save_for_backward(x, z, *tensors)
        ctx.call, ctx.route, ctx.structure, ctx.kind = call, call.route, structure, kind
        ctx.autocast = keep_autocast(z.device.type)
        keep_none(ctx)
        return x, log_det

    @staticmethod
    @with_reference(_rebuild_triton_inverse)
    def backward(ctx: Any, route: Route, d_x: Tensor | None, d_log_det: Tensor | None) -> Any:
        from ..kernels.autoregressive_inverse import autoregressive_inverse_solve

        if d_x is None:
            return reference_gradients(_rebuild_triton_inverse, ctx, (None, d_log_det))
        d_log_det = zeros_for_rows(d_x) if d_log_det is None else d_log_det.contiguous()

        call, structure, kind = ctx.call, ctx.structure, ctx.kind
        x, _, *tensors = ctx.saved_tensors
        needs = ctx.needs_input_grad[4:]
        d_z = autoregressive_inverse_solve(d_x.contiguous(), d_log_det, x, *call.unflat(tensors), structure, kind)
        wanted = [i for i, need in enumerate(needs) if need]
        gradients: list[Tensor | None] = [None] * len(needs)
        if wanted:
            with torch.enable_grad(), ctx.autocast:
                leaves = [t.detach().requires_grad_() if needs[i] else t for i, t in enumerate(tensors)]
                context_term, w, b, s = call.unflat(leaves)
                out, log_det = autoregressive_flow.autoregressive_flow(
                    x, context_term, MadeParameters(w, b, s, call.degrees), structure, kind=kind, impl="triton"
                )
                found = torch.autograd.grad((out, log_det), [leaves[i] for i in wanted], (-d_z, -d_log_det))
            for i, gradient in zip(wanted, found, strict=True):
                gradients[i] = gradient
        return None, None, None, d_z, *gradients


def autoregressive_inverse(
    z: Tensor,
    context_term: Tensor | None,
    parameters: MadeParameters,
    structure: MadeStructure,
    *,
    kind: str = "gated",
    impl: str = "auto",
) -> tuple[Tensor, Tensor]:
    r"""The point x that one autoregressive flow step maps to ``z``.

    One sweep over the features: when feature i is known, the hidden units of degree i are computed, and with them the
    parameters of the next feature. Every weight is used once, where a fixed point or D passes of the network use it D
    times. The gradient is one transposed sweep, by the implicit function theorem, and one backward pass of the step.

    Args:
        z: points, ``(*, D)``.
        context_term: what is added to the first layer before its activation, ``(*, hidden width)``, or None.
        parameters: weights, biases and row factors of the layers.
        structure: sizes and degrees, see :class:`fastvae.structure.MadeStructure`.
        kind: the affine map, see :func:`fastvae.functional.affine_flow`.
        impl: see :mod:`fastvae.backend`.

    Returns:
        x, ``(*, D)``, dtype of ``z``, and the log-determinant of the inverse map, ``(*)``, float32 (float64 for float64
        inputs).

    Raises:
        TypeError: an argument is no floating-point tensor, or dtypes differ outside autocast.
        ValueError: shapes do not fit, devices differ, or ``kind`` is unknown.
        RuntimeError: ``impl`` cannot run here.

    Note:
        Exact up to rounding, which each feature passes on to the later ones. Where 1 / a(s) meets large points the
        result overflows to inf, as the reference's does. Differentiable any number of times, by the reference from the
        second time on.
    """
    fields = structure_fields(structure, kind)
    known = recognise(z, context_term, parameters, structure, kind, fields, impl)
    if known is not None:
        return _solve(z, *known)
    route, z, context_term, parameters = route_network("z", impl, z, context_term, parameters)
    z, context_term, parameters = check_network("z", z, context_term, parameters, structure)
    if route.impl == "reference":
        return reference.autoregressive_inverse(z, context_term, parameters, structure, kind)
    batch, d = z.shape[:-1], z.shape[-1]
    if route.impl == "triton":
        parameters = autoregressive_flow.with_factors(parameters, route.impl)
    z, call, tensors = prepare(z, context_term, parameters, structure, kind, fields, route)
    if route.impl == "triton":
        x, log_det = apply(_TritonInverse, call, structure, kind, z, *tensors)
    else:
        x, log_det = _solve(z, call, tensors)
    return _layout.to_shape(x, (*batch, d)), _layout.to_shape(log_det, batch)


def _solve(z: Tensor, call: NetworkCall, tensors: Tensors) -> tuple[Tensor, Tensor]:
    if needs_grad(z, *tensors):
        return apply(_AutoregressiveInverse, call, z, *tensors)
    return FWD.on(call.route)(z, call.with_factors(tensors)[0], call.present, call.degrees, call.fields, False)[:2]
