"""Gaussian with a triangular scale: log-density of foreign points, KL to the standard normal, and their gradients."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._launch import AotCase, Plan, by_shape, compute_dtype, meta
from ._tiles import ceil_div, row_tile, solve_tile, tile_points, tril_strides, vector_width
from ._vecmath import HALF_LOG_2PI, exp
from .tril_gaussian import tril_gaussian_bwd, tril_row_offset

_GENERIC = ["n_rows", "D", "stride_tril", "stride_tril_i"]


@triton.jit
def _tril_row(tril_ptr, i, j, D, stride_i, DENSE: tl.constexpr):
    """Row i of T at the columns j: 0 from the diagonal on, and everywhere if there is no row i."""
    return tl.load(tril_ptr + tril_row_offset(i, stride_i, DENSE) + j, (j < i) & (i < D), 0.0)


@triton.jit
def _points(n_rows, samples, BLOCK_K: tl.constexpr, BLOCK_N: tl.constexpr):
    """(sample, row) of a program's points; samples of the same row are neighbours and share its T in the cache.

    Points past the last repeat it and store the same values in the same place: no masks to keep in registers.
    """
    sample_blocks = tl.cdiv(samples, BLOCK_K)
    sample, row = tile_points(tl.program_id(0) % sample_blocks, tl.program_id(0) // sample_blocks, BLOCK_K, BLOCK_N)
    return tl.minimum(sample, samples - 1).to(tl.int64)[:, None], tl.minimum(row, n_rows - 1)[:, None]


@triton.jit
def _substitute(eps, row, i, j, difference, inverse):
    """eps with its element i = (difference_i - sum_j<i T_ij eps_j) / sigma_i."""
    solved = tl.sum(tl.where(j == i, difference, -row.to(eps.dtype) * eps), 1)[:, None]
    return tl.where(j == i, solved * inverse, eps)


@triton.jit
def _eliminate(residual, row, i, j, inverse):
    """The residual with T_ij w_i subtracted from its elements j < i, where w_i = residual_i / sigma_i."""
    w = tl.sum(tl.where(j == i, residual * inverse, 0.0), 1)[:, None]
    return residual - row.to(residual.dtype) * w


@triton.jit(do_not_specialize=_GENERIC, do_not_specialize_on_alignment=["samples"])
def _tril_gaussian_log_prob_fwd_kernel(
    log_q_ptr, eps_ptr, z_ptr, mu_ptr, log_sigma_ptr, tril_ptr,
    n_rows, samples, D, stride_zk, stride_zn, stride_mu, stride_log_sigma, stride_tril, stride_tril_i,
    DENSE: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """One program owns BLOCK_K samples of BLOCK_N rows and solves (diag(sigma) + T) eps = z - mu, row by row.

    log_q = -sum(eps^2 / 2 + log_sigma + log(2 pi) / 2).
    The backward pass keeps eps.
    """
    dtype: tl.constexpr = log_q_ptr.dtype.element_ty
    sample, row = _points(n_rows, samples, BLOCK_K, BLOCK_N)
    j = tl.arange(0, BLOCK_D)[None, :]
    mask = j < D
    tril_ptr += row * stride_tril
    z = tl.load(z_ptr + sample * stride_zk + row * stride_zn + j, mask, 0.0).to(dtype)
    difference = z - tl.load(mu_ptr + row * stride_mu + j, mask, 0.0).to(dtype)
    log_sigma = tl.load(log_sigma_ptr + row * stride_log_sigma + j, mask, 0.0).to(dtype)
    inverse = exp(-log_sigma, dtype)
    eps = tl.zeros((BLOCK_K * BLOCK_N, BLOCK_D), dtype)
    # Four rows are on their way from memory while four are worked on.
    row0 = _tril_row(tril_ptr, 0, j, D, stride_tril_i, DENSE)
    row1 = _tril_row(tril_ptr, 1, j, D, stride_tril_i, DENSE)
    row2 = _tril_row(tril_ptr, 2, j, D, stride_tril_i, DENSE)
    row3 = _tril_row(tril_ptr, 3, j, D, stride_tril_i, DENSE)
    for i in range(0, D, 4):
        next0 = _tril_row(tril_ptr, i + 4, j, D, stride_tril_i, DENSE)
        next1 = _tril_row(tril_ptr, i + 5, j, D, stride_tril_i, DENSE)
        next2 = _tril_row(tril_ptr, i + 6, j, D, stride_tril_i, DENSE)
        next3 = _tril_row(tril_ptr, i + 7, j, D, stride_tril_i, DENSE)
        eps = _substitute(eps, row0, i, j, difference, inverse)
        eps = _substitute(eps, row1, i + 1, j, difference, inverse)
        eps = _substitute(eps, row2, i + 2, j, difference, inverse)
        eps = _substitute(eps, row3, i + 3, j, difference, inverse)
        row0, row1, row2, row3 = next0, next1, next2, next3
    log_q = -tl.sum(0.5 * eps * eps + log_sigma, 1)[:, None] - tl.cast(D, dtype) * HALF_LOG_2PI
    tl.store(eps_ptr + (sample * n_rows + row) * D + j, eps, mask)
    tl.store(log_q_ptr + sample * n_rows + row, log_q)


@triton.jit(do_not_specialize=[*_GENERIC, "stride_log_sigma"], do_not_specialize_on_alignment=["samples"])
def _tril_gaussian_log_prob_bwd_kernel(
    d_z_ptr, weighted_ptr, d_log_q_ptr, eps_ptr, log_sigma_ptr, tril_ptr,
    n_rows, samples, D, stride_log_sigma, stride_tril, stride_tril_i,
    DENSE: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """One program owns BLOCK_K samples of BLOCK_N rows and solves (diag(sigma) + T)^T w = eps, from the last row up.

    weighted = d_log_q w = -d_z.
    The gradients to the parameters are those of the sample, with `weighted` in place of d_z.
    """
    dtype: tl.constexpr = d_log_q_ptr.dtype.element_ty
    sample, row = _points(n_rows, samples, BLOCK_K, BLOCK_N)
    j = tl.arange(0, BLOCK_D)[None, :]
    mask = j < D
    tril_ptr += row * stride_tril
    at = (sample * n_rows + row) * D + j
    residual = tl.load(eps_ptr + at, mask, 0.0)
    log_sigma = tl.load(log_sigma_ptr + row * stride_log_sigma + j, mask, 0.0).to(dtype)
    inverse = exp(-log_sigma, dtype)
    row0 = _tril_row(tril_ptr, D - 1, j, D, stride_tril_i, DENSE)
    row1 = _tril_row(tril_ptr, D - 2, j, D, stride_tril_i, DENSE)
    row2 = _tril_row(tril_ptr, D - 3, j, D, stride_tril_i, DENSE)
    row3 = _tril_row(tril_ptr, D - 4, j, D, stride_tril_i, DENSE)
    for done in range(0, D, 4):
        i = D - 1 - done
        next0 = _tril_row(tril_ptr, i - 4, j, D, stride_tril_i, DENSE)
        next1 = _tril_row(tril_ptr, i - 5, j, D, stride_tril_i, DENSE)
        next2 = _tril_row(tril_ptr, i - 6, j, D, stride_tril_i, DENSE)
        next3 = _tril_row(tril_ptr, i - 7, j, D, stride_tril_i, DENSE)
        residual = _eliminate(residual, row0, i, j, inverse)
        residual = _eliminate(residual, row1, i - 1, j, inverse)
        residual = _eliminate(residual, row2, i - 2, j, inverse)
        residual = _eliminate(residual, row3, i - 3, j, inverse)
        row0, row1, row2, row3 = next0, next1, next2, next3
    weighted = tl.load(d_log_q_ptr + sample * n_rows + row) * residual * inverse
    tl.store(weighted_ptr + at, weighted, mask)
    tl.store(d_z_ptr + at, (-weighted).to(d_z_ptr.dtype.element_ty), mask)


@triton.jit
def _tril_elements(tril_ptr, at, D, size, stride_i, exists, DENSE: tl.constexpr):
    """The elements of T numbered `at` in the order of its storage, 0 where T has none."""
    if DENSE:
        i, j = at // D, at % D
        return tl.load(tril_ptr + i.to(tl.int64) * stride_i + j, exists & (at < size) & (j < i), 0.0)
    else:
        return tl.load(tril_ptr + at, exists & (at < size), 0.0)


@triton.jit(do_not_specialize=["n_rows"])
def _tril_gaussian_kl_fwd_kernel(
    kl_ptr, mu_ptr, log_sigma_ptr, tril_ptr,
    n_rows, D, size, stride_mu, stride_log_sigma, stride_tril, stride_tril_i,
    DENSE: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """One program owns BLOCK_N rows.

    kl = sum_ij T_ij^2 / 2 + sum_i (sigma_i^2 - 1 - 2 log_sigma_i + mu_i^2) / 2.
    The backward pass keeps the inputs.
    """
    dtype: tl.constexpr = kl_ptr.dtype.element_ty
    row = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)[:, None]
    exists = row < n_rows
    total = tl.zeros((BLOCK_N, BLOCK_P), dtype)
    for start in range(0, D, BLOCK_P):
        at = start + tl.arange(0, BLOCK_P)[None, :]
        mu = tl.load(mu_ptr + row * stride_mu + at, exists & (at < D), 0.0).to(dtype)
        log_sigma = tl.load(log_sigma_ptr + row * stride_log_sigma + at, exists & (at < D), 0.0).to(dtype)
        # 0 where there is no element, since there mu = log_sigma = 0.
        total += mu * mu + (exp(2.0 * log_sigma, dtype) - 1.0 - 2.0 * log_sigma)
    for start in range(0, size, BLOCK_P):
        at = start + tl.arange(0, BLOCK_P)[None, :]
        t = _tril_elements(tril_ptr + row * stride_tril, at, D, size, stride_tril_i, exists, DENSE).to(dtype)
        total += t * t
    tl.store(kl_ptr + row, 0.5 * tl.sum(total, 1)[:, None], exists)


@triton.jit(do_not_specialize=["n_rows"])
def _tril_gaussian_kl_bwd_kernel(
    d_mu_ptr, d_log_sigma_ptr, d_tril_ptr, d_kl_ptr, mu_ptr, log_sigma_ptr, tril_ptr,
    n_rows, D, size, stride_mu, stride_log_sigma, stride_tril, stride_tril_i,
    DENSE: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """One program owns BLOCK_P elements of T, and those of mu and log_sigma with the same numbers, for BLOCK_N rows.

    d_mu = d_kl mu,  d_log_sigma = d_kl (sigma^2 - 1),  d_T = d_kl T.
    """
    dtype: tl.constexpr = d_kl_ptr.dtype.element_ty
    out_dtype: tl.constexpr = d_mu_ptr.dtype.element_ty
    blocks = tl.cdiv(tl.maximum(size, D), BLOCK_P)
    row = (tl.program_id(0) // blocks).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)[:, None]
    start = (tl.program_id(0) % blocks) * BLOCK_P
    at = start + tl.arange(0, BLOCK_P)[None, :]
    exists = row < n_rows
    d_kl = tl.load(d_kl_ptr + row, exists, 0.0)
    t = _tril_elements(tril_ptr + row * stride_tril, at, D, size, stride_tril_i, exists, DENSE).to(dtype)
    tl.store(d_tril_ptr + row * size + at, (d_kl * t).to(out_dtype), exists & (at < size))
    if start < D:
        mask = exists & (at < D)
        mu = tl.load(mu_ptr + row * stride_mu + at, mask).to(dtype)
        log_sigma = tl.load(log_sigma_ptr + row * stride_log_sigma + at, mask).to(dtype)
        d_log_sigma = d_kl * (exp(2.0 * log_sigma, dtype) - 1.0)
        tl.store(d_mu_ptr + row * D + at, (d_kl * mu).to(out_dtype), mask)
        tl.store(d_log_sigma_ptr + row * D + at, d_log_sigma.to(out_dtype), mask)


def tril_gaussian_log_prob_fwd(z: Tensor, mu: Tensor, log_sigma: Tensor, tril: Tensor) -> tuple[Tensor, Tensor]:
    """The log-density (K, N), and the standardised points eps (K, N, D) that the backward pass keeps."""
    samples, n, d = z.shape
    dtype = compute_dtype(mu.dtype)
    log_q, eps = mu.new_empty((samples, n), dtype=dtype), mu.new_empty((samples, n, d), dtype=dtype)
    strides = *z.stride()[:2], mu.stride(0), log_sigma.stride(0), *tril_strides(tril)
    plan = _plan_log_prob(mu.get_device(), mu.dtype, n, samples, d, strides, tril.ndim == 3, False)
    plan.launch(log_q, eps, z, mu, log_sigma, tril)
    return log_q, eps


@by_shape
def _plan_log_prob(
    device: int,
    dtype: torch.dtype,
    n: int,
    samples: int,
    d: int,
    strides: Sequence[int],
    dense: bool,
    is_backward: bool,
) -> Plan:
    tile = solve_tile(samples, n, d)
    return Plan(
        device, _tril_gaussian_log_prob_bwd_kernel if is_backward else _tril_gaussian_log_prob_fwd_kernel,
        ceil_div(samples, tile.samples) * ceil_div(n, tile.rows), (n, samples, d, *strides),
        DENSE=dense, BLOCK_K=tile.samples, BLOCK_N=tile.rows, BLOCK_D=tile.columns, num_warps=tile.warps,
    )  # fmt: skip


def tril_gaussian_log_prob_bwd(
    d_log_q: Tensor, eps: Tensor, log_sigma: Tensor, tril: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients to z, mu, log_sigma and tril."""
    samples, n, d = eps.shape
    d_z, weighted = log_sigma.new_empty((samples, n, d)), torch.empty_like(eps)
    strides, dtype = (log_sigma.stride(0), *tril_strides(tril)), log_sigma.dtype
    plan = _plan_log_prob(log_sigma.get_device(), dtype, n, samples, d, strides, tril.ndim == 3, True)
    plan.launch(d_z, weighted, d_log_q, eps, log_sigma, tril)
    return d_z, *tril_gaussian_bwd(weighted, d_log_q, log_sigma, eps, 0, tril.ndim == 3)


