"""Affine flow step with its log-determinant, forward and inverse, and the gradients."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._affine import inside_clamp, scale_of, slopes_of
from ._launch import AotCase, Plan, by_shape, compute_dtype, meta
from ._tiles import ceil_div, row_stride, row_tile, vector_width


@triton.jit(do_not_specialize=["n_rows"])
def _affine_flow_fwd_kernel(
    out_ptr, log_det_ptr, z_ptr, shift_ptr, scale_logit_ptr,
    n_rows, D, stride_z, stride_shift, stride_scale_logit,
    KIND: tl.constexpr, INVERSE: tl.constexpr, SHARES: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """One program owns BLOCK_N rows, all columns.

    out = a(s) z + c(s) m,  log_det = sum(log a(s));  inverse: out = (z - c(s) m) / a(s), log_det = -sum(log a(s)).
    With SHARES log_det has the summands. The backward pass keeps the inputs.
    """
    dtype: tl.constexpr = log_det_ptr.dtype.element_ty
    out_dtype: tl.constexpr = out_ptr.dtype.element_ty
    row = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    exists = row < n_rows
    at_row = row[:, None]
    total = tl.zeros((BLOCK_N, BLOCK_D), dtype)
    for start in range(0, D, BLOCK_D):
        column = start + tl.arange(0, BLOCK_D)[None, :]
        mask = exists[:, None] & (column < D)
        z = tl.load(z_ptr + at_row * stride_z + column, mask, 0.0).to(dtype)
        m = tl.load(shift_ptr + at_row * stride_shift + column, mask, 0.0).to(dtype)
        if KIND == "location_only":
            out = z - m if INVERSE else z + m
            log_a = tl.zeros((BLOCK_N, BLOCK_D), dtype)
        else:
            s = tl.load(scale_logit_ptr + at_row * stride_scale_logit + column, mask, 0.0).to(dtype)
            log_a, a, c = scale_of(s, KIND)
            out = (z - c * m) / a if INVERSE else a * z + c * m
        if SHARES:
            tl.store(log_det_ptr + at_row * D + column, -log_a if INVERSE else log_a, mask)
        elif KIND != "location_only":
            total += tl.where(mask, log_a, 0.0)
        tl.store(out_ptr + at_row * D + column, out.to(out_dtype), mask)
    if not SHARES:
        log_det = tl.sum(total, 1)
        tl.store(log_det_ptr + row, -log_det if INVERSE else log_det, exists)


@triton.jit(do_not_specialize=["n_rows"])
def _affine_flow_bwd_kernel(
    d_z_ptr, d_shift_ptr, d_scale_logit_ptr, d_out_ptr, d_log_det_ptr, z_ptr, shift_ptr, scale_logit_ptr,
    n_rows, D, stride_d_out, stride_z, stride_shift, stride_scale_logit,
    KIND: tl.constexpr, INVERSE: tl.constexpr, SHARES: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """One program owns BLOCK_N rows, BLOCK_D columns.

    d_z = a d_out,  d_m = c d_out,  d_s = (a z d_out + d_log_det) (log a)' + m d_out c'.
    inverse: d_z = d_out / a,  d_m = -c d_z,  d_s = -(out d_out + d_log_det) (log a)' - m d_z c'.
    """
    dtype: tl.constexpr = d_log_det_ptr.dtype.element_ty
    out_dtype: tl.constexpr = d_z_ptr.dtype.element_ty
    column_blocks = tl.cdiv(D, BLOCK_D)
    row = (tl.program_id(0) // column_blocks).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)[:, None]
    column = (tl.program_id(0) % column_blocks) * BLOCK_D + tl.arange(0, BLOCK_D)[None, :]
    mask = (row < n_rows) & (column < D)
    at = row * D + column
    d_out = tl.load(d_out_ptr + row * stride_d_out + column, mask, 0.0).to(dtype)
    if KIND == "location_only":
        d_z = d_out
        d_m = -d_out if INVERSE else d_out
    else:
        if SHARES:
            d_log_det = tl.load(d_log_det_ptr + at, mask, 0.0)
        else:
            d_log_det = tl.load(d_log_det_ptr + row, row < n_rows, 0.0)
        z = tl.load(z_ptr + row * stride_z + column, mask, 0.0).to(dtype)
        m = tl.load(shift_ptr + row * stride_shift + column, mask, 0.0).to(dtype)
        s = tl.load(scale_logit_ptr + row * stride_scale_logit + column, mask, 0.0).to(dtype)
        _, a, c = scale_of(s, KIND)
        d_log_a, d_c = slopes_of(s, a, c, KIND)
        if INVERSE:
            d_z = d_out / a
            d_m = -c * d_z
            d_s = -((z - c * m) * d_z + d_log_det) * d_log_a - m * d_z * d_c
        else:
            d_z = d_out * a
            d_m = d_out * c
            d_s = (d_z * z + d_log_det) * d_log_a + m * d_out * d_c
        tl.store(d_scale_logit_ptr + at, inside_clamp(d_s, s, KIND).to(out_dtype), mask)
    tl.store(d_z_ptr + at, d_z.to(out_dtype), mask)
    tl.store(d_shift_ptr + at, d_m.to(out_dtype), mask)


def affine_flow_fwd(
    z: Tensor, shift: Tensor, scale_logit: Tensor | None, kind: str, inverse: bool, log_det_map: bool = False
) -> tuple[Tensor, Tensor]:
    """z, shift, scale_logit (N, D) with contiguous columns to out (N, D) and log_det, float32 or float64.

    log_det is (N,), with `log_det_map` (N, D): each column's share.
    """
    n, d = z.shape
    out, log_det = z.new_empty((n, d)), z.new_empty((n, d) if log_det_map else n, dtype=compute_dtype(z.dtype))
    strides, has_scale = (z.stride(0), shift.stride(0), row_stride(scale_logit)), scale_logit is not None
    plan = _plan_fwd(z.get_device(), z.dtype, n, d, strides, has_scale, kind, inverse, log_det_map)
    plan.launch(out, log_det, z, shift, scale_logit)
    return out, log_det


@by_shape
def _plan_fwd(
    device: int,
    dtype: torch.dtype,
    n: int,
    d: int,
    strides: Sequence[int],
    has_scale: bool,
    kind: str,
    inverse: bool,
    shares: bool,
) -> Plan:
    tile = row_tile(n, d, vector_width(dtype, d))
    return Plan(
        device, _affine_flow_fwd_kernel, ceil_div(n, tile.rows), (n, d, *strides),
        KIND=kind, INVERSE=inverse, SHARES=shares, BLOCK_N=tile.rows, BLOCK_D=tile.columns, num_warps=tile.warps,
    )  # fmt: skip


def affine_flow_bwd(
    d_out: Tensor, d_log_det: Tensor, z: Tensor, shift: Tensor, scale_logit: Tensor | None, kind: str, inverse: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The gradients to z, shift and scale_logit; d_out has contiguous columns, d_log_det, (N,) or (N, D), all."""
    n, d = z.shape
    d_z, d_shift = z.new_empty((n, d)), z.new_empty((n, d))
    d_scale_logit = None if scale_logit is None else z.new_empty((n, d))
    strides = d_out.stride(0), z.stride(0), shift.stride(0), row_stride(scale_logit)
    has_scale, shares = scale_logit is not None, d_log_det.dim() == 2
    plan = _plan_bwd(z.get_device(), z.dtype, n, d, strides, has_scale, kind, inverse, shares)
    plan.launch(d_z, d_shift, d_scale_logit, d_out, d_log_det, z, shift, scale_logit)
    return d_z, d_shift, d_scale_logit


