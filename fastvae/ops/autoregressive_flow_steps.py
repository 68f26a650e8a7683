"""Several autoregressive flow steps in one autograd function: autograd's own work costs as much as a small network."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from ..backend import Route
from ..reference import made as reference
from ..reference.made import MadeParameters
from ..structure import MadeStructure
from ._library import (
    Differentiable,
    apply,
    extension,
    keep_none,
    needs_grad,
    reference_gradients,
    with_reference,
    zeros_for_rows,
)
from ._network import structure_fields
from ._network_call import NetworkCall, OptionalTensors, Tensors, call_reference, keep_needed, recognise
from .autoregressive_flow import BWD

_ItemT = TypeVar("_ItemT")
# A step's context term, parameters and structure.
Step = tuple[Tensor | None, MadeParameters, MadeStructure]


def _split(calls: Sequence[NetworkCall], of_all: Sequence[_ItemT]) -> list[Sequence[_ItemT]]:
    """Each call's own tensors, or what there is of each tensor, out of those of all."""
    found, at = [], 0
    for call in calls:
        found.append(of_all[at : at + call.tensor_count])
        at += call.tensor_count
    return found


def _rebuild_steps(ctx: Any) -> Differentiable:
    calls: Sequence[NetworkCall] = ctx.calls
    x, *own = ctx.saved_tensors[: len(ctx.needs_input_grad) - 1]

    def run(_: None, x: Tensor, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        total: Tensor | None = None
        for call, given in zip(calls, _split(calls, tensors), strict=True):
            x, log_det = call_reference(reference.autoregressive_flow, call, x, given)
            total = log_det if total is None else total + log_det
        assert total is not None
        return x, total

    return run, (None, x, *own)


def _gradients_by_ops(
    route: Route,
    g: Tensor,
    g_log_det: Tensor,
    blocks: Tensors,
    kept: Sequence[Tensors],
    calls: Sequence[NetworkCall],
    needs: Sequence[Sequence[bool]],
) -> tuple[Tensor, OptionalTensors]:
    """What the extension does in one call, by one op for each step: a dispatch mode or the profiler must see ops."""
    launch = BWD.on(route)
    found: list[Tensor | None] = []
    for call, block, own, wanted in reversed(list(zip(calls, blocks, kept, needs, strict=True))):
        g, gradients = launch(
            g, g_log_det, block, own, call.present, call.normalized, call.degrees, call.fields, wanted
        )
        found[:0] = gradients
    return g, found


class _AutoregressiveFlowSteps(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, calls: Sequence[NetworkCall], x: Tensor, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        pairs = [call.with_factors(own) for call, own in zip(calls, _split(calls, tensors), strict=True)]
        out, log_det, blocks = extension().autoregressive_flow_steps_fwd(
            x, calls, [used for used, _ in pairs], calls[0].log_det_map
        )
        derived = [t for call, (_, kept) in zip(calls, pairs, strict=True) for t in kept[call.layers :]]
        ctx.save_for_backward(x, *tensors, *blocks, *derived)
        ctx.calls, ctx.route = calls, calls[0].route
        keep_none(ctx)
        return out, log_det

    @staticmethod
    @with_reference(_rebuild_steps)
    def backward(ctx: Any, route: Route, d_out: Tensor | None, d_log_det: Tensor | None) -> Any:
        if d_out is None:
            # The log-determinant alone does not depend on how large the points are.
            return reference_gradients(_rebuild_steps, ctx, (None, d_log_det))
        calls: Sequence[NetworkCall] = ctx.calls
        needs = _split(calls, ctx.needs_input_grad[2:])
        (_, *tensors), count = ctx.saved_tensors, len(ctx.needs_input_grad) - 2
        blocks, derived = tensors[count : count + len(calls)], iter(tensors[count + len(calls) :])
        kept = [
            (*own[: call.layers], *itertools.islice(derived, call.derived_count))
            for call, own in zip(calls, _split(calls, tensors), strict=True)
        ]
        g_log_det = zeros_for_rows(d_out) if d_log_det is None else d_log_det.contiguous()
        given = d_out.contiguous(), g_log_det, blocks, kept, calls
        if route.dispatched:
            d_x, gradients = _gradients_by_ops(route, *given, needs)
        else:
            d_x, gradients = extension().autoregressive_flow_steps_bwd(*given, ctx.needs_input_grad[1], needs)
        return None, d_x, *keep_needed(gradients, ctx.needs_input_grad[2:])


def autoregressive_flow_steps(
    z: Tensor, steps: Sequence[Step], kind: str, log_det_map: bool, impl: str
) -> tuple[Tensor, Tensor] | None:
    """What the steps make of ``z`` one after another, and the sum of their ``log_det``.

    None where nothing needs gradients, and unless the C++ kernels take all tensors as they are.
    """
    calls: list[NetworkCall] = []
    tensors: list[Tensor] = []
    for term, parameters, structure in steps:
        fields = structure_fields(structure, kind)
        # Points of every step have the layout of the first one.
        known = recognise(z, term, parameters, structure, kind, fields, log_det_map, impl)
        if known is None:
            return None
        calls.append(known[0])
        tensors += known[1]
    if not needs_grad(z, *tensors):
        return None
    found: tuple[Tensor, Tensor] = apply(_AutoregressiveFlowSteps, calls, z, *tensors)
    return found
