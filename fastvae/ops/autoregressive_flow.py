"""A whole masked network, alone or with the affine step it parametrises, in one call of the extension.

On a GPU the network is a chain of :func:`fastvae.functional.masked_linear`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import backend
from ..reference import made as reference
from ..reference.made import MadeParameters
from ..reference.masked_linear import ACTIVATIONS, row_factors
from ..structure import MadeStructure
from . import _checks
from ._library import apply, define, empty, extension, needs_grad, once_differentiable
from ._network import LANES, check_kind, check_network, layer_fields, saved_rows, structure_fields
from ._network_call import NetworkCall, OptionalTensors, Tensors, factors, prepared, save_network, saved_network
from .affine_flow import affine_flow
from .masked_linear import masked_linear, masked_norm


def computed(tensors: OptionalTensors, dtype: torch.dtype) -> Any:
    """``tensors``, all of ``dtype``, in the dtype that the extension computes in."""
    if dtype is torch.float32 or dtype is torch.float64:
        return tensors
    return [None if t is None else t.float() for t in tensors]


def all_layer_fields(
    weights: Tensors, biases: OptionalTensors, scales: OptionalTensors, degrees: Tensors, norms: OptionalTensors
) -> list[int]:
    fields: list[int] = []
    for i, (w, b, s, norm) in enumerate(zip(weights, biases, scales, norms, strict=True)):
        fields += layer_fields(w, b, s, degrees[i], degrees[i + 1], norm)
    return fields


def saved_shape(n: int, degrees: Tensors, structure: Sequence[int]) -> tuple[int, int, int]:
    widths = [d.shape[0] for d in degrees]
    return (n + LANES - 1) // LANES, saved_rows(widths, structure[2], bool(structure[4])), LANES


def fwd_cpu(
    entry: str,
    x: Tensor,
    context_term: Tensor | None,
    weights: Tensors,
    biases: OptionalTensors,
    scales: OptionalTensors,
    degrees: Tensors,
    structure: Sequence[int],
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Runs ``entry``, the step or its inverse, which take the same arguments."""
    n, dtype, alone = x.shape[0], x.dtype, structure[3] == 0
    point, context = computed((x, context_term), dtype)
    w, b, s = (computed(part, dtype) for part in (weights, biases, scales))  # alive until the kernel has run
    out = empty(point, (n, degrees[-1].shape[0] if alone else degrees[0].shape[0]))
    log_det = point.new_empty(0 if alone else n)
    saved = empty(point, saved_shape(n, degrees, structure) if keep else (0,))
    getattr(extension(), entry)(
        point.dtype == torch.float64, all_layer_fields(w, b, s, degrees, [None] * len(w)), list(structure),
        point.data_ptr(), point.stride(0), 0 if context is None else context.data_ptr(), out.data_ptr(),
        log_det.data_ptr(), saved.data_ptr() if keep else 0, n,
    )  # fmt: skip
    return _checks.cast(out, dtype), log_det, saved


