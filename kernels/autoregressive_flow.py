"""A whole masked network, alone or with the affine step that it parametrises, in one call.

Each layer is a launch: biases, the context's term, residual sums and activations belong to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..structure.kept_activations import KeptActivations, NetworkForm
from ._affine import scale_of
from ._launch import AotCase, Plan, by_shape, compute_dtype, meta
from ._tiles import ceil_div, row_tile, vector_width
from .autoregressive_flow_gradients import autoregressive_flow_bwd, strides_of, views_of
from .masked_linear import masked_layer

# The gradients have a module of their own; callers find them beside the step.
__all__ = ["aot_cases", "autoregressive_flow_bwd", "autoregressive_flow_fwd"]


@triton.jit(do_not_specialize=["n_rows"])
def _autoregressive_flow_fwd_kernel(
    out_ptr, log_det_ptr, z_ptr, params_ptr, n_rows, D, stride_z, stride_params, param_stride, feature_stride,
    KIND: tl.constexpr, SHARES: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """One program owns BLOCK_N rows, all columns.

    out = a(s) z + c(s) m,  log_det = sum(log a(s)), with m and s as the network's output has them.
    With SHARES log_det has the summands. The backward pass keeps z and the network's output.
    """
    dtype: tl.constexpr = log_det_ptr.dtype.element_ty
    row = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    exists, at_row = row < n_rows, row[:, None]
    total = tl.zeros((BLOCK_N, BLOCK_D), dtype)
    for start in range(0, D, BLOCK_D):
        column = start + tl.arange(0, BLOCK_D)[None, :]
        mask = exists[:, None] & (column < D)
        m_ptrs = params_ptr + at_row * stride_params + column * feature_stride
        z = tl.load(z_ptr + at_row * stride_z + column, mask, 0.0).to(dtype)
        m = tl.load(m_ptrs, mask, 0.0).to(dtype)
        if KIND == "location_only":
            out = z + m
            log_a = tl.zeros((BLOCK_N, BLOCK_D), dtype)
        else:
            s = tl.load(m_ptrs + param_stride, mask, 0.0).to(dtype)
            log_a, a, c = scale_of(s, KIND)
            out = a * z + c * m
        if SHARES:
            tl.store(log_det_ptr + at_row * D + column, log_a, mask)
        elif KIND != "location_only":
            total += tl.where(mask, log_a, 0.0)
        tl.store(out_ptr + at_row * D + column, out.to(out_ptr.dtype.element_ty), mask)
    if not SHARES:
        tl.store(log_det_ptr + row, tl.sum(total, 1), exists)


def _run_layers(
    x: Tensor,
    context_term: Tensor | None,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    weight_scales: Sequence[Tensor | None],
    degrees: Sequence[Tensor],
    form: NetworkForm,
    kept: KeptActivations | None,
) -> Tensor:
    """The output of the network; `kept` receives what the backward pass reads."""
    h, stream, hidden = x, context_term, len(weights) - 1
    for layer, name in enumerate(form.activations(hidden)):
        joins = form.residual and layer % 2 == 0
        y, pre = (None, None) if kept is None else (kept.values[layer], kept.before[layer])
        h, before = masked_layer(
            h, weights[layer], biases[layer], weight_scales[layer], stream if joins or layer == 0 else None,
            degrees[layer], degrees[layer + 1], name, pre is not None or (joins and layer < hidden - 1), y, pre,
        )  # fmt: skip
        if joins:
            stream = before
    last = (h, weights[hidden], biases[hidden], weight_scales[hidden], None, degrees[hidden], degrees[hidden + 1])
    return masked_layer(*last, "identity", False, None if kept is None else kept.params, None)[0]


def autoregressive_flow_fwd(
    z: Tensor,
    context_term: Tensor | None,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    weight_scales: Sequence[Tensor | None],
    degrees: Sequence[Tensor],
    form: NetworkForm,
    keep: bool,
    log_det_map: bool = False,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The step's point (N, D) and log-determinant, or the network's output and nothing; what backward reads.

    The log-determinant is (N,), with `log_det_map` (N, D): each feature's share.
    """
    (n, d), dtype = z.shape, compute_dtype(z.dtype)
    saved = z.new_empty(form.count_kept(n, z.dtype, [t.shape[0] for t in degrees]), dtype=dtype) if keep else None
    kept = None if saved is None else views_of(saved, z, degrees, form)
    params = _run_layers(z, context_term, weights, biases, weight_scales, degrees, form, kept)
    if form.kind is None:
        return params, z.new_empty(0, dtype=dtype), saved
    out, log_det = z.new_empty((n, d)), z.new_empty((n, d) if log_det_map else n, dtype=dtype)
    plan = _plan(z.get_device(), z.dtype, n, d, z.stride(0), params.stride(0), form, log_det_map)
    plan.launch(out, log_det, z, params)
    return out, log_det, saved


@by_shape
def _plan(
    device: int,
    dtype: torch.dtype,
    n: int,
    d: int,
    stride_z: int,
    stride_params: int,
    form: NetworkForm,
    shares: bool,
) -> Plan:
    tile = row_tile(n, d, vector_width(dtype, d))
    return Plan(
        device, _autoregressive_flow_fwd_kernel, ceil_div(n, tile.rows),
        (n, d, stride_z, stride_params, *strides_of(d, form)),
        KIND=form.kind, SHARES=shares, BLOCK_N=tile.rows, BLOCK_D=tile.columns, num_warps=tile.warps,
    )  # fmt: skip


def aot_cases() -> list[AotCase]:
    cases = []
    for dtype, d, hidden, kind, activation, scaled, residual, shares in (
        (torch.float32, 64, (1920, 1920), "gated", "elu", False, False, True),
        (torch.bfloat16, 64, (1920, 1920), "gated", "elu", False, False, False),
        (torch.bfloat16, 63, (512, 512, 512), "exp", "silu", True, True, False),
    ):
        n, widths = 16384, [d, *hidden, 2 * d]
        degrees = [meta(width, dtype=torch.int64) for width in widths]
        weights = [meta(o, i, dtype=dtype) for i, o in pairwise(widths)]
        biases = [meta(o, dtype=dtype) for o in widths[1:]]
        scales = biases if scaled else [None] * len(weights)
        form = NetworkForm(kind, activation, residual, False)
        z = meta(n, d, dtype=dtype)
        name = f"{str(dtype)[6:]}, {d}, {kind}, {activation}{', residual' if residual else ''}"
        network = (z, None, weights, biases, scales, degrees, form)
        cases.append(AotCase(name, autoregressive_flow_fwd, (*network, True, shares)))
    return cases
