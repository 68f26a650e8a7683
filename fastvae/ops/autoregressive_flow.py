"""A whole masked network, alone or with the affine step it parametrises, in one call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..backend import Route
from ..precision import compute_dtype, is_autocasting
from ..reference import made as reference
from ..reference.made import MadeParameters
from ..structure import MadeStructure
from . import _layout
from ._library import (
    Differentiable,
    apply,
    define,
    extension,
    needs_grad,
    needs_of_points,
    reference_gradients,
    with_reference,
    zeros_for_rows,
)
from ._network import (
    NetworkFields,
    check_network,
    count_saved_on,
    for_autocast,
    route_network,
    structure_fields,
)
from ._network_call import (
    NetworkCall,
    OptionalTensors,
    Tensors,
    keep_needed,
    prepare,
    read_saved,
    rebuild_network,
    recognise,
    save_network,
)
from ._network_contract import check_forward, check_gradient
from ._network_triton import run_backward, run_forward
from .affine_flow import affine_flow


def fwd_for_dispatcher(
    launcher: Callable[..., tuple[Tensor, Tensor, Tensor | None]], *args: Any
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The launcher for the dispatcher: ``saved`` is flat, since a compiler would ask whether there is one block."""
    out, log_det, saved = launcher(*args)
    return out, log_det, None if saved is None else saved.view(-1)