@by_shape
def _plan_kl(
    device: int, dtype: torch.dtype, n: int, d: int, strides: Sequence[int], dense: bool, is_backward: bool
) -> Plan:
    # Elements of one matrix as stored, and a tile of four accesses per thread.
    size = d * d if dense else d * (d - 1) // 2
    tile = row_tile(n, max(size, d), 4 * (1 if dense else vector_width(dtype, size)))
    return Plan(
        device, _tril_gaussian_kl_bwd_kernel if is_backward else _tril_gaussian_kl_fwd_kernel,
        ceil_div(n, tile.rows) * (ceil_div(max(size, d), tile.columns) if is_backward else 1),
        (n, d, size, *strides), DENSE=dense, BLOCK_N=tile.rows, BLOCK_P=tile.columns, num_warps=tile.warps,
    )  # fmt: skip


def tril_gaussian_kl_fwd(mu: Tensor, log_sigma: Tensor, tril: Tensor) -> Tensor:
    n, d = mu.shape
    kl = mu.new_empty((n,), dtype=compute_dtype(mu.dtype))
    strides = mu.stride(0), log_sigma.stride(0), *tril_strides(tril)
    plan = _plan_kl(mu.get_device(), mu.dtype, n, d, strides, tril.ndim == 3, False)
    plan.launch(kl, mu, log_sigma, tril)
    return kl


