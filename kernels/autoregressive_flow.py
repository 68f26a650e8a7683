"""A whole masked network, alone or with the affine step that it parametrises, in one call: forward and all gradients.

Each layer is a launch: biases, the context's term, residual sums and activations belong to it. On the way back the
slope of the activation belongs to the product that gives its gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..structure.kept_activations import KeptActivations, NetworkForm
from ._affine import inside_clamp, scale_of, slopes_of
from ._launch import AotCase, compute_dtype, launch, meta
from ._tiles import ceil_div, row_tile, vector_width
from .autoregressive_flow_gradients import TOGETHER, LayerGradients, multiply_all_gradients
from .masked_linear import masked_layer
from .masked_linear_gradients import masked_layer_bwd_x


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


@triton.jit(do_not_specialize=["n_rows"])
def _autoregressive_flow_bwd_kernel(
    d_z_ptr, d_params_ptr, d_out_ptr, d_log_det_ptr, z_ptr, params_ptr,
    n_rows, D, stride_z, stride_params, param_stride, feature_stride,
    KIND: tl.constexpr, SHARES: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """One program owns BLOCK_N rows, BLOCK_D columns.

    d_z = a d_out,  d_m = c d_out,  d_s = (a z d_out + d_log_det) (log a)' + m d_out c'.
    What comes back through the network is added to d_z by the first layer's product.
    """
    dtype: tl.constexpr = d_log_det_ptr.dtype.element_ty
    out_dtype: tl.constexpr = d_z_ptr.dtype.element_ty
    column_blocks = tl.cdiv(D, BLOCK_D)
    row = (tl.program_id(0) // column_blocks).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)[:, None]
    column = (tl.program_id(0) % column_blocks) * BLOCK_D + tl.arange(0, BLOCK_D)[None, :]
    mask = (row < n_rows) & (column < D)
    at_params = row * stride_params + column * feature_stride
    d_out = tl.load(d_out_ptr + row * D + column, mask, 0.0).to(dtype)
    if KIND == "location_only":
        d_z, d_m = d_out, d_out
    else:
        if SHARES:
            d_log_det = tl.load(d_log_det_ptr + row * D + column, mask, 0.0)
        else:
            d_log_det = tl.load(d_log_det_ptr + row, row < n_rows, 0.0)
        z = tl.load(z_ptr + row * stride_z + column, mask, 0.0).to(dtype)
        m = tl.load(params_ptr + at_params, mask, 0.0).to(dtype)
        s = tl.load(params_ptr + at_params + param_stride, mask, 0.0).to(dtype)
        _, a, c = scale_of(s, KIND)
        d_log_a, d_c = slopes_of(s, a, c, KIND)
        d_z, d_m = d_out * a, d_out * c
        d_s = inside_clamp((d_z * z + d_log_det) * d_log_a + m * d_out * d_c, s, KIND)
        tl.store(d_params_ptr + at_params + param_stride, d_s.to(out_dtype), mask)
    tl.store(d_params_ptr + at_params, d_m.to(out_dtype), mask)
    tl.store(d_z_ptr + row * D + column, d_z.to(out_dtype), mask)


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


def _strides(d: int, form: NetworkForm) -> tuple[int, int]:
    """From a feature's shift to its scale logit, and from a feature's shift to the next one's."""
    if form.kind == "location_only":
        return 0, 1
    return (1, 2) if form.interleaved else (d, 1)


def _views(memory: Tensor, z: Tensor, degrees: Sequence[Tensor], form: NetworkForm) -> KeptActivations:
    return KeptActivations.within(memory, z.shape[0], z.dtype, [t.shape[0] for t in degrees], form)


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
    kept = None if saved is None else _views(saved, z, degrees, form)
    params = _run_layers(z, context_term, weights, biases, weight_scales, degrees, form, kept)
    if form.kind is None:
        return params, z.new_empty(0, dtype=dtype), saved
    out, log_det = z.new_empty((n, d)), z.new_empty((n, d) if log_det_map else n, dtype=dtype)
    tile = row_tile(n, d, vector_width(z.dtype, d))
    launch(
        _autoregressive_flow_fwd_kernel, ceil_div(n, tile.rows),
        out, log_det, z, params, n, d, z.stride(0), params.stride(0), *_strides(d, form),
        KIND=form.kind, SHARES=log_det_map, BLOCK_N=tile.rows, BLOCK_D=tile.columns, num_warps=tile.warps,
    )  # fmt: skip
    return out, log_det, saved


class Gradients(NamedTuple):
    """The gradients of a step. Those of the layers are empty lists where they are not wanted."""

    d_z: Tensor
    d_context_term: Tensor
    d_weights: list[Tensor]
    d_biases: list[Tensor | None]
    d_weight_scales: list[Tensor | None]