def fwd_cpu(
    inverse: bool,
    x: Tensor,
    tensors: Tensors,
    present: Sequence[bool],
    degrees: Tensors,
    structure: Sequence[int],
    keep: bool,
    log_det_map: bool,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Runs the step or its ``inverse``, which take the same arguments."""
    dtype = x.dtype
    if dtype is not torch.float32 and dtype is not torch.float64:
        x, tensors = _layout.to_compute_dtype(x), _layout.all_to_compute_dtype(tensors, dtype)
    out, log_det, saved = extension().autoregressive_flow_fwd(
        inverse, x, tensors, present, degrees, structure, keep, log_det_map
    )
    return _layout.cast(out, dtype), log_det, saved


def fwd_fake(
    x: Tensor, tensors: Any, present: Any, degrees: Tensors, structure: Sequence[int], keep: bool, log_det_map: bool
) -> tuple[Tensor, Tensor, Tensor]:
    n, fields, wide = x.shape[0], NetworkFields(*structure), compute_dtype(x.dtype)
    alone = fields.kind == 0
    out = x.new_empty((n, degrees[-1].shape[0] if alone else degrees[0].shape[0]))
    saved = x.new_empty(0)
    if keep:
        widths = [d.shape[0] for d in degrees]
        saved = x.new_empty(count_saved_on(x.device, n, x.dtype, widths, structure), dtype=wide)
    shape = (0,) if alone else out.shape if log_det_map else (n,)
    return out, x.new_empty(shape, dtype=wide), saved


def _fwd_cpu(*args: Any) -> tuple[Tensor, Tensor, Tensor | None]:
    return fwd_cpu(False, *args)


def bwd_cpu(name: str) -> Callable[..., tuple[Tensor | None, OptionalTensors]]:
    """The launcher of the extension's function ``name``: the gradients of the step, or of its inverse."""

    def run(
        d_out: Tensor, d_log_det: Tensor, saved: Tensor, kept: Tensors, *others: Any
    ) -> tuple[Tensor | None, OptionalTensors]:
        dtype, launch = d_out.dtype, getattr(extension(), name)
        if dtype is torch.float32 or dtype is torch.float64:
            found: tuple[Tensor | None, OptionalTensors] = launch(d_out, d_log_det, saved, kept, *others)
            return found
        g, *kept = _layout.all_to_compute_dtype((d_out, *kept), dtype)
        d_x, gradients = launch(g, d_log_det, saved, kept, *others)
        return None if d_x is None else d_x.to(dtype), [None if g is None else g.to(dtype) for g in gradients]

    return run


def bwd_fake(
    d_out: Tensor,
    d_log_det: Any,
    saved: Any,
    kept: Any,
    present: Sequence[bool],
    normalized: Any,
    degrees: Tensors,
    structure: Any,
    needs: Sequence[bool],
) -> tuple[Tensor, list[Tensor]]:
    n, (features, *widths) = d_out.shape[0], (d.shape[0] for d in degrees)
    count = len(widths)
    shapes: list[tuple[int, ...]] = [(o, i) for o, i in zip(widths, (features, *widths), strict=False)]
    shapes += [(width,) for width, there in zip((*widths, *widths), present[1:], strict=True) if there]
    of_layers = any(need for i, need in enumerate(needs) if not (present[0] and i == count))
    gradients = [d_out.new_empty(shape if of_layers else 0) for shape in shapes]
    if present[0]:
        gradients.insert(count, d_out.new_empty((n, widths[0]) if needs[count] else 0))
    return d_out.new_empty((n, features)), gradients


# `tensors`: weights, and what is `present` of the context's term, biases, and factors of the weights' rows.
NETWORK = "Tensor[] tensors, bool[] present, Tensor[] degrees, SymInt[] structure"
# With `log_det_map` log_det has every feature's share, (N, D), and so has its gradient.
FWD = define(
    f"autoregressive_flow_fwd(Tensor z, {NETWORK}, bool keep, bool log_det_map)"
    " -> (Tensor out, Tensor log_det, Tensor saved)",
    tensors="z[N,D]r", more=check_forward,
    module="autoregressive_flow", cpu=_fwd_cpu, fake=fwd_fake, adapt=run_forward, dispatched=fwd_for_dispatcher,
)  # fmt: skip
# `kept`: weights, factors and, where those come from gains, norms of rows. On a GPU they are the forward pass's tensors
# with gains turned into factors, norms, and the input of the network. `needs`: of each tensor of the forward pass
# whether its gradient is wanted; those of all layers are computed where one of them is.
GRADIENT_ARGUMENTS = (
    "Tensor d_out, Tensor d_log_det, Tensor saved, Tensor[] kept, bool[] present, bool normalized, Tensor[] degrees,"
    " SymInt[] structure, bool[] needs"
)
BWD = define(
    f"autoregressive_flow_bwd({GRADIENT_ARGUMENTS}) -> (Tensor d_z, Tensor[] d_tensors)",
    tensors="d_out[N,O]c", more=check_gradient,
    module="autoregressive_flow", cpu=bwd_cpu("autoregressive_flow_bwd"), fake=bwd_fake, adapt=run_backward,
)  # fmt: skip


def step_gradients(
    ctx: Any,
    launch: Callable[..., tuple[Tensor | None, OptionalTensors]],
    d_out: Tensor,
    d_log_det: Tensor | None,
    *more: str | bool,
) -> tuple[Tensor | None, ...]:
    """The gradients of what ``ctx`` keeps, by the op ``launch``: of the point, and of the tensors of the call.

    ``more`` are further arguments of the op.
    """
    call, needs, (saved, kept) = ctx.call, ctx.needs_input_grad[2:], read_saved(ctx)
    if d_log_det is None:
        d_log_det = zeros_for_rows(d_out) if call.kind is not None else d_out.new_empty(0)
    d_x, gradients = launch(
        d_out.contiguous(), d_log_det.contiguous(), saved, kept, call.present, call.normalized, call.degrees,
        call.fields, needs, *more,
    )  # fmt: skip
    return d_x, *keep_needed(gradients, needs)


def _rebuild_step(ctx: Any) -> Differentiable:
    def step(x: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
        if ctx.call.kind is None:
            *network, _kind, _log_det_map = others
            # Without a step there is no log-determinant: the kernels hand out an empty one.
            return reference.masked_network(x, *network), x.new_zeros(0)
        return reference.autoregressive_flow(x, *others)

    return rebuild_network(ctx, step)


class _AutoregressiveFlow(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, call: NetworkCall, x: Tensor, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        used, kept = call.with_factors(tensors)
        out, log_det, saved = FWD.on(call.route)(
            x, used, call.present, call.degrees, call.fields, True, call.log_det_map
        )
        if call.route.impl == "triton":
            kept = call.keep_all(used, kept, x)
        save_network(ctx, call, saved, kept, x, tensors)
        return out, log_det

    @staticmethod
    @with_reference(_rebuild_step)
    def backward(ctx: Any, route: Route, d_out: Tensor | None, d_log_det: Tensor | None) -> Any:
        if d_out is None:
            # The log-determinant alone does not depend on how large the points are.
            return reference_gradients(_rebuild_step, ctx, (None, d_log_det))
        of_points = needs_of_points(route, ctx.needs_input_grad[1])
        return None, *step_gradients(ctx, BWD.on(route), d_out, d_log_det, *of_points)


def masked_network(
    x: Tensor,
    context_term: Tensor | None,
    parameters: MadeParameters,
    structure: MadeStructure,
    *,
    impl: str = "auto",
) -> Tensor:
    """Parameters of the features ``x`` out of a masked network, see :class:`fastvae.structure.MadeStructure`.

    Args:
        x: features, ``(*, D)``.
        context_term: what is added to the first layer before its activation, ``(*, hidden width)``, or None.
        parameters: weights, biases and row factors of the layers.
        structure: sizes and degrees.
        impl: see :mod:`fastvae.backend`.

    Returns:
        ``(*, P * D)``, dtype of ``x``.

    Raises:
        TypeError: an argument is no floating-point tensor, or dtypes differ outside autocast.
        ValueError: shapes do not fit, or devices differ.
        RuntimeError: ``impl`` cannot run here.

    Note:
        Under autocast the network runs in its dtype, as layers of :class:`torch.nn.Linear` do.
    """
    return _run(x, context_term, parameters, structure, None, False, impl)[0]


def autoregressive_flow(
    z: Tensor,
    context_term: Tensor | None,
    parameters: MadeParameters,
    structure: MadeStructure,
    *,
    kind: str = "gated",
    log_det_map: bool = False,
    impl: str = "auto",
) -> tuple[Tensor, Tensor]:
    """One autoregressive flow step: the affine map of :func:`fastvae.functional.affine_flow`. A masked network of z
    gives its shift and scale logit.

    Arguments and errors are those of :func:`masked_network`, with ``kind`` and ``log_det_map`` of the affine map. Under
    autocast the step
    runs in the widest dtype of its tensors, on a GPU with the network's products in autocast's dtype.

    Returns:
        The step's output, ``(*, D)``, and its ``log_det``, ``(*)``, with ``log_det_map`` every feature's share of it,
        ``(*, D)``, float32 (float64 for float64 inputs).
    """
    return _run(z, context_term, parameters, structure, kind, log_det_map, impl)


def _run(
    x: Tensor,
    context_term: Tensor | None,
    parameters: MadeParameters,
    structure: MadeStructure,
    kind: str | None,
    log_det_map: bool,
    impl: str,
) -> tuple[Tensor, Tensor]:
    fields = structure_fields(structure, kind)
    if kind is None and torch._C._is_any_autocast_enabled() and is_autocasting(x.device.type):
        x, context_term, parameters = for_autocast(x, context_term, parameters)
    known = recognise(x, context_term, parameters, structure, kind, fields, log_det_map, impl)
    if known is not None:
        return _step(x, *known)
    name = "x" if kind is None else "z"
    route, x, context_term, parameters = route_network(name, impl, x, context_term, parameters)
    if route.impl == "triton" and kind is not None and is_autocasting(x.device.type):
        return _step_of_products(x, context_term, parameters, structure, kind, log_det_map, impl)
    x, context_term, parameters = check_network(name, x, context_term, parameters, structure)
    if route.impl == "reference":
        if kind is None:
            return reference.masked_network(x, context_term, parameters, structure), x
        return reference.autoregressive_flow(x, context_term, parameters, structure, kind, log_det_map)
    batch, d = x.shape[:-1], x.shape[-1]
    out, log_det = _step(*prepare(x, context_term, parameters, structure, kind, fields, log_det_map, route))
    if kind is None:
        return _layout.to_shape(out, (*batch, structure.output_features)), log_det
    return _layout.to_shape(out, (*batch, d)), _layout.to_shape(log_det, (*batch, d) if log_det_map else batch)


def _step(x: Tensor, call: NetworkCall, tensors: Tensors) -> tuple[Tensor, Tensor]:
    if needs_grad(x, *tensors):
        return apply(_AutoregressiveFlow, call, x, *tensors)
    used, _ = call.with_factors(tensors)
    return FWD.on(call.route)(x, used, call.present, call.degrees, call.fields, False, call.log_det_map)[:2]


def _step_of_products(
    z: Tensor,
    context_term: Tensor | None,
    parameters: MadeParameters,
    structure: MadeStructure,
    kind: str,
    log_det_map: bool,
    impl: str,
) -> tuple[Tensor, Tensor]:
    """The step under a GPU's autocast: the network in its dtype, the affine map in the widest."""
    params = structure.split(masked_network(z, context_term, parameters, structure, impl=impl))
    scale_logit = None if kind == "location_only" else params[..., 1, :]
    return affine_flow(z, params[..., 0, :], scale_logit, kind=kind, log_det_map=log_det_map, impl=impl)
