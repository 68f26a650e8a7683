"""The gradients of a masked linear layer: to x and to the weight by matrix products, to bias and scale by sums.

Sums over rows are split among programs, whose parts are added up in a fixed order: no atomics.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._activations import through
from ._launch import AotCase, Plan, by_shape, compute_dtype, meta
from ._matrix import (
    GROUP,
    MatrixTile,
    choose_tile,
    group_blocks,
    in_tf32,
    precision,
    product_options,
    split_products,
    staircase_programs,
)
from ._tiles import ceil_div, next_power_of_2, row_tile, split_sum, vector_width
from .masked_norm import scale_weight
from .tile_lists import row_of, tile_lists


@triton.jit(do_not_specialize=["n_rows", "rows_per_split"])
def _masked_linear_bwd_pre_kernel(
    d_pre_ptr, d_bias_ptr, d_y_ptr, kept_ptr, n_rows, rows_per_split, n_out, stride_d_y, stride_kept,
    ACTIVATION: tl.constexpr, HAS_BIAS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_O: tl.constexpr,
):  # fmt: skip
    """One program owns one split of the rows, BLOCK_O outputs.

    d_pre = d_y act'(pre), not written for the identity;  d_bias = sum of d_pre over the split.
    The splits are added by `_masked_linear_bwd_sum_kernel`.
    """
    dtype: tl.constexpr = d_bias_ptr.dtype.element_ty
    out_blocks = tl.cdiv(n_out, BLOCK_O)
    split = (tl.program_id(0) // out_blocks).to(tl.int64)
    o = (tl.program_id(0) % out_blocks) * BLOCK_O + tl.arange(0, BLOCK_O)[None, :]
    begin = split * rows_per_split
    end = tl.minimum(begin + rows_per_split, n_rows)
    total = tl.zeros((BLOCK_N, BLOCK_O), dtype)
    for start in range(begin, end, BLOCK_N):
        row = start + tl.arange(0, BLOCK_N)[:, None]
        mask = (row < end) & (o < n_out)
        d_pre = tl.load(d_y_ptr + row * stride_d_y + o, mask, 0.0).to(dtype)
        if ACTIVATION != "identity":
            kept = tl.load(kept_ptr + row * stride_kept + o, mask, 0.0).to(dtype)
            d_pre = through(d_pre, kept, ACTIVATION)
            tl.store(d_pre_ptr + row * n_out + o, d_pre.to(d_pre_ptr.dtype.element_ty), mask)
        total += tl.where(mask, d_pre, 0.0)
    if HAS_BIAS:
        tl.store(d_bias_ptr + split * n_out + o, tl.sum(total, 0)[None, :], o < n_out)


@triton.jit
def _backward_tiles(
    acc, tiles_ptr, count, d_pre_ptrs, exists, weight_ptrs, i, in_degrees_ptr, out_degrees_ptr, n_in, n_out,
    stride_weight, MASKED: tl.constexpr, PRECISION: tl.constexpr, BLOCK_O: tl.constexpr,
):  # fmt: skip
    if MASKED:
        in_degree = tl.load(in_degrees_ptr + i, i < n_in, 0)
    tile = tl.load(tiles_ptr)
    for step in range(1, count + 1):
        o = tile * BLOCK_O + tl.arange(0, BLOCK_O)
        # One tile ahead, so that no address waits for it.
        tile = tl.load(tiles_ptr + step)
        d_pre = tl.load(d_pre_ptrs + o[None, :], exists[:, None] & (o[None, :] < n_out), 0.0)
        counts = (o[:, None] < n_out) & (i < n_in)[None, :]
        w = tl.load(weight_ptrs + o[:, None].to(tl.int64) * stride_weight, counts, 0.0)
        if MASKED:
            out_degree = tl.load(out_degrees_ptr + o, o < n_out, 0)
            w = tl.where(in_degree[None, :] <= out_degree[:, None], w, 0.0)
        acc = tl.dot(d_pre, w, acc, input_precision=PRECISION, out_dtype=acc.dtype)
    return acc


@triton.jit(do_not_specialize=["n_rows"])
def _masked_linear_bwd_x_kernel(
    d_x_ptr, d_pre_ptr, weight_ptr, kept_ptr, addend_ptr, lists_ptr, in_degrees_ptr, out_degrees_ptr,
    n_rows, n_in, n_out, stride_d_pre, stride_weight,
    ACTIVATION: tl.constexpr, HAS_ADDEND: tl.constexpr,
    MASKED: tl.constexpr, PRECISION: tl.constexpr, GROUP: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_I: tl.constexpr,
):  # fmt: skip
    """One program owns BLOCK_N rows of BLOCK_I inputs.

    d_x = d_pre (W o M), of a scaled weight, which is zero where it does not count, without MASKED.
    The slope of the activation that made x may come as a factor, and then an addend.
    Columns come in the order of the inputs: the first ones have the most outputs.
    """
    dtype: tl.constexpr = tl.float64 if d_x_ptr.dtype.element_ty == tl.float64 else tl.float32
    in_blocks = tl.cdiv(n_in, BLOCK_I)
    row_block, in_block = group_blocks(tl.program_id(0), tl.cdiv(n_rows, BLOCK_N), in_blocks, GROUP)
    in_block = in_blocks - 1 - in_block
    row = row_block.to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    i = in_block * BLOCK_I + tl.arange(0, BLOCK_I)
    exists, inside = row < n_rows, i < n_in
    tiles_ptr, n_whole, n_part = row_of(lists_ptr, in_block, n_out, BLOCK_O)
    if not MASKED:
        n_whole += n_part
    d_pre_ptrs = d_pre_ptr + row[:, None] * stride_d_pre
    weight_ptrs = weight_ptr + i[None, :]
    acc = tl.zeros((BLOCK_N, BLOCK_I), dtype)
    acc = _backward_tiles(
        acc, tiles_ptr, n_whole, d_pre_ptrs, exists, weight_ptrs, i, in_degrees_ptr, out_degrees_ptr, n_in, n_out,
        stride_weight, False, PRECISION, BLOCK_O,
    )  # fmt: skip
    if MASKED:
        acc = _backward_tiles(
            acc, tiles_ptr + n_whole, n_part, d_pre_ptrs, exists, weight_ptrs, i, in_degrees_ptr, out_degrees_ptr,
            n_in, n_out, stride_weight, True, PRECISION, BLOCK_O,
        )  # fmt: skip
    owned, at = exists[:, None] & inside[None, :], row[:, None] * n_in + i[None, :]
    if ACTIVATION != "identity":
        acc = through(acc, tl.load(kept_ptr + at, owned, 0.0).to(dtype), ACTIVATION)
    if HAS_ADDEND:
        acc += tl.load(addend_ptr + at, owned, 0.0).to(dtype)
    tl.store(d_x_ptr + at, acc.to(d_x_ptr.dtype.element_ty), owned)


@triton.jit(do_not_specialize=["n_rows", "rows_per_split", "splits"])
def _masked_linear_bwd_weight_kernel(
    d_weight_ptr, d_pre_ptr, x_ptr, lists_ptr, in_degrees_ptr, out_degrees_ptr,
    n_rows, rows_per_split, splits, n_in, n_out, stride_d_pre, stride_x,
    PRECISION: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_I: tl.constexpr,
):  # fmt: skip
    """One program owns BLOCK_O x BLOCK_I weights, one split of the rows.

    d_weight = sum_n d_pre x where the weight counts, and 0 elsewhere.
    A program without a weight that counts writes only zeros; those come last.
    """
    dtype: tl.constexpr = tl.float64 if x_ptr.dtype.element_ty == tl.float64 else tl.float32
    out_blocks = tl.cdiv(n_out, BLOCK_O)
    out_block, rest = tl.program_id(0) % out_blocks, tl.program_id(0) // out_blocks
    split, place = (rest % splits).to(tl.int64), rest // splits
    tiles_ptr, n_whole, n_part = row_of(lists_ptr, out_block, n_in, BLOCK_I)
    o = out_block * BLOCK_O + tl.arange(0, BLOCK_O)
    i = tl.load(tiles_ptr + place) * BLOCK_I + tl.arange(0, BLOCK_I)
    begin = split * rows_per_split
    rows = tl.where(place < n_whole + n_part, tl.minimum(n_rows - begin, rows_per_split).to(tl.int32), 0)
    row = tl.arange(0, BLOCK_N)
    d_pre_ptrs = d_pre_ptr + o[:, None] + (begin + row[None, :]) * stride_d_pre
    x_ptrs = x_ptr + i[None, :] + (begin + row[:, None]) * stride_x
    acc = tl.zeros((BLOCK_O, BLOCK_I), dtype)
    for start in range(0, rows, BLOCK_N):
        d_pre = tl.load(d_pre_ptrs, (o < n_out)[:, None] & (row[None, :] < rows - start), 0.0)
        x = tl.load(x_ptrs, (row[:, None] < rows - start) & (i < n_in)[None, :], 0.0)
        acc = tl.dot(d_pre, x, acc, input_precision=PRECISION, out_dtype=dtype)
        d_pre_ptrs += BLOCK_N * stride_d_pre
        x_ptrs += BLOCK_N * stride_x
    in_degree, out_degree = tl.load(in_degrees_ptr + i, i < n_in, 0), tl.load(out_degrees_ptr + o, o < n_out, 0)
    acc = tl.where(in_degree[None, :] <= out_degree[:, None], acc, 0.0)
    at = (split * n_out + o[:, None]) * n_in + i[None, :]
    owned = (o < n_out)[:, None] & (i < n_in)[None, :]
    tl.store(d_weight_ptr + at, acc.to(d_weight_ptr.dtype.element_ty), owned)


@triton.jit(do_not_specialize=["weight_splits", "bias_splits"])
def _masked_linear_bwd_sum_kernel(
    d_weight_ptr, d_bias_ptr, d_scale_ptr, weight_parts_ptr, bias_parts_ptr, weight_ptr, scale_ptr,
    in_degrees_ptr, out_degrees_ptr, weight_splits, bias_splits, n_in, n_out, stride_weight,
    HAS_WEIGHT: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_SCALE: tl.constexpr,
    BLOCK_O: tl.constexpr, BLOCK_I: tl.constexpr,
):  # fmt: skip
    """One program owns BLOCK_O outputs and adds up, in order, the parts that the splits of the rows wrote.

    d_weight = scale G with G = sum of the parts,  d_scale = sum_i W G over the weights that count,  d_bias.
    """
    dtype: tl.constexpr = bias_parts_ptr.dtype.element_ty
    out = tl.program_id(0).to(tl.int64) * BLOCK_O + tl.arange(0, BLOCK_O)
    exists = out < n_out
    if HAS_BIAS:
        d_bias = tl.zeros((BLOCK_O,), dtype)
        for split in range(0, bias_splits):
            d_bias += tl.load(bias_parts_ptr + split * n_out + out, exists, 0.0)
        tl.store(d_bias_ptr + out, d_bias.to(d_bias_ptr.dtype.element_ty), exists)
    if HAS_WEIGHT:
        o = out[:, None]
        scale = tl.full((BLOCK_O, 1), 1.0, dtype)
        if HAS_SCALE:
            scale = tl.load(scale_ptr + o, o < n_out, 0.0).to(dtype)
        out_degree = tl.load(out_degrees_ptr + o, o < n_out, 0)
        total = tl.zeros((BLOCK_O, BLOCK_I), dtype)
        for start in range(0, n_in, BLOCK_I):
            i = start + tl.arange(0, BLOCK_I)[None, :]
            owned = (o < n_out) & (i < n_in)
            counts = tl.load(in_degrees_ptr + i, i < n_in, 0) <= out_degree
            g = tl.zeros((BLOCK_O, BLOCK_I), dtype)
            # What does not count is zero in the parts: whole vectors are loaded.
            for split in range(0, weight_splits):
                g += tl.load(weight_parts_ptr + (split * n_out + o) * n_in + i, owned, 0.0)
            d_weight = tl.where(counts, g * scale, 0.0).to(d_weight_ptr.dtype.element_ty)
            tl.store(d_weight_ptr + o * n_in + i, d_weight, owned)
            if HAS_SCALE:
                w = tl.load(weight_ptr + o * stride_weight + i, owned, 0.0).to(dtype)
                total += tl.where(counts, g * w, 0.0)
        if HAS_SCALE:
            tl.store(d_scale_ptr + out, tl.sum(total, 1).to(d_scale_ptr.dtype.element_ty), exists)


def masked_layer_bwd_x(
    d_pre: Tensor,
    weight: Tensor,
    weight_scale: Tensor | None,
    in_degrees: Tensor,
    out_degrees: Tensor,
    kept: Tensor | None,
    addend: Tensor | None,
    activation: str,
) -> Tensor:
    """The gradient of what an activation was applied to, whose values x were multiplied by the weight, plus `addend`.

    `kept` (N, I) is x or, for gelu and silu, what was before the activation; it and `addend` are contiguous.
    """
    n, (outputs, inputs) = d_pre.shape[0], weight.shape
    d_x = d_pre.new_empty((n, inputs))
    masked = scale_weight(weight, weight_scale, in_degrees, out_degrees) if weight_scale is not None else weight
    dtype, numbers = d_pre.dtype, (n, inputs, outputs, d_pre.stride(0), masked.stride(0))
    has = addend is not None, weight_scale is None, None if kept is None else kept.dtype
    plan, tile = _plan_bwd_x(d_pre.get_device(), dtype, precision(dtype), numbers, has, activation)
    lists = tile_lists(out_degrees, in_degrees, -1, tile.inner, tile.columns)
    plan.launch(d_x, d_pre, masked, kept, addend, lists, in_degrees, out_degrees)
    return d_x


@by_shape
def _plan_bwd_x(
    device: int,
    dtype: torch.dtype,
    multiplied: str,
    numbers: Sequence[int],
    has: tuple[bool, bool, torch.dtype | None],
    activation: str,
) -> tuple[Plan, MatrixTile]:
    n, inputs, outputs, *_ = numbers
    tile, (has_addend, masked, _) = choose_tile(n, inputs, dtype, multiplied), has
    plan = Plan(
        device, _masked_linear_bwd_x_kernel, tile.programs(n, inputs), numbers,
        ACTIVATION=activation, HAS_ADDEND=has_addend, MASKED=masked,
        PRECISION=multiplied, GROUP=GROUP, BLOCK_N=tile.rows, BLOCK_I=tile.columns, BLOCK_O=tile.inner,
        **product_options(tile, dtype, (inputs, outputs), device, activation, has_addend),
    )  # fmt: skip
    return plan, tile


def add_parts(
    d_weight: Tensor,
    d_bias: Tensor | None,
    d_scale: Tensor | None,
    weight_parts: Tensor | None,
    bias_parts: Tensor | None,
    weight: Tensor,
    weight_scale: Tensor | None,
    in_degrees: Tensor,
    out_degrees: Tensor,
) -> None:
    """Adds up what the splits of the rows wrote: `weight_parts` (splits, O, I) and `bias_parts` (splits, O), or one."""
    outputs, inputs = weight.shape
    of_weight, of_bias = (0 if parts is None else parts.shape[0] for parts in (weight_parts, bias_parts))
    numbers = of_weight, of_bias, inputs, outputs, weight.stride(0)
    has = weight_parts is not None, bias_parts is not None, weight_scale is not None, d_bias is not None
    _plan_sum(weight.get_device(), weight.dtype, numbers, has).launch(
        d_weight, d_bias, d_scale, weight_parts, weight_parts if bias_parts is None else bias_parts,
        weight, weight_scale, in_degrees, out_degrees,
    )  # fmt: skip


@by_shape
def _plan_sum(device: int, dtype: torch.dtype, numbers: Sequence[int], has: tuple[bool, bool, bool, bool]) -> Plan:
    _, _, inputs, outputs, _ = numbers
    has_weight, has_bias, has_scale, _ = has
    # Few outputs for each program, so that there are many programs: each walks all inputs.
    return Plan(
        device, _masked_linear_bwd_sum_kernel, ceil_div(outputs, 2), numbers,
        HAS_WEIGHT=has_weight, HAS_BIAS=has_bias, HAS_SCALE=has_scale,
        BLOCK_O=2, BLOCK_I=min(next_power_of_2(inputs), 512), num_warps=4,
    )  # fmt: skip


@by_shape
def _plan_bwd_pre(
    device: int,
    dtypes: tuple[torch.dtype, torch.dtype],
    n: int,
    outputs: int,
    strides: tuple[int, int],
    activation: str,
    has_bias: bool,
) -> tuple[Plan, int]:
    """`dtypes` are those of d_y and of what it is multiplied by; the last is how many splits the rows have."""
    row = row_tile(n, outputs, vector_width(dtypes[0], outputs))
    out_blocks = ceil_div(outputs, row.columns)
    splits, rows_per_split = split_sum(n, out_blocks, row.rows)
    plan = Plan(
        device, _masked_linear_bwd_pre_kernel, splits * out_blocks, (n, rows_per_split, outputs, *strides),
        ACTIVATION=activation, HAS_BIAS=has_bias, BLOCK_N=row.rows, BLOCK_O=row.columns, num_warps=row.warps,
    )  # fmt: skip
    return plan, splits


@by_shape
def _plan_bwd_weight(
    device: int,
    dtype: torch.dtype,
    multiplied: str,
    n: int,
    inputs: int,
    outputs: int,
    strides: tuple[int, int],
    has_scale: bool,
) -> tuple[Plan, MatrixTile, int]:
    """The last is how many splits the rows have; with one split and no scale the kernel writes the gradient itself."""
    # Splits of the rows also multiply the programs.
    tile = choose_tile(outputs * max(n // 512, 1), inputs, dtype, multiplied)
    programs = staircase_programs(ceil_div(outputs, tile.rows), ceil_div(inputs, tile.columns))
    splits, rows_per_split = split_products(n, programs, 4 * tile.inner)
    plan = Plan(
        device, _masked_linear_bwd_weight_kernel, splits * tile.programs(outputs, inputs),
        (n, rows_per_split, splits, inputs, outputs, *strides),
        PRECISION=multiplied, BLOCK_O=tile.rows, BLOCK_I=tile.columns, BLOCK_N=tile.inner,
        **product_options(tile, dtype, (inputs, outputs), device),
    )  # fmt: skip
    return plan, tile, splits


def masked_linear_bwd(
    d_y: Tensor,
    saved_or_y: Tensor,
    x: Tensor,
    weight: Tensor,
    weight_scale: Tensor | None,
    in_degrees: Tensor,
    out_degrees: Tensor,
    activation: str,
    has_bias: bool,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """The gradients to x, weight, bias and weight_scale; `saved_or_y` is the pre-activation (gelu, silu) or y."""
    (n, inputs), outputs = x.shape, weight.shape[0]
    dtype, has_scale = compute_dtype(x.dtype), weight_scale is not None
    d_bias = weight.new_empty(outputs) if has_bias else None
    d_scale = weight.new_empty(outputs) if has_scale else None

    d_pre, bias_parts = d_y, x.new_empty(0, dtype=dtype)
    if activation != "identity" or has_bias:
        dtypes = d_y.dtype, saved_or_y.dtype
        strides = d_y.stride(0), 0 if activation == "identity" else saved_or_y.stride(0)
        plan, splits = _plan_bwd_pre(x.get_device(), dtypes, n, outputs, strides, activation, has_bias)
        bias_parts = x.new_empty((splits, outputs) if has_bias else 0, dtype=dtype)
        if activation != "identity":
            d_pre = x.new_empty((n, outputs))
        plan.launch(d_pre, bias_parts, d_y, saved_or_y)

    d_x = masked_layer_bwd_x(d_pre, weight, weight_scale, in_degrees, out_degrees, None, None, "identity")

    d_weight = weight.new_empty((outputs, inputs))
    strides = d_pre.stride(0), x.stride(0)
    plan, tile, splits = _plan_bwd_weight(
        x.get_device(), x.dtype, precision(x.dtype), n, inputs, outputs, strides, has_scale
    )
    lists = tile_lists(in_degrees, out_degrees, 1, tile.columns, tile.rows)
    parted = has_scale or splits > 1
    weight_parts = x.new_empty((splits, outputs, inputs), dtype=dtype) if parted else d_weight
    plan.launch(weight_parts, d_pre, x, lists, in_degrees, out_degrees)
    if parted or has_bias:
        parts = weight_parts if parted else None, bias_parts if has_bias else None
        add_parts(d_weight, d_bias, d_scale, *parts, weight, weight_scale, in_degrees, out_degrees)
    return d_x, d_weight, d_bias, d_scale


def aot_cases() -> list[AotCase]:
    cases = []
    for dtype, inputs, outputs, activation, scaled in (
        (torch.float32, 1920, 1920, "elu", True),
        (torch.float32, 63, 65, "tanh", False),
        (torch.bfloat16, 1920, 1920, "identity", False),
        (torch.bfloat16, 512, 512, "gelu", True),
        (torch.float64, 64, 64, "softplus", False),
    ):
        n, name = 16384, f"{str(dtype)[6:]}, {inputs} -> {outputs}, {activation}"
        x, weight, scale = (meta(*shape, dtype=dtype) for shape in ((n, inputs), (outputs, inputs), (outputs,)))
        degrees = (meta(inputs, dtype=torch.int64), meta(outputs, dtype=torch.int64))
        d_y = meta(n, outputs, dtype=dtype)
        arguments = (d_y, d_y, x, weight, scale if scaled else None, *degrees, activation, True)
        cases.append(AotCase(name, masked_linear_bwd, arguments))
        if dtype == torch.float32 and inputs % 64 == 0:
            cases.append(AotCase(name.replace("float32", "tf32"), in_tf32(masked_linear_bwd), arguments))
    return cases
