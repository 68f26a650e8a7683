"""The gradients of the weights of a whole masked network: one launch for several layers.

Alone each layer's product would leave most of a device idle.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from ._launch import compute_dtype, launch
from ._matrix import choose_tile, launch_options, precision
from ._tiles import split_sum
from .masked_linear_gradients import add_parts

# Layers whose weight gradients share a launch.
TOGETHER = 3
# Rows that a program multiplies at least, where sums over rows are split: parts cost a further launch.
_LEAST_ROWS = 256
_FAR = tl.constexpr(1 << 62)


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


class LayerGradients(NamedTuple):
    """The gradients of a layer, and what the splits of the rows write in their place."""

    weight: Tensor
    bias: Tensor | None
    scale: Tensor | None
    weight_parts: Tensor | None
    bias_parts: Tensor | None


def _allocate(weight: Tensor, has_bias: bool, scaled: bool, splits: int) -> LayerGradients:
    o, dtype = weight.shape[0], compute_dtype(weight.dtype)
    return LayerGradients(
        weight.new_empty(weight.shape),
        weight.new_empty(o) if has_bias else None,
        weight.new_empty(o) if scaled else None,
        weight.new_empty((splits, *weight.shape), dtype=dtype) if splits > 1 or scaled else None,
        weight.new_empty((splits, o), dtype=dtype) if splits > 1 and has_bias else None,
    )


def multiply_all_gradients(
    inputs: Sequence[Tensor],
    d_pre: Sequence[Tensor],
    weights: Sequence[Tensor],
    has_bias: Sequence[bool],
    weight_scales: Sequence[Tensor | None],
    degrees: Sequence[Tensor],
) -> list[LayerGradients]:
    """The gradients of the weights, biases and factors of up to three layers: one launch, and one a layer for parts."""
    n, dtype = inputs[0].shape[0], inputs[0].dtype
    outputs, features = max(weights, key=Tensor.numel).shape
    # Splits of the rows also multiply the programs.
    multiplied = precision(dtype)
    tile = choose_tile(outputs * max(n // 512, 1), features, dtype, multiplied)
    programs = [tile.programs(*w.shape) for w in weights]
    splits, rows_per_split = split_sum(n, sum(programs), _LEAST_ROWS)
    found, tensors, sizes = list[LayerGradients](), list[Tensor | None](), list[int]()
    for layer, w in enumerate(weights):
        found.append(own := _allocate(w, has_bias[layer], weight_scales[layer] is not None, splits))
        tensors += (
            own.weight if own.weight_parts is None else own.weight_parts,
            own.bias if own.bias_parts is None else own.bias_parts,
            d_pre[layer], inputs[layer], degrees[layer], degrees[layer + 1],
        )  # fmt: skip
        sizes += (w.shape[1], w.shape[0], inputs[layer].stride(0))
    missing = TOGETHER - len(weights)
    begin_b, begin_c, end = accumulate([count * splits for count in programs] + [0] * missing)
    a_has_bias, b_has_bias, c_has_bias = [*has_bias, *[False] * missing]
    launch(
        _autoregressive_flow_bwd_weights_kernel, end,
        *tensors, *[None] * (6 * missing), *sizes, *[0] * (3 * missing), n, rows_per_split, begin_b, begin_c,
        LAYERS=len(weights), A_HAS_BIAS=a_has_bias, B_HAS_BIAS=b_has_bias, C_HAS_BIAS=c_has_bias,
        PRECISION=multiplied,
        BLOCK_O=tile.rows, BLOCK_I=tile.columns, BLOCK_N=tile.inner, **launch_options(tile.warps, tile.stages),
    )  # fmt: skip
    for layer, own in enumerate(found):
        if own.weight_parts is not None:
            add_parts(
                own.weight, None if own.bias_parts is None else own.bias, own.scale, own.weight_parts, own.bias_parts,
                weights[layer], weight_scales[layer], degrees[layer], degrees[layer + 1],
            )  # fmt: skip
    return found
