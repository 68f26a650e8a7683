"""Diagonal Gaussian: reparameterised sample with its log-density, and their gradient.

Tiles hold the columns c of a row's first quarter; the other three quarters are the same tile moved by Q columns.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._gaussian_kl import kl_part, load_d_kl
from ._launch import AotCase, Plan, by_shape, compute_dtype, meta, meta_noise
from ._philox import in_layout_of, noise_quarters, noise_source
from ._tiles import BLOCK_TERMS, ceil_div, point_tile, quarter_layout, row_stride, row_tile, sum_tile, tile_points
from ._vecmath import HALF_LOG_2PI, exp


@triton.jit(do_not_specialize=["n_rows", "row_offset", "vectors"], do_not_specialize_on_alignment=["samples"])
def _diag_gaussian_fwd_kernel(
    z_ptr, log_q_ptr, kl_ptr, mu_ptr, log_sigma_ptr, noise_ptr,
    n_rows, samples, row_offset, D, vectors, stride_mu, stride_log_sigma,
    GIVEN: tl.constexpr, HAS_KL: tl.constexpr, BY_DIMENSION: tl.constexpr, VECTOR: tl.constexpr,
    BLOCK_K: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_Q: tl.constexpr,
):  # fmt: skip
    """One program owns BLOCK_K samples of BLOCK_N rows, all columns.

    z = mu + exp(log_sigma) eps,  log_q = -sum(eps^2 / 2 + log_sigma + log(2 pi) / 2); with HAS_KL the first sample's
    program also writes kl = sum(exp(2 log_sigma) - 1 - 2 log_sigma + mu^2) / 2, or its terms.
    The backward pass keeps log_sigma and the seed, with HAS_KL also mu.
    """
    dtype: tl.constexpr = log_q_ptr.dtype.element_ty
    out_dtype: tl.constexpr = z_ptr.dtype.element_ty
    quarter = vectors * VECTOR  # the factor tells the compiler that each quarter is aligned
    # Samples of the same rows run side by side and find mu and log_sigma in the L2 cache.
    sample_blocks = tl.cdiv(samples, BLOCK_K)
    sample, row = tile_points(tl.program_id(0) % sample_blocks, tl.program_id(0) // sample_blocks, BLOCK_K, BLOCK_N)
    sample, row = sample[:, None], row[:, None]
    exists = (row < n_rows) & (sample < samples)
    point = sample.to(tl.int64) * n_rows + row
    mu_ptr += row * stride_mu
    log_sigma_ptr += row * stride_log_sigma
    z_ptr += point * D
    source = noise_source(noise_ptr, GIVEN)
    total = tl.zeros((BLOCK_K * BLOCK_N, BLOCK_Q), dtype)
    if HAS_KL:
        kl = tl.zeros((BLOCK_K * BLOCK_N, BLOCK_Q), dtype)
    for start in range(0, quarter, BLOCK_Q):
        column = start + tl.arange(0, BLOCK_Q)[None, :]
        inside = exists & (column < quarter)
        first = tl.load(log_sigma_ptr + column, inside, 0.0)
        counter = column if GIVEN else in_layout_of(column, first)
        eps = noise_quarters(source, sample, row, counter, row_offset, n_rows, D, quarter, inside, GIVEN, dtype)
        squares = tl.zeros((BLOCK_K * BLOCK_N, BLOCK_Q), dtype)
        for lane in tl.static_range(4):
            at = lane * quarter + column
            # Where quarters are aligned all four are full.
            mask = inside if VECTOR > 1 else inside & (at < D)
            log_sigma = tl.load(log_sigma_ptr + at, mask, 0.0).to(dtype)
            mu = tl.load(mu_ptr + at, mask).to(dtype)
            e = eps[lane] if VECTOR > 1 else tl.where(mask, eps[lane], 0.0)
            tl.store(z_ptr + at, (mu + exp(log_sigma, out_dtype) * e).to(out_dtype), mask)
            squares += e * e
            total += log_sigma
            if HAS_KL:
                part = kl_part(tl.where(mask, mu, 0.0), log_sigma, dtype)
                if BY_DIMENSION:
                    tl.store(kl_ptr + row * D + at, part, mask & (sample == 0))
                else:
                    kl += part
        total += tl.where(inside, 0.5 * squares, 0.0)
    log_q = -tl.sum(total, 1)[:, None] - tl.cast(D, dtype) * HALF_LOG_2PI
    tl.store(log_q_ptr + point, log_q, exists)
    if HAS_KL and not BY_DIMENSION:
        tl.store(kl_ptr + row, tl.sum(kl, 1)[:, None], exists & (sample == 0))


@triton.jit(do_not_specialize=["n_rows", "row_offset", "vectors"])
def _diag_gaussian_bwd_kernel(
    d_log_sigma_ptr, d_mu_ptr, d_z_ptr, d_log_q_ptr, d_kl_ptr, mu_ptr, log_sigma_ptr, noise_ptr,
    n_rows, row_offset, D, vectors, stride_mu, stride_log_sigma,
    GIVEN: tl.constexpr, HAS_KL: tl.constexpr, BY_DIMENSION: tl.constexpr, VECTOR: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_Q: tl.constexpr,
):  # fmt: skip
    """One program owns BLOCK_N rows of the only sample, BLOCK_Q columns of every quarter.

    d_log_sigma = d_z sigma eps - d_log_q; with HAS_KL d_kl (sigma^2 - 1) more, and d_mu = d_z + d_kl mu.
    eps is drawn again from the seed, or given again.
    """
    dtype: tl.constexpr = d_log_q_ptr.dtype.element_ty
    out_dtype: tl.constexpr = d_log_sigma_ptr.dtype.element_ty
    quarter = vectors * VECTOR
    column_blocks = tl.cdiv(quarter, BLOCK_Q)
    row = (tl.program_id(0) // column_blocks).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)[:, None]
    column = (tl.program_id(0) % column_blocks) * BLOCK_Q + tl.arange(0, BLOCK_Q)[None, :]
    inside = (row < n_rows) & (column < quarter)
    d_log_q = tl.load(d_log_q_ptr + row, row < n_rows, 0.0)
    sample = tl.zeros((), tl.int32)
    source = noise_source(noise_ptr, GIVEN)
    counter = column if GIVEN else in_layout_of(column, tl.load(d_z_ptr + row * D + column, inside))
    eps = noise_quarters(source, sample, row, counter, row_offset, n_rows, D, quarter, inside, GIVEN, dtype)
    for lane in tl.static_range(4):
        at = lane * quarter + column
        mask = inside if VECTOR > 1 else inside & (at < D)
        log_sigma = tl.load(log_sigma_ptr + row * stride_log_sigma + at, mask, 0.0).to(dtype)
        sigma = exp(log_sigma, out_dtype)
        d_z = tl.load(d_z_ptr + row * D + at, mask, 0.0).to(dtype)
        d_log_sigma = d_z * sigma * eps[lane] - d_log_q
        if HAS_KL:
            d_kl = load_d_kl(d_kl_ptr, row, at, n_rows, D, BY_DIMENSION)
            d_log_sigma += d_kl * (exp(2.0 * log_sigma, dtype) - 1.0)
            d_mu = d_z + d_kl * tl.load(mu_ptr + row * stride_mu + at, mask, 0.0).to(dtype)
            tl.store(d_mu_ptr + row * D + at, d_mu.to(out_dtype), mask)
        tl.store(d_log_sigma_ptr + row * D + at, d_log_sigma.to(out_dtype), mask)


@triton.jit(do_not_specialize=["n_rows", "row_offset", "vectors"], do_not_specialize_on_alignment=["samples"])
def _diag_gaussian_bwd_samples_kernel(
    d_mu_ptr, d_log_sigma_ptr, d_z_ptr, d_log_q_ptr, d_kl_ptr, mu_ptr, log_sigma_ptr, noise_ptr,
    n_rows, samples, row_offset, D, vectors, stride_mu, stride_log_sigma,
    GIVEN: tl.constexpr, HAS_KL: tl.constexpr, BY_DIMENSION: tl.constexpr, VECTOR: tl.constexpr, LONG: tl.constexpr,
    BLOCK_K: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_Q: tl.constexpr,
):  # fmt: skip
    """One program owns BLOCK_N rows, BLOCK_Q columns of every quarter, and walks all samples, BLOCK_K at a time.

    d_mu = sum_k d_z,  d_log_sigma = sum_k (d_z sigma eps - d_log_q); with HAS_KL d_kl mu and d_kl (sigma^2 - 1) more.
    The order of summation is fixed, by blocks of samples: no atomics.
    """
    dtype: tl.constexpr = d_log_q_ptr.dtype.element_ty
    out_dtype: tl.constexpr = d_mu_ptr.dtype.element_ty
    quarter = vectors * VECTOR
    column_blocks = tl.cdiv(quarter, BLOCK_Q)
    rows = (tl.program_id(0) // column_blocks).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    columns = (tl.program_id(0) % column_blocks) * BLOCK_Q + tl.arange(0, BLOCK_Q)
    row, column = rows[None, :, None], columns[None, None, :]
    owned = (row < n_rows) & (column < quarter)
    zero, zero_log_q = tl.zeros((BLOCK_K, BLOCK_N, BLOCK_Q), dtype), tl.zeros((BLOCK_K, BLOCK_N, 1), dtype)
    d_mu0, d_mu1, d_mu2, d_mu3 = zero, zero, zero, zero
    product0, product1, product2, product3 = zero, zero, zero, zero
    d_log_q = zero_log_q
    source = noise_source(noise_ptr, GIVEN)
    for first in range(0, samples if LONG else 1, BLOCK_TERMS * BLOCK_K):
        mu0, mu1, mu2, mu3 = zero, zero, zero, zero
        part0, part1, part2, part3 = zero, zero, zero, zero
        log_q = zero_log_q
        last = tl.minimum(first + BLOCK_TERMS * BLOCK_K, samples) if LONG else samples
        for start in range(first, last, BLOCK_K):
            sample = start + tl.arange(0, BLOCK_K)[:, None, None]
            inside = owned & (sample < samples)
            point = sample.to(tl.int64) * n_rows + row
            at_ptr = d_z_ptr + point * D + column
            d_z0 = tl.load(at_ptr, inside, 0.0)
            counter = column if GIVEN else in_layout_of(column, d_z0)
            eps = noise_quarters(source, sample, row, counter, row_offset, n_rows, D, quarter, inside, GIVEN, dtype)
            d_z0 = d_z0.to(dtype)
            d_z1 = tl.load(at_ptr + quarter, inside & (column + quarter < D), 0.0).to(dtype)
            d_z2 = tl.load(at_ptr + 2 * quarter, inside & (column + 2 * quarter < D), 0.0).to(dtype)
            d_z3 = tl.load(at_ptr + 3 * quarter, inside & (column + 3 * quarter < D), 0.0).to(dtype)
            log_q += tl.load(d_log_q_ptr + point, (row < n_rows) & (sample < samples), 0.0)
            mu0, part0 = mu0 + d_z0, part0 + d_z0 * eps[0]
            mu1, part1 = mu1 + d_z1, part1 + d_z1 * eps[1]
            mu2, part2 = mu2 + d_z2, part2 + d_z2 * eps[2]
            mu3, part3 = mu3 + d_z3, part3 + d_z3 * eps[3]
        d_log_q += log_q
        d_mu0, product0 = d_mu0 + mu0, product0 + part0
        d_mu1, product1 = d_mu1 + mu1, product1 + part1
        d_mu2, product2 = d_mu2 + mu2, product2 + part2
        d_mu3, product3 = d_mu3 + mu3, product3 + part3
    d_mus = (d_mu0, d_mu1, d_mu2, d_mu3)
    product = (product0, product1, product2, product3)
    row, column = rows[:, None], columns[None, :]
    for lane in tl.static_range(4):
        at = lane * quarter + column
        mask = (row < n_rows) & (column < quarter) & (at < D)
        log_sigma = tl.load(log_sigma_ptr + row * stride_log_sigma + at, mask, 0.0).to(dtype)
        d_mu = tl.sum(d_mus[lane], 0)
        d_log_sigma = tl.sum(product[lane], 0) * exp(log_sigma, out_dtype) - tl.sum(d_log_q, 0)
        if HAS_KL:
            d_kl = load_d_kl(d_kl_ptr, row, at, n_rows, D, BY_DIMENSION)
            d_mu += d_kl * tl.load(mu_ptr + row * stride_mu + at, mask, 0.0).to(dtype)
            d_log_sigma += d_kl * (exp(2.0 * log_sigma, dtype) - 1.0)
        tl.store(d_mu_ptr + row * D + at, d_mu.to(out_dtype), mask)
        tl.store(d_log_sigma_ptr + row * D + at, d_log_sigma.to(out_dtype), mask)


def _fwd(
    mu: Tensor, log_sigma: Tensor, noise: Tensor, samples: int, row_offset: int, kl: Tensor | None
) -> tuple[Tensor, Tensor]:
    n, d = mu.shape
    z, log_q = mu.new_empty((samples, n, d)), mu.new_empty((samples, n), dtype=compute_dtype(mu.dtype))
    sizes, strides = (n, samples, row_offset, d), (mu.stride(0), log_sigma.stride(0))
    plan = _plan_fwd(mu.get_device(), mu.dtype, sizes, strides, noise.ndim > 0, 0 if kl is None else kl.ndim)
    plan.launch(z, log_q, kl, mu, log_sigma, noise)
    return z, log_q


@by_shape
def _plan_fwd(
    device: int,
    dtype: torch.dtype,
    sizes: tuple[int, int, int, int],
    strides: tuple[int, int],
    given: bool,
    kl_dimensions: int,
) -> Plan:
    """`kl_dimensions` is 1 for divergences of rows, 2 for those of dimensions, and 0 without."""
    n, samples, _, d = sizes
    quarter, vector = quarter_layout(dtype, d)
    tile = point_tile(samples, n, quarter, vector)
    return Plan(
        device, _diag_gaussian_fwd_kernel, ceil_div(samples, tile.samples) * ceil_div(n, tile.rows),
        (*sizes, quarter // vector, *strides),
        GIVEN=given, HAS_KL=kl_dimensions > 0, BY_DIMENSION=kl_dimensions == 2, VECTOR=vector,
        BLOCK_K=tile.samples, BLOCK_N=tile.rows, BLOCK_Q=tile.columns, num_warps=tile.warps,
    )  # fmt: skip


def _bwd(
    d_z: Tensor,
    d_log_q: Tensor,
    log_sigma: Tensor,
    noise: Tensor,
    row_offset: int,
    d_kl: Tensor | None = None,
    mu: Tensor | None = None,
) -> tuple[Tensor | None, Tensor]:
    """The gradients of one sample, d_z (1, N, D); that of mu is d_z itself and not written without d_kl."""
    n, d = log_sigma.shape
    d_mu, d_log_sigma = None if mu is None else mu.new_empty((n, d)), log_sigma.new_empty((n, d))
    sizes, strides = (n, row_offset, d), (row_stride(mu), log_sigma.stride(0))
    kl_dimensions, device = 0 if d_kl is None else d_kl.ndim, log_sigma.get_device()
    plan = _plan_bwd(device, log_sigma.dtype, sizes, strides, noise.ndim > 0, kl_dimensions)
    plan.launch(d_log_sigma, d_mu, d_z, d_log_q, d_kl, mu, log_sigma, noise)
    return d_mu, d_log_sigma


@by_shape
def _plan_bwd(
    device: int,
    dtype: torch.dtype,
    sizes: tuple[int, int, int],
    strides: tuple[int, int],
    given: bool,
    kl_dimensions: int,
) -> Plan:
    n, _, d = sizes
    quarter, vector = quarter_layout(dtype, d)
    tile = row_tile(n, quarter, vector)
    return Plan(
        device, _diag_gaussian_bwd_kernel, ceil_div(n, tile.rows) * ceil_div(quarter, tile.columns),
        (*sizes, quarter // vector, *strides),
        GIVEN=given, HAS_KL=kl_dimensions > 0, BY_DIMENSION=kl_dimensions == 2, VECTOR=vector,
        BLOCK_N=tile.rows, BLOCK_Q=tile.columns, num_warps=tile.warps,
    )  # fmt: skip


def _bwd_samples(
    d_z: Tensor,
    d_log_q: Tensor,
    log_sigma: Tensor,
    noise: Tensor,
    row_offset: int,
    d_kl: Tensor | None = None,
    mu: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    samples, n, d = d_z.shape
    d_mu, d_log_sigma = log_sigma.new_empty((n, d)), log_sigma.new_empty((n, d))
    sizes, strides = (n, samples, row_offset, d), (row_stride(mu), log_sigma.stride(0))
    kl_dimensions, device = 0 if d_kl is None else d_kl.ndim, log_sigma.get_device()
    plan = _plan_bwd_samples(device, log_sigma.dtype, sizes, strides, noise.ndim > 0, kl_dimensions)
    plan.launch(d_mu, d_log_sigma, d_z, d_log_q, d_kl, mu, log_sigma, noise)
    return d_mu, d_log_sigma


@by_shape
def _plan_bwd_samples(
    device: int,
    dtype: torch.dtype,
    sizes: tuple[int, int, int, int],
    strides: tuple[int, int],
    given: bool,
    kl_dimensions: int,
) -> Plan:
    n, samples, _, d = sizes
    quarter, vector = quarter_layout(dtype, d)
    tile = sum_tile(samples, n, quarter, vector)
    return Plan(
        device, _diag_gaussian_bwd_samples_kernel, ceil_div(n, tile.rows) * ceil_div(quarter, tile.columns),
        (*sizes, quarter // vector, *strides),
        GIVEN=given, HAS_KL=kl_dimensions > 0, BY_DIMENSION=kl_dimensions == 2, VECTOR=vector,
        LONG=samples > BLOCK_TERMS.value * tile.samples,
        BLOCK_K=tile.samples, BLOCK_N=tile.rows, BLOCK_Q=tile.columns, num_warps=tile.warps,
    )  # fmt: skip


def diag_gaussian_fwd(
    mu: Tensor, log_sigma: Tensor, noise: Tensor, samples: int, row_offset: int
) -> tuple[Tensor, Tensor]:
    return _fwd(mu, log_sigma, noise, samples, row_offset, None)


def diag_gaussian_bwd(d_z: Tensor, d_log_q: Tensor, log_sigma: Tensor, noise: Tensor, row_offset: int) -> Tensor:
    """The gradient to log_sigma of one sample, d_z (1, N, D); the gradient to mu is d_z itself."""
    return _bwd(d_z, d_log_q, log_sigma, noise, row_offset)[1]


def diag_gaussian_bwd_samples(
    d_z: Tensor, d_log_q: Tensor, log_sigma: Tensor, noise: Tensor, row_offset: int
) -> tuple[Tensor, Tensor]:
    """The gradients to mu and log_sigma of K samples, d_z (K, N, D)."""
    return _bwd_samples(d_z, d_log_q, log_sigma, noise, row_offset)


def diag_gaussian_with_kl_fwd(
    mu: Tensor, log_sigma: Tensor, noise: Tensor, samples: int, row_offset: int, by_dimension: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The same for one sample or more with the divergence from N(0, I), (N,), or that of each dimension, (N, D)."""
    kl = mu.new_empty(mu.shape if by_dimension else mu.shape[:1], dtype=compute_dtype(mu.dtype))
    return *_fwd(mu, log_sigma, noise, samples, row_offset, kl), kl


