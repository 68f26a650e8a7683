"""The gradients of a whole masked network, alone or with the affine step that it parametrises.

The slope of an activation belongs to the product that gives its gradient, and one launch multiplies the gradients of
several layers' weights: alone each would leave most of a device idle.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..structure.kept_activations import KeptActivations, NetworkForm
from ._affine import inside_clamp, scale_of, slopes_of
from ._launch import AotCase, Plan, by_shape, compute_dtype, meta
from ._matrix import choose_tile, launch_options, precision
from ._tiles import ceil_div, row_tile, split_sum, vector_width
from .masked_linear_gradients import add_parts, masked_layer_bwd_x

# Layers whose weight gradients share a launch.
_TOGETHER = 3
# Rows that a program multiplies at least, where sums over rows are split: parts cost a further launch.
_LEAST_ROWS = 256
_FAR = tl.constexpr(1 << 62)


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


@triton.jit
def _multiply_gradients(
    program, d_weight_ptr, d_bias_ptr, d_pre_ptr, x_ptr, in_degrees_ptr, out_degrees_ptr,
    n_rows, rows_per_split, n_in, n_out, stride_x,
    HAS_BIAS: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_I: tl.constexpr,
):  # fmt: skip
    dtype: tl.constexpr = tl.float64 if x_ptr.dtype.element_ty == tl.float64 else tl.float32
    out_blocks, in_blocks = tl.cdiv(n_out, BLOCK_O), tl.cdiv(n_in, BLOCK_I)
    block = program % (out_blocks * in_blocks)
    split = (program // (out_blocks * in_blocks)).to(tl.int64)
    o = (block // in_blocks) * BLOCK_O + tl.arange(0, BLOCK_O)
    i = (block % in_blocks) * BLOCK_I + tl.arange(0, BLOCK_I)
    in_degree, out_degree = tl.load(in_degrees_ptr + i, i < n_in, 0), tl.load(out_degrees_ptr + o, o < n_out, 0)
    lowest = tl.min(tl.where(i < n_in, in_degree, _FAR), 0)
    most = tl.max(tl.where(o < n_out, out_degree, -_FAR), 0)
    begin = split * rows_per_split
    rows = tl.minimum(n_rows - begin, rows_per_split).to(tl.int32)
    row = tl.arange(0, BLOCK_N)
    d_pre_ptrs = d_pre_ptr + o[:, None] + (begin + row[None, :]) * n_out
    x_ptrs = x_ptr + i[None, :] + (begin + row[:, None]) * stride_x
    acc = tl.zeros((BLOCK_O, BLOCK_I), dtype)
    # Where no weight counts there is nothing to multiply, and only zeros are written.
    for start in range(0, tl.where(lowest <= most, rows, 0), BLOCK_N):
        d_pre = tl.load(d_pre_ptrs, (o < n_out)[:, None] & (row[None, :] < rows - start), 0.0)
        x = tl.load(x_ptrs, (row[:, None] < rows - start) & (i < n_in)[None, :], 0.0)
        acc = tl.dot(d_pre, x, acc, input_precision=PRECISION, out_dtype=dtype)
        d_pre_ptrs += BLOCK_N * n_out
        x_ptrs += BLOCK_N * stride_x
    acc = tl.where(in_degree[None, :] <= out_degree[:, None], acc, 0.0)
    at = (split * n_out + o[:, None]) * n_in + i[None, :]
    owned = (o < n_out)[:, None] & (i < n_in)[None, :]
    tl.store(d_weight_ptr + at, acc.to(d_weight_ptr.dtype.element_ty), owned)
    if HAS_BIAS:
        if block % in_blocks == 0:
            total = tl.zeros((BLOCK_N, BLOCK_O), dtype)
            for start in range(0, rows, BLOCK_N):
                at_row = (begin + start + row)[:, None]
                there = (start + row < rows)[:, None] & (o < n_out)[None, :]
                total += tl.load(d_pre_ptr + at_row * n_out + o[None, :], there, 0.0).to(dtype)
            tl.store(d_bias_ptr + split * n_out + o, tl.sum(total, 0).to(d_bias_ptr.dtype.element_ty), o < n_out)


@triton.jit(do_not_specialize=["n_rows", "rows_per_split", "begin_b", "begin_c"])
def _autoregressive_flow_bwd_weights_kernel(
    a_d_weight_ptr, a_d_bias_ptr, a_d_pre_ptr, a_x_ptr, a_in_degrees_ptr, a_out_degrees_ptr,
    b_d_weight_ptr, b_d_bias_ptr, b_d_pre_ptr, b_x_ptr, b_in_degrees_ptr, b_out_degrees_ptr,
    c_d_weight_ptr, c_d_bias_ptr, c_d_pre_ptr, c_x_ptr, c_in_degrees_ptr, c_out_degrees_ptr,
    a_in, a_out, a_stride_x, b_in, b_out, b_stride_x, c_in, c_out, c_stride_x, n_rows, rows_per_split, begin_b, begin_c,
    LAYERS: tl.constexpr, A_HAS_BIAS: tl.constexpr, B_HAS_BIAS: tl.constexpr, C_HAS_BIAS: tl.constexpr,
    PRECISION: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_I: tl.constexpr,
):  # fmt: skip
    """One program owns BLOCK_O x BLOCK_I weights of one of LAYERS layers, one split of the rows.

    d_weight = sum_n d_pre x where the weight counts, and 0 elsewhere;  d_bias = sum_n d_pre.
    The program of a layer's first inputs sums its bias.
    """
    program = tl.program_id(0)
    if program < begin_b:
        _multiply_gradients(
            program, a_d_weight_ptr, a_d_bias_ptr, a_d_pre_ptr, a_x_ptr, a_in_degrees_ptr, a_out_degrees_ptr,
            n_rows, rows_per_split, a_in, a_out, a_stride_x, A_HAS_BIAS, PRECISION, BLOCK_N, BLOCK_O, BLOCK_I,
        )  # fmt: skip
    if LAYERS > 1:
        if (program >= begin_b) & (program < begin_c):
            _multiply_gradients(
                program - begin_b,
                b_d_weight_ptr, b_d_bias_ptr, b_d_pre_ptr, b_x_ptr, b_in_degrees_ptr, b_out_degrees_ptr,
                n_rows, rows_per_split, b_in, b_out, b_stride_x, B_HAS_BIAS, PRECISION, BLOCK_N, BLOCK_O, BLOCK_I,
            )  # fmt: skip
    if LAYERS > 2:
        if program >= begin_c:
            _multiply_gradients(
                program - begin_c,
                c_d_weight_ptr, c_d_bias_ptr, c_d_pre_ptr, c_x_ptr, c_in_degrees_ptr, c_out_degrees_ptr,
                n_rows, rows_per_split, c_in, c_out, c_stride_x, C_HAS_BIAS, PRECISION, BLOCK_N, BLOCK_O, BLOCK_I,
            )  # fmt: skip


def strides_of(d: int, form: NetworkForm) -> tuple[int, int]:
    """From a feature's shift to its scale logit, and from a feature's shift to the next one's."""
    if form.kind == "location_only":
        return 0, 1
    return (1, 2) if form.interleaved else (d, 1)