@by_shape
def _plan_bwd(
    device: int,
    dtype: torch.dtype,
    n: int,
    d: int,
    strides: Sequence[int],
    has_scale: bool,
    kind: str,
    inverse: bool,
    shares: bool,
) -> Plan:
    tile = row_tile(n, d, vector_width(dtype, d))
    return Plan(
        device, _affine_flow_bwd_kernel, ceil_div(n, tile.rows) * ceil_div(d, tile.columns), (n, d, *strides),
        KIND=kind, INVERSE=inverse, SHARES=shares, BLOCK_N=tile.rows, BLOCK_D=tile.columns, num_warps=tile.warps,
    )  # fmt: skip


def aot_cases() -> list[AotCase]:
    cases = []
    for dtype, d, kind, inverse, shares in (
        (torch.float32, 1024, "gated", False, False),
        (torch.float32, 1024, "gated", False, True),
        (torch.float32, 63, "exp", True, False),
        (torch.bfloat16, 1024, "gated", True, False),
        (torch.bfloat16, 64, "exp", False, False),
        (torch.float64, 64, "softplus", False, False),
    ):
        options = (", inverse" if inverse else "") + (", shares" if shares else "")
        n, name = 65536, f"{str(dtype)[6:]}, D = {d}, {kind}{options}"
        # Shift and scale logit are halves of a network's output.
        z, params = meta(n, d, dtype=dtype), meta(n, 2 * d, dtype=dtype)
        inputs = (z, params[:, :d], params[:, d:])
        d_log_det = meta(*((n, d) if shares else (n,)), dtype=compute_dtype(dtype))
        cases += [
            AotCase(name, affine_flow_fwd, (*inputs, kind, inverse, shares)),
            AotCase(name, affine_flow_bwd, (z, d_log_det, *inputs, kind, inverse)),
        ]
    return cases