def _send_back(
    d_params: Tensor,
    d_z: Tensor | None,
    weights: Sequence[Tensor],
    weight_scales: Sequence[Tensor | None],
    degrees: Sequence[Tensor],
    form: NetworkForm,
    kept: KeptActivations,
) -> tuple[Tensor, list[Tensor]]:
    """The gradient of the points, with `d_z` added, and those of each layer before its activation."""
    hidden, d_pre = len(weights) - 1, [d_params]
    names = form.activations(hidden)
    for layer in range(hidden, 0, -1):
        # The gradient of a residual sum is also that of the sum before it.
        added = d_pre[1] if form.residual and layer % 2 == 1 and layer < hidden else None
        pre = kept.before[layer - 1]
        d_pre.insert(0, masked_layer_bwd_x(
            d_pre[0], weights[layer], weight_scales[layer], degrees[layer], degrees[layer + 1],
            kept.values[layer - 1] if pre is None else pre, added, names[layer - 1],
        ))  # fmt: skip
    first = (d_pre[0], weights[0], weight_scales[0], degrees[0], degrees[1])
    return masked_layer_bwd_x(*first, None, d_z, "identity"), d_pre


def autoregressive_flow_bwd(
    d_out: Tensor,
    d_log_det: Tensor,
    saved: Tensor,
    z: Tensor,
    weights: Sequence[Tensor],
    has_bias: Sequence[bool],
    weight_scales: Sequence[Tensor | None],
    degrees: Sequence[Tensor],
    form: NetworkForm,
    of_layers: bool,
) -> Gradients:
    """All gradients; those of weights, biases and factors if `of_layers`. d_out and d_log_det are contiguous."""
    kept, (n, d) = _views(saved, z, degrees, form), z.shape
    d_z, d_params = None, d_out
    if kept.params is not None:
        d_z, d_params = z.new_empty((n, d)), z.new_empty(kept.params.shape)
        tile = row_tile(n, d, vector_width(z.dtype, d))
        launch(
            _autoregressive_flow_bwd_kernel, ceil_div(n, tile.rows) * ceil_div(d, tile.columns),
            d_z, d_params, d_out, d_log_det, z, kept.params,
            n, d, z.stride(0), d_params.stride(0), *_strides(d, form),
            KIND=form.kind, SHARES=d_log_det.dim() == 2,
            BLOCK_N=tile.rows, BLOCK_D=tile.columns, num_warps=tile.warps,
        )  # fmt: skip
    d_z, d_pre = _send_back(d_params, d_z, weights, weight_scales, degrees, form, kept)
    found, inputs = list[LayerGradients](), [z, *kept.values]
    for first in range(0, len(weights) if of_layers else 0, TOGETHER):
        some = slice(first, first + TOGETHER)
        found += multiply_all_gradients(
            inputs[some], d_pre[some], weights[some], has_bias[some], weight_scales[some],
            degrees[first : first + TOGETHER + 1],
        )  # fmt: skip
    d_weights, d_biases, d_scales, *_ = map(list, zip(*found, strict=True)) if found else ([], [], [])
    return Gradients(d_z, d_pre[0], d_weights, d_biases, d_scales)


def aot_cases() -> list[AotCase]:
    cases = []
    for dtype, d, hidden, kind, activation, scaled, residual, shares in (
        (torch.float32, 64, 2, "gated", "elu", False, False, True),
        (torch.bfloat16, 64, 2, "gated", "elu", False, False, False),
        (torch.bfloat16, 63, 3, "exp", "silu", True, True, False),
    ):
        n, widths = 4096, [d, *[512] * hidden, 2 * d]
        degrees = [meta(width, dtype=torch.int64) for width in widths]
        weights = [meta(o, i, dtype=dtype) for i, o in pairwise(widths)]
        biases = [meta(o, dtype=dtype) for o in widths[1:]]
        scales = biases if scaled else [None] * len(weights)
        form = NetworkForm(kind, activation, residual, False)
        z, d_log_det = meta(n, d, dtype=dtype), meta(*((n, d) if shares else (n,)), dtype=compute_dtype(dtype))
        saved = meta(form.count_kept(n, dtype, widths), dtype=compute_dtype(dtype))
        name = f"{str(dtype)[6:]}, {d}, {kind}, {activation}{', residual' if residual else ''}"
        backward = (z, d_log_det, saved, z, weights, [True] * len(weights), scales)
        cases += [
            AotCase(name, autoregressive_flow_fwd, (z, None, weights, biases, scales, degrees, form, True, shares)),
            AotCase(name, autoregressive_flow_bwd, (*backward, degrees, form, True)),
        ]
    return cases