def fwd_fake(
    x: Tensor,
    context_term: Any,
    weights: Any,
    biases: Any,
    scales: Any,
    degrees: Tensors,
    structure: Sequence[int],
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    n, alone = x.shape[0], structure[3] == 0
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    out = x.new_empty((n, degrees[-1].shape[0] if alone else degrees[0].shape[0]))
    saved = saved_shape(n, degrees, structure) if keep else (0,)
    return out, x.new_empty(0 if alone else n, dtype=wide), x.new_empty(saved, dtype=wide)


def _fwd_cpu(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    return fwd_cpu("autoregressive_flow_fwd", *args)


Gradients = tuple[Tensor, Tensor, list[Tensor], list[Tensor], list[Tensor]]


def _bwd_cpu(
    d_out: Tensor,
    d_log_det: Tensor,
    saved: Tensor,
    weights: Tensors,
    scales: OptionalTensors,
    norms: OptionalTensors,
    degrees: Tensors,
    structure: Sequence[int],
    with_biases: Sequence[bool],
    with_context: bool,
    of_layers: bool,
) -> Gradients:
    n, dtype = d_out.shape[0], weights[0].dtype
    g = _checks.compute(d_out)
    w, s, norms = (computed(part, dtype) for part in (weights, scales, norms))
    d_x = empty(g, (n, degrees[0].shape[0]))
    d_context = empty(g, (n, degrees[1].shape[0])) if with_context else g.new_empty(0)
    d_w, d_b, d_s, targets = [], [], [], [0] * (3 * len(weights))
    if of_layers:
        for i, (weight, has_bias, scale) in enumerate(zip(weights, with_biases, scales, strict=True)):
            d_w.append(empty(g, weight.shape))
            targets[3 * i] = d_w[-1].data_ptr()
            if has_bias:
                d_b.append(g.new_empty(weight.shape[0]))
                targets[3 * i + 1] = d_b[-1].data_ptr()
            if scale is not None:
                d_s.append(g.new_empty(weight.shape[0]))
                targets[3 * i + 2] = d_s[-1].data_ptr()
    extension().autoregressive_flow_bwd(
        g.dtype == torch.float64, all_layer_fields(w, [None] * len(w), s, degrees, norms), list(structure),
        g.data_ptr(), d_log_det.data_ptr(), saved.data_ptr(), d_x.data_ptr(), d_context.data_ptr(), targets, n,
    )  # fmt: skip
    d_w, d_b, d_s = ([_checks.cast(t, dtype) for t in tensors] for tensors in (d_w, d_b, d_s))
    return _checks.cast(d_x, dtype), _checks.cast(d_context, dtype), d_w, d_b, d_s


def _bwd_fake(
    d_out: Tensor,
    d_log_det: Any,
    saved: Tensor,
    weights: Tensors,
    scales: OptionalTensors,
    norms: Any,
    degrees: Tensors,
    structure: Any,
    with_biases: Sequence[bool],
    with_context: bool,
    of_layers: bool,
) -> Gradients:
    n, like = d_out.shape[0], weights[0]
    d_x = like.new_empty((n, degrees[0].shape[0]))
    d_context = like.new_empty((n, degrees[1].shape[0]) if with_context else 0)
    if not of_layers:
        return d_x, d_context, [], [], []
    d_w = [like.new_empty(w.shape) for w in weights]
    d_b = [like.new_empty(w.shape[0]) for w, there in zip(weights, with_biases, strict=True) if there]
    return d_x, d_context, d_w, d_b, [like.new_empty(s.shape) for s in scales if s is not None]


NETWORK = (
    "Tensor? context_term, Tensor[] weights, Tensor?[] biases, Tensor?[] weight_scales, Tensor[] degrees,"
    " SymInt[] structure"
)
FWD = define(
    f"autoregressive_flow_fwd(Tensor z, {NETWORK}, bool keep) -> (Tensor out, Tensor log_det, Tensor saved)",
    module="autoregressive_flow", cpu=_fwd_cpu, fake=fwd_fake,
)  # fmt: skip
BWD = define(
    "autoregressive_flow_bwd(Tensor d_out, Tensor d_log_det, Tensor saved, Tensor[] weights, Tensor?[] weight_scales,"
    " Tensor?[] weight_norms, Tensor[] degrees, SymInt[] structure, bool[] with_biases, bool with_context,"
    " bool of_layers)"
    " -> (Tensor d_z, Tensor d_context_term, Tensor[] d_weights, Tensor[] d_biases, Tensor[] d_weight_scales)",
    module="autoregressive_flow", cpu=_bwd_cpu, fake=_bwd_fake,
)  # fmt: skip


def step_gradients(
    ctx: Any,
    d_out: Tensor,
    d_log_det: Tensor,
    saved: Tensor,
    weights: Tensors,
    scales: OptionalTensors,
    norms: OptionalTensors,
) -> tuple[Tensor, OptionalTensors]:
    """Of the step whose call ``ctx`` keeps: those of its point and of the call's tensors."""
    call, needs = ctx.call, ctx.needs_input_grad[2:]
    d_x, d_context, *of_layers = BWD.on("cpp", d_out)(
        d_out, d_log_det, saved, weights, scales, norms, call.degrees, call.fields, call.with_biases,
        *call.wanted(needs),
    )  # fmt: skip
    return d_x, call.gradients(needs, d_context, *of_layers)


class _AutoregressiveFlow(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, call: NetworkCall, x: Tensor, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        context_term, w, b, s = call.unflat(tensors)
        s, norms = factors(w, s, call)
        out, log_det, saved = FWD.on("cpp", x)(x, context_term, w, b, s, call.degrees, call.fields, True)
        save_network(ctx, call, saved, w, s, norms)
        return out, log_det

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out: Tensor, d_log_det: Tensor) -> Any:
        d_x, gradients = step_gradients(ctx, d_out.contiguous(), d_log_det.contiguous(), *saved_network(ctx))
        return None, d_x, *gradients


def made(
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
        impl: see :mod:`fastvae.backend`; with Triton each layer is a kernel of its own.

    Returns:
        ``(*, P * D)``, dtype of ``x``.

    Raises:
        TypeError: an argument is no floating-point tensor, or dtypes differ outside autocast.
        ValueError: shapes do not fit, or devices differ.
        RuntimeError: ``impl`` cannot run here.
    """
    return _run(x, context_term, parameters, structure, None, impl)[0]


def autoregressive_flow(
    z: Tensor,
    context_term: Tensor | None,
    parameters: MadeParameters,
    structure: MadeStructure,
    *,
    kind: str = "gated",
    impl: str = "auto",
) -> tuple[Tensor, Tensor]:
    """One autoregressive flow step: the affine map of :func:`fastvae.functional.affine_flow`, whose shift and scale
    logit a masked network makes of z.

    Arguments and errors are those of :func:`made`, with ``kind`` of the affine map.

    Returns:
        The step's output, ``(*, D)``, and its ``log_det``, ``(*)``, float32 (float64 for float64 inputs).
    """
    check_kind(kind, structure)
    return _run(z, context_term, parameters, structure, kind, impl)


def _run(
    x: Tensor,
    context_term: Tensor | None,
    parameters: MadeParameters,
    structure: MadeStructure,
    kind: str | None,
    impl: str,
) -> tuple[Tensor, Tensor]:
    x, context_term, parameters = check_network("x" if kind is None else "z", x, context_term, parameters, structure)
    chosen = backend.resolve(impl, x)
    if chosen == "reference":
        if kind is None:
            return reference.made(x, context_term, parameters, structure), x
        return reference.autoregressive_flow(x, context_term, parameters, structure, kind)
    if chosen == "triton":
        return _layer_by_layer(x, context_term, with_factors(parameters, chosen), structure, kind)
    batch, d = x.shape[:-1], x.shape[-1]
    x, call, tensors = prepared(x, context_term, parameters, structure_fields(structure, kind))
    if needs_grad(x, *tensors):
        out, log_det = apply(_AutoregressiveFlow, call, x, *tensors)
    else:
        context_term, w, b, s = call.unflat(tensors)
        s, _ = factors(w, s, call)
        out, log_det, _ = FWD.on("cpp", x)(x, context_term, w, b, s, call.degrees, call.fields, False)
    width = structure.output_features if kind is None else d
    return _checks.shaped(out, (*batch, width)), log_det if kind is None else _checks.shaped(log_det, batch)


def with_factors(parameters: MadeParameters, impl: str) -> MadeParameters:
    """``parameters`` with gains turned into factors, by the kernels of ``impl``."""
    if not parameters.normalized:
        return parameters
    degrees = parameters.degrees
    assert degrees is not None
    norms = [
        masked_norm(w, in_degrees=degrees[i], out_degrees=degrees[i + 1], impl=impl)
        for i, w in enumerate(parameters.weights)
    ]
    gains = zip(parameters.weight_scales, norms, strict=True)
    return parameters.with_factors([None if gain is None else row_factors(gain, norm) for gain, norm in gains])


def _layer_by_layer(
    x: Tensor,
    context_term: Tensor | None,
    parameters: MadeParameters,
    structure: MadeStructure,
    kind: str | None,
    impl: str = "triton",
) -> tuple[Tensor, Tensor]:
    degrees = parameters.degrees
    assert degrees is not None
    act = ACTIVATIONS[structure.activation]

    def layer(index: int, h: Tensor, activation: str | None = None) -> Tensor:
        return masked_linear(
            h,
            parameters.weights[index],
            parameters.biases[index],
            in_degrees=degrees[index],
            out_degrees=degrees[index + 1],
            activation=activation,
            weight_scale=parameters.weight_scales[index],
            impl=impl,
        )

    last = len(structure.hidden_degrees)
    fused = None if structure.residual or context_term is not None else structure.activation
    h = layer(0, x, fused)
    if context_term is not None:
        h = h + context_term
    if structure.residual:
        for index in range(1, last, 2):
            h = h + layer(index + 1, layer(index, act(h), structure.activation))
    else:
        if fused is None:
            h = act(h)
        for index in range(1, last):
            h = layer(index, h, structure.activation)
    params = layer(last, h)
    if kind is None:
        return params, x
    split = structure.split(params)
    scale_logit = None if kind == "location_only" else split[..., 1, :]
    return affine_flow(x, split[..., 0, :], scale_logit, kind=kind, impl=impl)