def tril_gaussian_kl_bwd(d_kl: Tensor, mu: Tensor, log_sigma: Tensor, tril: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients to mu, log_sigma and tril."""
    n, d = mu.shape
    d_mu, d_log_sigma, d_tril = mu.new_empty((n, d)), mu.new_empty((n, d)), mu.new_empty(tril.shape)
    strides = mu.stride(0), log_sigma.stride(0), *tril_strides(tril)
    plan = _plan_kl(mu.get_device(), mu.dtype, n, d, strides, tril.ndim == 3, True)
    plan.launch(d_mu, d_log_sigma, d_tril, d_kl, mu, log_sigma, tril)
    return d_mu, d_log_sigma, d_tril


def aot_cases() -> list[AotCase]:
    cases = []
    for dtype, d, dense in (
        (torch.float32, 512, False),
        (torch.float32, 8, True),
        (torch.bfloat16, 512, False),
        (torch.float64, 63, True),
    ):
        n, samples = 1024, 1 if d == 512 else 8
        name = f"{str(dtype)[6:]}, D = {d}, {'dense' if dense else 'packed'}"
        parameter, z = meta(n, d, dtype=dtype), meta(samples, n, d, dtype=dtype)
        tril = meta(n, d, d, dtype=dtype) if dense else meta(n, d * (d - 1) // 2, dtype=dtype)
        d_log_q, eps = meta(samples, n, dtype=compute_dtype(dtype)), meta(samples, n, d, dtype=compute_dtype(dtype))
        cases += [
            AotCase(name, tril_gaussian_log_prob_fwd, (z, parameter, parameter, tril)),
            AotCase(name, tril_gaussian_log_prob_bwd, (d_log_q, eps, parameter, tril)),
            AotCase(name, tril_gaussian_kl_fwd, (parameter, parameter, tril)),
            AotCase(name, tril_gaussian_kl_bwd, (d_log_q[0], parameter, parameter, tril)),
        ]
    return cases