def views_of(memory: Tensor, z: Tensor, degrees: Sequence[Tensor], form: NetworkForm) -> KeptActivations:
    return KeptActivations.within(memory, z.shape[0], z.dtype, [t.shape[0] for t in degrees], form)


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


class _LayerGradients(NamedTuple):
    """The gradients of a layer, and what the splits of the rows write in their place."""

    weight: Tensor
    bias: Tensor | None
    scale: Tensor | None
    weight_parts: Tensor | None
    bias_parts: Tensor | None


def _allocate(weight: Tensor, has_bias: bool, scaled: bool, splits: int) -> _LayerGradients:
    o, dtype = weight.shape[0], compute_dtype(weight.dtype)
    return _LayerGradients(
        weight.new_empty(weight.shape),
        weight.new_empty(o) if has_bias else None,
        weight.new_empty(o) if scaled else None,
        weight.new_empty((splits, *weight.shape), dtype=dtype) if splits > 1 or scaled else None,
        weight.new_empty((splits, o), dtype=dtype) if splits > 1 and has_bias else None,
    )


@by_shape
def _plan_weights(
    device: int,
    dtype: torch.dtype,
    multiplied: str,
    n: int,
    sizes: Sequence[tuple[int, int, int]],
    has_bias: Sequence[bool],
    scaled: Sequence[bool],
) -> tuple[Plan, int]:
    """`sizes` are each layer's outputs, inputs, and the stride of its input; the last is how many splits rows have.

    `scaled` decides where the kernel writes: see `_allocate`.
    """
    outputs, features, _ = max(sizes, key=lambda size: size[0] * size[1])
    # Splits of the rows also multiply the programs.
    tile = choose_tile(outputs * max(n // 512, 1), features, dtype, multiplied)
    programs = [tile.programs(o, i) for o, i, _ in sizes]
    splits, rows_per_split = split_sum(n, sum(programs), _LEAST_ROWS)
    missing = _TOGETHER - len(sizes)
    begin_b, begin_c, end = accumulate([count * splits for count in programs] + [0] * missing)
    a_has_bias, b_has_bias, c_has_bias = [*has_bias, *[False] * missing]
    numbers = [number for o, i, stride in sizes for number in (i, o, stride)] + [0] * (3 * missing)
    plan = Plan(
        device, _autoregressive_flow_bwd_weights_kernel, end, (*numbers, n, rows_per_split, begin_b, begin_c),
        LAYERS=len(sizes), A_HAS_BIAS=a_has_bias, B_HAS_BIAS=b_has_bias, C_HAS_BIAS=c_has_bias, PRECISION=multiplied,
        BLOCK_O=tile.rows, BLOCK_I=tile.columns, BLOCK_N=tile.inner, **launch_options(tile.warps, tile.stages),
    )  # fmt: skip
    return plan, splits


def _multiply_all_gradients(
    inputs: Sequence[Tensor],
    d_pre: Sequence[Tensor],
    weights: Sequence[Tensor],
    has_bias: Sequence[bool],
    weight_scales: Sequence[Tensor | None],
    degrees: Sequence[Tensor],
) -> list[_LayerGradients]:
    """The gradients of the weights, biases and factors of up to three layers: one launch, and one a layer for parts."""
    x, scaled = inputs[0], [scale is not None for scale in weight_scales]
    sizes = [(*w.shape, layer_input.stride(0)) for w, layer_input in zip(weights, inputs, strict=True)]
    plan, splits = _plan_weights(
        x.get_device(), x.dtype, precision(x.dtype), x.shape[0], tuple(sizes), tuple(has_bias), tuple(scaled)
    )
    found, tensors = list[_LayerGradients](), list[Tensor | None]()
    for layer, w in enumerate(weights):
        found.append(own := _allocate(w, has_bias[layer], scaled[layer], splits))
        tensors += (
            own.weight if own.weight_parts is None else own.weight_parts,
            own.bias if own.bias_parts is None else own.bias_parts,
            d_pre[layer], inputs[layer], degrees[layer], degrees[layer + 1],
        )  # fmt: skip
    plan.launch(*tensors, *[None] * (6 * (_TOGETHER - len(weights))))
    for layer, own in enumerate(found):
        if own.weight_parts is not None:
            add_parts(
                own.weight, None if own.bias_parts is None else own.bias, own.scale, own.weight_parts, own.bias_parts,
                weights[layer], weight_scales[layer], degrees[layer], degrees[layer + 1],
            )  # fmt: skip
    return found


@by_shape
def _plan_affine(
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
        device, _autoregressive_flow_bwd_kernel, ceil_div(n, tile.rows) * ceil_div(d, tile.columns),
        (n, d, stride_z, stride_params, *strides_of(d, form)),
        KIND=form.kind, SHARES=shares, BLOCK_N=tile.rows, BLOCK_D=tile.columns, num_warps=tile.warps,
    )  # fmt: skip


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
    kept, (n, d) = views_of(saved, z, degrees, form), z.shape
    d_z, d_params = None, d_out
    if kept.params is not None:
        d_z, d_params = z.new_empty((n, d)), z.new_empty(kept.params.shape)
        sizes = n, d, z.stride(0), d_params.stride(0)
        plan = _plan_affine(z.get_device(), z.dtype, *sizes, form, d_log_det.dim() == 2)
        plan.launch(d_z, d_params, d_out, d_log_det, z, kept.params)
    d_z, d_pre = _send_back(d_params, d_z, weights, weight_scales, degrees, form, kept)
    found, inputs = list[_LayerGradients](), [z, *kept.values]
    for first in range(0, len(weights) if of_layers else 0, _TOGETHER):
        some = slice(first, first + _TOGETHER)
        found += _multiply_all_gradients(
            inputs[some], d_pre[some], weights[some], has_bias[some], weight_scales[some],
            degrees[first : first + _TOGETHER + 1],
        )  # fmt: skip
    d_weights, d_biases, d_scales, *_ = map(list, zip(*found, strict=True)) if found else ([], [], [])
    return Gradients(d_z, d_pre[0], d_weights, d_biases, d_scales)


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
        scales = [meta(o, dtype=dtype) if scaled else None for o in widths[1:]]
        form = NetworkForm(kind, activation, residual, False)
        z, d_log_det = meta(n, d, dtype=dtype), meta(*((n, d) if shares else (n,)), dtype=compute_dtype(dtype))
        saved = meta(form.count_kept(n, dtype, widths), dtype=compute_dtype(dtype))
        name = f"{str(dtype)[6:]}, {d}, {kind}, {activation}{', residual' if residual else ''}"
        backward = (z, d_log_det, saved, z, weights, [True] * len(weights), scales)
        cases.append(AotCase(name, autoregressive_flow_bwd, (*backward, degrees, form, True)))
    return cases
