"""Norms of the rows of a masked weight, for weight normalisation, and their gradient; rows times their factors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._launch import AotCase, Plan, by_shape, compute_dtype, meta
from ._tiles import ceil_div, row_tile, vector_width


@triton.jit(do_not_specialize=["n_out"])
def _masked_norm_fwd_kernel(
    norm_ptr, weight_ptr, in_degrees_ptr, out_degrees_ptr, n_out, n_in, stride_weight,
    DTYPE: tl.constexpr, LEAST: tl.constexpr, SHIFT: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_I: tl.constexpr,
):  # fmt: skip
    """One program owns BLOCK_O rows.

    norm = sqrt(sum of w^2 over the weights that count).
    Where squares leave the range though the norm does not, w is multiplied by a power of two, SHIFT or 1 / SHIFT.
    The backward pass keeps the norm.
    """
    o = tl.program_id(0).to(tl.int64) * BLOCK_O + tl.arange(0, BLOCK_O)
    out_degree = tl.load(out_degrees_ptr + o, o < n_out, 0)[:, None]
    total, some = tl.zeros((BLOCK_O, BLOCK_I), DTYPE), tl.zeros((BLOCK_O, BLOCK_I), tl.int1)
    for start in range(0, n_in, BLOCK_I):
        i = start + tl.arange(0, BLOCK_I)[None, :]
        mask = (o < n_out)[:, None] & (i < n_in)
        w = tl.load(weight_ptr + o[:, None] * stride_weight + i, mask, 0.0).to(DTYPE)
        counts = mask & (tl.load(in_degrees_ptr + i, i < n_in, 0) <= out_degree)
        total += tl.where(counts, w * w, 0.0)
        some |= counts & (w != 0.0)
    squares = tl.sum(total, 1)
    small, large = (squares < LEAST) & (tl.max(some.to(tl.int32), 1) > 0), squares == float("inf")
    norm = tl.sqrt(squares)
    if tl.max((small | large).to(tl.int32), 0) > 0:
        shift = tl.where(small, SHIFT, tl.where(large, 1.0 / SHIFT, 1.0)).to(DTYPE)
        total = tl.zeros((BLOCK_O, BLOCK_I), DTYPE)
        for start in range(0, n_in, BLOCK_I):
            i = start + tl.arange(0, BLOCK_I)[None, :]
            mask = (o < n_out)[:, None] & (i < n_in)
            w = tl.load(weight_ptr + o[:, None] * stride_weight + i, mask, 0.0).to(DTYPE)
            counts = mask & (tl.load(in_degrees_ptr + i, i < n_in, 0) <= out_degree)
            w *= shift[:, None]
            total += tl.where(counts, w * w, 0.0)
        back = tl.where(small, 1.0 / SHIFT, tl.where(large, SHIFT, 1.0)).to(DTYPE)
        norm = tl.sqrt(tl.sum(total, 1)) * back
    tl.store(norm_ptr + o, norm.to(norm_ptr.dtype.element_ty), o < n_out)


@triton.jit(do_not_specialize=["n_out"])
def _masked_norm_bwd_kernel(
    d_weight_ptr, d_norm_ptr, norm_ptr, weight_ptr, in_degrees_ptr, out_degrees_ptr, n_out, n_in, stride_weight,
    DTYPE: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_I: tl.constexpr,
):  # fmt: skip
    """One program owns BLOCK_O rows, BLOCK_I columns.

    d_weight = d_norm w / norm where the weight counts, and 0 elsewhere.
    Rows of norm 0 have no gradient.
    """
    in_blocks = tl.cdiv(n_in, BLOCK_I)
    o = (tl.program_id(0) // in_blocks).to(tl.int64) * BLOCK_O + tl.arange(0, BLOCK_O)[:, None]
    i = (tl.program_id(0) % in_blocks) * BLOCK_I + tl.arange(0, BLOCK_I)[None, :]
    mask = (o < n_out) & (i < n_in)
    norm = tl.load(norm_ptr + o, o < n_out, 0.0).to(DTYPE)
    d_norm = tl.load(d_norm_ptr + o, o < n_out, 0.0).to(DTYPE)
    factor = tl.where(norm == 0.0, 0.0, d_norm / tl.where(norm == 0.0, 1.0, norm))
    w = tl.load(weight_ptr + o * stride_weight + i, mask, 0.0).to(DTYPE)
    counts = tl.load(in_degrees_ptr + i, i < n_in, 0) <= tl.load(out_degrees_ptr + o, o < n_out, 0)
    tl.store(d_weight_ptr + o * n_in + i, tl.where(counts, factor * w, 0.0).to(d_weight_ptr.dtype.element_ty), mask)


@triton.jit
def _masked_linear_scale_kernel(
    scaled_ptr, weight_ptr, scale_ptr, in_degrees_ptr, out_degrees_ptr, n_out, n_in, stride_weight,
    BLOCK_O: tl.constexpr, BLOCK_I: tl.constexpr,
):  # fmt: skip
    """One program owns BLOCK_O rows, BLOCK_I columns.

    scaled = scale (W o M), so that no product over it scales or masks.
    """
    dtype: tl.constexpr = tl.float64 if scaled_ptr.dtype.element_ty == tl.float64 else tl.float32
    in_blocks = tl.cdiv(n_in, BLOCK_I)
    o = (tl.program_id(0) // in_blocks).to(tl.int64) * BLOCK_O + tl.arange(0, BLOCK_O)[:, None]
    i = (tl.program_id(0) % in_blocks) * BLOCK_I + tl.arange(0, BLOCK_I)[None, :]
    mask = (o < n_out) & (i < n_in)
    w = tl.load(weight_ptr + o * stride_weight + i, mask, 0.0).to(dtype)
    w *= tl.load(scale_ptr + o, o < n_out, 0.0).to(dtype)
    counts = tl.load(in_degrees_ptr + i, i < n_in, 0) <= tl.load(out_degrees_ptr + o, o < n_out, 0)
    tl.store(scaled_ptr + o * n_in + i, tl.where(counts, w, 0.0).to(scaled_ptr.dtype.element_ty), mask)


def _dtype(dtype: torch.dtype) -> tl.dtype:
    return tl.float64 if dtype == torch.float64 else tl.float32


def masked_norm_fwd(weight: Tensor, in_degrees: Tensor, out_degrees: Tensor) -> Tensor:
    """Norms (O,) of the rows of weight (O, I), in its dtype."""
    norm = weight.new_empty(weight.shape[0])
    plan = _plan_fwd(weight.get_device(), weight.dtype, weight.shape, weight.stride(0))
    plan.launch(norm, weight, in_degrees, out_degrees)
    return norm


@by_shape
def _plan_fwd(device: int, dtype: torch.dtype, shape: Sequence[int], stride: int) -> Plan:
    n_out, n_in = shape
    limits, tile = torch.finfo(compute_dtype(dtype)), row_tile(n_out, n_in, vector_width(dtype, n_in))
    return Plan(
        device, _masked_norm_fwd_kernel, ceil_div(n_out, tile.rows), (n_out, n_in, stride),
        DTYPE=_dtype(dtype), LEAST=limits.tiny / limits.eps, SHIFT=2.0**100 if limits.bits == 32 else 2.0**800,
        BLOCK_O=tile.rows, BLOCK_I=tile.columns, num_warps=tile.warps,
    )  # fmt: skip


def masked_norm_bwd(d_norm: Tensor, norm: Tensor, weight: Tensor, in_degrees: Tensor, out_degrees: Tensor) -> Tensor:
    """The gradient (O, I) to the weight."""
    d_weight = weight.new_empty(weight.shape)
    plan = _plan_bwd(weight.get_device(), weight.dtype, weight.shape, weight.stride(0))
    plan.launch(d_weight, d_norm, norm, weight, in_degrees, out_degrees)
    return d_weight


@by_shape
def _plan_bwd(device: int, dtype: torch.dtype, shape: Sequence[int], stride: int) -> Plan:
    n_out, n_in = shape
    tile = row_tile(n_out, n_in, vector_width(dtype, n_in))
    return Plan(
        device, _masked_norm_bwd_kernel, ceil_div(n_out, tile.rows) * ceil_div(n_in, tile.columns),
        (n_out, n_in, stride),
        DTYPE=_dtype(dtype), BLOCK_O=tile.rows, BLOCK_I=tile.columns, num_warps=tile.warps,
    )  # fmt: skip


def scale_weight(weight: Tensor, weight_scale: Tensor, in_degrees: Tensor, out_degrees: Tensor) -> Tensor:
    """scale (W o M), (O, I)."""
    scaled = weight.new_empty(weight.shape)
    plan = _plan_scale(weight.get_device(), weight.dtype, weight.shape, weight.stride(0))
    plan.launch(scaled, weight, weight_scale, in_degrees, out_degrees)
    return scaled


@by_shape
def _plan_scale(device: int, dtype: torch.dtype, shape: Sequence[int], stride: int) -> Plan:
    n_out, n_in = shape
    tile = row_tile(n_out, n_in, vector_width(dtype, n_in))
    return Plan(
        device, _masked_linear_scale_kernel, ceil_div(n_out, tile.rows) * ceil_div(n_in, tile.columns),
        (n_out, n_in, stride), BLOCK_O=tile.rows, BLOCK_I=tile.columns, num_warps=tile.warps,
    )  # fmt: skip


def aot_cases() -> list[AotCase]:
    cases = []
    for dtype, n_in in ((torch.float32, 512), (torch.bfloat16, 63)):
        weight, norm = meta(512, n_in, dtype=dtype), meta(512, dtype=dtype)
        degrees = (meta(n_in, dtype=torch.int64), meta(512, dtype=torch.int64))
        name = f"{str(dtype)[6:]}, {n_in} -> 512"
        cases += [
            AotCase(name, masked_norm_fwd, (weight, *degrees)),
            AotCase(name, masked_norm_bwd, (norm, norm, weight, *degrees)),
            AotCase(name, scale_weight, (weight, norm, *degrees)),
        ]
    return cases