def diag_gaussian_with_kl_bwd(
    d_z: Tensor, d_log_q: Tensor, d_kl: Tensor, mu: Tensor, log_sigma: Tensor, noise: Tensor, row_offset: int
) -> tuple[Tensor | None, Tensor]:
    """The gradients to mu and log_sigma of K samples, d_z (K, N, D), and of the divergence."""
    bwd = _bwd if d_z.shape[0] == 1 else _bwd_samples
    return bwd(d_z, d_log_q, log_sigma, noise, row_offset, d_kl, mu)


def aot_cases() -> list[AotCase]:
    cases = []
    for dtype, d, given in (
        (torch.float32, 1024, False),
        (torch.float32, 63, True),
        (torch.bfloat16, 1024, False),
        (torch.float16, 1, False),
        (torch.float64, 1024, True),
    ):
        n, name = 65536, f"{str(dtype)[6:]}, D = {d}, {'eps' if given else 'seed'}"
        samples = 1 if d == 1024 else 8
        parameter, noise = meta(n, d, dtype=dtype), meta_noise(8, n, d, given=given)
        d_log_q = meta(8, n, dtype=compute_dtype(dtype))
        upstream = (meta(8, n, d, dtype=dtype), d_log_q, parameter, noise, 0)
        cases += [
            AotCase(name, diag_gaussian_fwd, (parameter, parameter, noise, samples, 0)),
            AotCase(name, diag_gaussian_bwd, upstream),
            AotCase(name, diag_gaussian_bwd_samples, upstream),
        ]
    # With the divergence: of one sample and of several, of rows and of dimensions.
    for dtype, d, samples, by_dimension in (
        (torch.float32, 1024, 1, False),
        (torch.float32, 63, 8, True),
        (torch.bfloat16, 1024, 1, True),
        (torch.float64, 1024, 8, False),
    ):
        n, kind = 65536, "kl of each dimension" if by_dimension else "kl"
        name = f"{str(dtype)[6:]}, D = {d}, {kind}"
        parameter, seed, wide = meta(n, d, dtype=dtype), meta(dtype=torch.int64), compute_dtype(dtype)
        d_kl = meta(*(n, d)[: 1 + by_dimension], dtype=wide)
        gradients = (meta(samples, n, d, dtype=dtype), meta(samples, n, dtype=wide), d_kl)
        cases += [
            AotCase(name, diag_gaussian_with_kl_fwd, (parameter, parameter, seed, samples, 0, by_dimension)),
            AotCase(name, diag_gaussian_with_kl_bwd, (*gradients, parameter, parameter, seed, 0)),
        ]
    return cases
