"""Inverse of an autoregressive affine flow in one sweep over the features, with gradients in one transposed sweep."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..backend import Route
from ..reference import autoregressive_inverse as reference
from ..reference.made import MadeParameters
from ..structure import MadeStructure
from . import _layout, autoregressive_flow
from ._library import Differentiable, apply, define, needs_grad, reference_gradients, with_reference
from ._network import check_network, route_network, structure_fields
from ._network_call import NetworkCall, OptionalTensors, Tensors, prepare, rebuild_network, recognise, save_network
from ._network_contract import check_forward, check_gradient
from ._network_triton import run_inverse, run_inverse_gradient
from .autoregressive_flow import GRADIENT_ARGUMENTS, NETWORK, step_gradients


def _fwd_cpu(z: Tensor, *arguments: Any) -> tuple[Tensor, Tensor, Tensor | None]:
    *others, _network = arguments
    return autoregressive_flow.fwd_cpu(True, z, *others)


def _fwd_fake(
    z: Tensor,
    tensors: Any,
    present: Any,
    degrees: Tensors,
    structure: Any,
    keep: bool,
    log_det_map: bool,
    network: str,
) -> tuple[Tensor, Tensor, Tensor]:
    keeps = keep and z.device.type != "cuda"
    return autoregressive_flow.fwd_fake(z, tensors, present, degrees, structure, keeps, log_det_map)


_run_bwd_cpu = autoregressive_flow.bwd_cpu("autoregressive_inverse_bwd")


def _bwd_cpu(d_out: Tensor, *arguments: Any) -> tuple[Tensor | None, OptionalTensors]:
    *others, _network = arguments
    return _run_bwd_cpu(d_out, *others)


def _bwd_fake(d_out: Tensor, *arguments: Any) -> tuple[Tensor, list[Tensor]]:
    *others, _network = arguments
    return autoregressive_flow.bwd_fake(d_out, *others)


# `network`: the structure's description. On a GPU units are sorted by their degrees, which only the host can do ahead.
# There `saved` is empty: the backward pass computes the activations again.
FWD = define(
    f"autoregressive_inverse_fwd(Tensor z, {NETWORK}, bool keep, bool log_det_map, str network)"
    " -> (Tensor x, Tensor log_det, Tensor saved)",
    tensors="z[N,D]r", more=check_forward,
    module="autoregressive_inverse", cpu=_fwd_cpu, fake=_fwd_fake, adapt=run_inverse,
    dispatched=autoregressive_flow.fwd_for_dispatcher,
)  # fmt: skip
BWD = define(
    f"autoregressive_inverse_bwd({GRADIENT_ARGUMENTS}, str network) -> (Tensor d_z, Tensor[] d_tensors)",
    tensors="d_out[N,O]c", more=check_gradient,
    module="_inverse_gradients", cpu=_bwd_cpu, fake=_bwd_fake, adapt=run_inverse_gradient,
)  # fmt: skip


def _rebuild_inverse(ctx: Any) -> Differentiable:
    return rebuild_network(ctx, reference.autoregressive_inverse)


class _AutoregressiveInverse(torch.autograd.Function):
    # By the implicit function theorem: with F the step and z = F(x), the gradient d_z solves J^T d_z = d_x, plus what
    # comes through log_det.
    @staticmethod
    def forward(ctx: Any, call: NetworkCall, z: Tensor, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        used, kept = call.with_factors(tensors)
        x, log_det, saved = _sweep(call, z, used, True)
        if call.route.impl == "triton":
            kept = call.keep_all(used, kept, x)
        save_network(ctx, call, saved, kept, z, tensors)
        return x, log_det

    @staticmethod
    @with_reference(_rebuild_inverse)
    def backward(ctx: Any, route: Route, d_x: Tensor | None, d_log_det: Tensor | None) -> Any:
        if d_x is None:
            return reference_gradients(_rebuild_inverse, ctx, (None, d_log_det))
        return None, *step_gradients(ctx, BWD.on(route), d_x, d_log_det, ctx.call.description)


def _sweep(call: NetworkCall, z: Tensor, used: Tensors, keep: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    found: tuple[Tensor, Tensor, Tensor | None] = FWD.on(call.route)(
        z, used, call.present, call.degrees, call.fields, keep, call.log_det_map, call.description
    )
    return found


def autoregressive_inverse(
    z: Tensor,
    context_term: Tensor | None,
    parameters: MadeParameters,
    structure: MadeStructure,
    *,
    kind: str = "gated",
    log_det_map: bool = False,
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
        log_det_map: whether to return every feature's share of the log-determinant in place of their sum.
        impl: see :mod:`fastvae.backend`.

    Returns:
        x, ``(*, D)``, dtype of ``z``, and the log-determinant of the inverse map, ``(*)``, with ``log_det_map``
        ``(*, D)``, float32 (float64 for float64 inputs).

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
    known = recognise(z, context_term, parameters, structure, kind, fields, log_det_map, impl)
    if known is not None:
        return _solve(z, *known)
    route, z, context_term, parameters = route_network("z", impl, z, context_term, parameters)
    z, context_term, parameters = check_network("z", z, context_term, parameters, structure)
    if route.impl == "reference":
        return reference.autoregressive_inverse(z, context_term, parameters, structure, kind, log_det_map)
    batch, d = z.shape[:-1], z.shape[-1]
    x, log_det = _solve(*prepare(z, context_term, parameters, structure, kind, fields, log_det_map, route))
    return _layout.to_shape(x, (*batch, d)), _layout.to_shape(log_det, (*batch, d) if log_det_map else batch)


def _solve(z: Tensor, call: NetworkCall, tensors: Tensors) -> tuple[Tensor, Tensor]:
    if needs_grad(z, *tensors):
        return apply(_AutoregressiveInverse, call, z, *tensors)
    return _sweep(call, z, call.with_factors(tensors)[0], False)[:2]
