"""Diagonal Gaussian: log-density of foreign points and KL divergences, with their gradients."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._launch import AotCase, Plan, by_shape, compute_dtype, meta
from ._tiles import BLOCK_TERMS, ceil_div, point_tile, row_stride, row_tile, sum_tile, tile_points, vector_width
from ._vecmath import HALF_LOG_2PI, exp


@triton.jit(do_not_specialize=["n_rows"], do_not_specialize_on_alignment=["samples"])
def _diag_gaussian_log_prob_fwd_kernel(
    log_q_ptr, z_ptr, mu_ptr, log_sigma_ptr,
    n_rows, samples, D, stride_zk, stride_zn, stride_mu, stride_log_sigma,
    BLOCK_K: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """One program owns BLOCK_K samples of BLOCK_N rows, all columns.

    log_q = -sum(eps^2 / 2 + log_sigma + log(2 pi) / 2),  eps = (z - mu) / sigma.
    The backward pass keeps the inputs.
    """
    dtype: tl.constexpr = log_q_ptr.dtype.element_ty
    sample_blocks = tl.cdiv(samples, BLOCK_K)
    sample, row = tile_points(tl.program_id(0) % sample_blocks, tl.program_id(0) // sample_blocks, BLOCK_K, BLOCK_N)
    sample, row = sample.to(tl.int64)[:, None], row[:, None]
    exists = (row < n_rows) & (sample < samples)
    z_ptr += sample * stride_zk + row * stride_zn
    mu_ptr += row * stride_mu
    log_sigma_ptr += row * stride_log_sigma
    total = tl.zeros((BLOCK_K * BLOCK_N, BLOCK_D), dtype)
    for start in range(0, D, BLOCK_D):
        column = start + tl.arange(0, BLOCK_D)[None, :]
        mask = exists & (column < D)
        log_sigma = tl.load(log_sigma_ptr + column, mask, 0.0).to(dtype)
        difference = tl.load(z_ptr + column, mask, 0.0).to(dtype) - tl.load(mu_ptr + column, mask, 0.0).to(dtype)
        eps = difference * exp(-log_sigma, dtype)
        total += 0.5 * eps * eps + log_sigma
    log_q = -tl.sum(total, 1)[:, None] - tl.cast(D, dtype) * HALF_LOG_2PI
    tl.store(log_q_ptr + sample * n_rows + row, log_q, exists)


@triton.jit(do_not_specialize=["n_rows"], do_not_specialize_on_alignment=["samples"])
def _diag_gaussian_log_prob_bwd_kernel(
    d_z_ptr, d_mu_ptr, d_log_sigma_ptr, d_log_q_ptr, z_ptr, mu_ptr, log_sigma_ptr,
    n_rows, samples, D, stride_zk, stride_zn, stride_mu, stride_log_sigma,
    LONG: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """One program owns BLOCK_N rows, BLOCK_D columns, and walks all samples, BLOCK_K at a time.

    d_z = -d_log_q eps / sigma,  d_mu = -sum_k d_z,  d_log_sigma = sum_k d_log_q (eps^2 - 1).
    The order of summation is fixed, by blocks of samples: no atomics.
    """
    dtype: tl.constexpr = d_log_q_ptr.dtype.element_ty
    out_dtype: tl.constexpr = d_mu_ptr.dtype.element_ty
    column_blocks = tl.cdiv(D, BLOCK_D)
    row = (tl.program_id(0) // column_blocks).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)[:, None]
    column = (tl.program_id(0) % column_blocks) * BLOCK_D + tl.arange(0, BLOCK_D)[None, :]
    owned = (row < n_rows) & (column < D)
    mu = tl.load(mu_ptr + row * stride_mu + column, owned, 0.0).to(dtype)[None, :, :]
    log_sigma = tl.load(log_sigma_ptr + row * stride_log_sigma + column, owned, 0.0).to(dtype)
    inverse = exp(-log_sigma, dtype)[None, :, :]
    d_mu = tl.zeros((BLOCK_K, BLOCK_N, BLOCK_D), dtype)
    d_log_sigma = tl.zeros((BLOCK_K, BLOCK_N, BLOCK_D), dtype)
    for first in range(0, samples if LONG else 1, BLOCK_TERMS * BLOCK_K):
        of_mu = tl.zeros((BLOCK_K, BLOCK_N, BLOCK_D), dtype)
        of_scale = tl.zeros((BLOCK_K, BLOCK_N, BLOCK_D), dtype)
        last = tl.minimum(first + BLOCK_TERMS * BLOCK_K, samples) if LONG else samples
        for start in range(first, last, BLOCK_K):
            sample = start + tl.arange(0, BLOCK_K)[:, None, None]
            mask = owned[None, :, :] & (sample < samples)
            point = sample.to(tl.int64) * n_rows + row[None, :, :]
            d_log_q = tl.load(d_log_q_ptr + point, (sample < samples) & (row < n_rows)[None, :, :], 0.0)
            at = sample.to(tl.int64) * stride_zk + (row * stride_zn)[None, :, :] + column[None, :, :]
            eps = (tl.load(z_ptr + at, mask, 0.0).to(dtype) - mu) * inverse
            d_difference = d_log_q * eps * inverse
            tl.store(d_z_ptr + point * D + column[None, :, :], (-d_difference).to(out_dtype), mask)
            of_mu += d_difference
            of_scale += d_log_q * (eps * eps - 1.0)
        d_mu += of_mu
        d_log_sigma += of_scale
    tl.store(d_mu_ptr + row * D + column, tl.sum(d_mu, 0).to(out_dtype), owned)
    tl.store(d_log_sigma_ptr + row * D + column, tl.sum(d_log_sigma, 0).to(out_dtype), owned)


@triton.jit(do_not_specialize=["n_rows"])
def _diag_gaussian_kl_fwd_kernel(
    kl_ptr, mu_ptr, log_sigma_ptr, prior_mu_ptr, prior_log_sigma_ptr,
    n_rows, D, stride_mu, stride_log_sigma, stride_prior_mu, stride_prior_log_sigma,
    HAS_PRIOR: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """One program owns BLOCK_N rows, all columns.

    kl = sum(exp(2 s) - 1 - 2 s + m^2) / 2,  s = log_sigma - prior_log_sigma,  m = (mu - prior_mu) / prior_sigma.
    The backward pass keeps the inputs.
    """
    dtype: tl.constexpr = kl_ptr.dtype.element_ty
    row = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)[:, None]
    total = tl.zeros((BLOCK_N, BLOCK_D), dtype)
    for start in range(0, D, BLOCK_D):
        column = start + tl.arange(0, BLOCK_D)[None, :]
        mask = (row < n_rows) & (column < D)
        m = tl.load(mu_ptr + row * stride_mu + column, mask, 0.0).to(dtype)
        s = tl.load(log_sigma_ptr + row * stride_log_sigma + column, mask, 0.0).to(dtype)
        if HAS_PRIOR:
            prior_log_sigma = tl.load(prior_log_sigma_ptr + row * stride_prior_log_sigma + column, mask, 0.0).to(dtype)
            m -= tl.load(prior_mu_ptr + row * stride_prior_mu + column, mask, 0.0).to(dtype)
            m *= exp(-prior_log_sigma, dtype)
            s -= prior_log_sigma
        # Where there is no element, mu = log_sigma = 0 and the term is exactly 0.
        total += 0.5 * (m * m + (exp(2.0 * s, dtype) - 1.0 - 2.0 * s))
    tl.store(kl_ptr + row, tl.sum(total, 1)[:, None], row < n_rows)


@triton.jit(do_not_specialize=["n_rows"])
def _diag_gaussian_kl_bwd_kernel(
    d_mu_ptr, d_log_sigma_ptr, d_prior_mu_ptr, d_prior_log_sigma_ptr,
    d_kl_ptr, mu_ptr, log_sigma_ptr, prior_mu_ptr, prior_log_sigma_ptr,
    n_rows, D, stride_mu, stride_log_sigma, stride_prior_mu, stride_prior_log_sigma,
    HAS_PRIOR: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """One program owns BLOCK_N rows, BLOCK_D columns.

    d_mu = d_kl m / prior_sigma = -d_prior_mu,  d_log_sigma = d_kl (exp(2 s) - 1) = -d_prior_log_sigma - d_kl m^2,
    with the forward kernel's s and m.
    """
    dtype: tl.constexpr = d_kl_ptr.dtype.element_ty
    out_dtype: tl.constexpr = d_mu_ptr.dtype.element_ty
    column_blocks = tl.cdiv(D, BLOCK_D)
    row = (tl.program_id(0) // column_blocks).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)[:, None]
    column = (tl.program_id(0) % column_blocks) * BLOCK_D + tl.arange(0, BLOCK_D)[None, :]
    mask = (row < n_rows) & (column < D)
    d_kl = tl.load(d_kl_ptr + row, row < n_rows, 0.0)
    m = tl.load(mu_ptr + row * stride_mu + column, mask, 0.0).to(dtype)
    s = tl.load(log_sigma_ptr + row * stride_log_sigma + column, mask, 0.0).to(dtype)
    at = row * D + column
    if HAS_PRIOR:
        prior_log_sigma = tl.load(prior_log_sigma_ptr + row * stride_prior_log_sigma + column, mask, 0.0).to(dtype)
        inverse = exp(-prior_log_sigma, dtype)
        m = (m - tl.load(prior_mu_ptr + row * stride_prior_mu + column, mask, 0.0).to(dtype)) * inverse
        s -= prior_log_sigma
        d_mu = d_kl * m * inverse
        d_log_sigma = d_kl * (exp(2.0 * s, dtype) - 1.0)
        tl.store(d_prior_mu_ptr + at, (-d_mu).to(out_dtype), mask)
        tl.store(d_prior_log_sigma_ptr + at, (-d_log_sigma - d_kl * m * m).to(out_dtype), mask)
    else:
        d_mu = d_kl * m
        d_log_sigma = d_kl * (exp(2.0 * s, dtype) - 1.0)
    tl.store(d_mu_ptr + at, d_mu.to(out_dtype), mask)
    tl.store(d_log_sigma_ptr + at, d_log_sigma.to(out_dtype), mask)


def diag_gaussian_log_prob_fwd(z: Tensor, mu: Tensor, log_sigma: Tensor) -> Tensor:
    samples, n, d = z.shape
    log_q = mu.new_empty((samples, n), dtype=compute_dtype(mu.dtype))
    strides = *z.stride()[:2], mu.stride(0), log_sigma.stride(0)
    _plan_log_prob_fwd(mu.get_device(), mu.dtype, n, samples, d, strides).launch(log_q, z, mu, log_sigma)
    return log_q


@by_shape
def _plan_log_prob_fwd(device: int, dtype: torch.dtype, n: int, samples: int, d: int, strides: Sequence[int]) -> Plan:
    tile = point_tile(samples, n, d, vector_width(dtype, d))
    return Plan(
        device, _diag_gaussian_log_prob_fwd_kernel, ceil_div(samples, tile.samples) * ceil_div(n, tile.rows),
        (n, samples, d, *strides),
        BLOCK_K=tile.samples, BLOCK_N=tile.rows, BLOCK_D=tile.columns, num_warps=tile.warps,
    )  # fmt: skip


def diag_gaussian_log_prob_bwd(
    d_log_q: Tensor, z: Tensor, mu: Tensor, log_sigma: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    samples, n, d = z.shape
    d_z, d_mu, d_log_sigma = mu.new_empty((samples, n, d)), mu.new_empty((n, d)), mu.new_empty((n, d))
    strides = *z.stride()[:2], mu.stride(0), log_sigma.stride(0)
    plan = _plan_log_prob_bwd(mu.get_device(), mu.dtype, n, samples, d, strides)
    plan.launch(d_z, d_mu, d_log_sigma, d_log_q, z, mu, log_sigma)
    return d_z, d_mu, d_log_sigma


@by_shape
def _plan_log_prob_bwd(device: int, dtype: torch.dtype, n: int, samples: int, d: int, strides: Sequence[int]) -> Plan:
    tile = sum_tile(samples, n, d, vector_width(dtype, d))
    return Plan(
        device, _diag_gaussian_log_prob_bwd_kernel, ceil_div(n, tile.rows) * ceil_div(d, tile.columns),
        (n, samples, d, *strides), LONG=samples > BLOCK_TERMS.value * tile.samples,
        BLOCK_K=tile.samples, BLOCK_N=tile.rows, BLOCK_D=tile.columns, num_warps=tile.warps,
    )  # fmt: skip


def _kl_fwd(mu: Tensor, log_sigma: Tensor, prior_mu: Tensor | None, prior_log_sigma: Tensor | None) -> Tensor:
    n, d = mu.shape
    kl = mu.new_empty((n,), dtype=compute_dtype(mu.dtype))
    tensors = mu, log_sigma, prior_mu, prior_log_sigma
    plan = _plan_kl_fwd(mu.get_device(), mu.dtype, n, d, tuple(map(row_stride, tensors)), prior_mu is not None)
    plan.launch(kl, *tensors)
    return kl


@by_shape
def _plan_kl_fwd(device: int, dtype: torch.dtype, n: int, d: int, strides: Sequence[int], has_prior: bool) -> Plan:
    tile = row_tile(n, d, vector_width(dtype, d))
    return Plan(
        device, _diag_gaussian_kl_fwd_kernel, ceil_div(n, tile.rows), (n, d, *strides),
        HAS_PRIOR=has_prior, BLOCK_N=tile.rows, BLOCK_D=tile.columns, num_warps=tile.warps,
    )  # fmt: skip


def _kl_bwd(
    d_kl: Tensor, mu: Tensor, log_sigma: Tensor, prior_mu: Tensor | None, prior_log_sigma: Tensor | None
) -> tuple[Tensor, ...]:
    n, d = mu.shape
    has_prior = prior_mu is not None
    gradients = [mu.new_empty((n, d)) for _ in range(4 if has_prior else 2)]
    tensors = mu, log_sigma, prior_mu, prior_log_sigma
    plan = _plan_kl_bwd(mu.get_device(), mu.dtype, n, d, tuple(map(row_stride, tensors)), has_prior)
    plan.launch(*gradients, *[None] * (4 - len(gradients)), d_kl, *tensors)
    return tuple(gradients)


@by_shape
def _plan_kl_bwd(device: int, dtype: torch.dtype, n: int, d: int, strides: Sequence[int], has_prior: bool) -> Plan:
    tile = row_tile(n, d, vector_width(dtype, d))
    return Plan(
        device, _diag_gaussian_kl_bwd_kernel, ceil_div(n, tile.rows) * ceil_div(d, tile.columns), (n, d, *strides),
        HAS_PRIOR=has_prior, BLOCK_N=tile.rows, BLOCK_D=tile.columns, num_warps=tile.warps,
    )  # fmt: skip


def diag_gaussian_kl_fwd(mu: Tensor, log_sigma: Tensor) -> Tensor:
    return _kl_fwd(mu, log_sigma, None, None)


def diag_gaussian_kl_bwd(d_kl: Tensor, mu: Tensor, log_sigma: Tensor) -> tuple[Tensor, ...]:
    return _kl_bwd(d_kl, mu, log_sigma, None, None)


def diag_gaussian_kl_prior_fwd(mu: Tensor, log_sigma: Tensor, prior_mu: Tensor, prior_log_sigma: Tensor) -> Tensor:
    return _kl_fwd(mu, log_sigma, prior_mu, prior_log_sigma)


def diag_gaussian_kl_prior_bwd(
    d_kl: Tensor, mu: Tensor, log_sigma: Tensor, prior_mu: Tensor, prior_log_sigma: Tensor
) -> tuple[Tensor, ...]:
    """The gradients to mu, log_sigma, prior_mu and prior_log_sigma."""
    return _kl_bwd(d_kl, mu, log_sigma, prior_mu, prior_log_sigma)


def aot_cases() -> list[AotCase]:
    cases = []
    for dtype, d, samples in ((torch.float32, 1024, 8), (torch.bfloat16, 1024, 1), (torch.float64, 63, 8)):
        n, name = 65536, f"{str(dtype)[6:]}, D = {d}"
        parameter, z = meta(n, d, dtype=dtype), meta(samples, n, d, dtype=dtype)
        d_log_q = meta(samples, n, dtype=compute_dtype(dtype))
        cases += [
            AotCase(name, diag_gaussian_log_prob_fwd, (z, parameter, parameter)),
            AotCase(name, diag_gaussian_log_prob_bwd, (d_log_q, z, parameter, parameter)),
            AotCase(name, diag_gaussian_kl_fwd, (parameter, parameter)),
            AotCase(name, diag_gaussian_kl_bwd, (d_log_q[0], parameter, parameter)),
            AotCase(name + ", prior", diag_gaussian_kl_prior_fwd, (parameter,) * 4),
            AotCase(name + ", prior", diag_gaussian_kl_prior_bwd, (d_log_q[0], *(parameter,) * 4)),
        ]
    return cases
