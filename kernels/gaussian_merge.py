"""Two diagonal Gaussians merged by their precisions: sample, densities, divergence from the prior, and gradients.

Tiles hold the columns c of a row's first quarter; the other three quarters are the same tile moved by Q columns.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._activations import log1p
from ._gaussian_kl import load_d_kl
from ._launch import AotCase, Plan, by_shape, compute_dtype, meta, meta_noise
from ._philox import in_layout_of, noise_quarters, noise_source
from ._tiles import ceil_div, point_tile, quarter_layout, tile_points
from ._vecmath import HALF_LOG_2PI, exp


@triton.jit
def _merge(mu, log_sigma, prior_mu, prior_log_sigma):
    """The share w of the first Gaussian, r = 1 - w, log r, and the moved mean in units of the prior's scale.

    w = sigmoid(u), u = 2 (log_sigma_p - log_sigma); the merged variance is r of the prior's.
    """
    u = 2.0 * (prior_log_sigma - log_sigma)
    e = exp(-tl.abs(u), tl.float32)
    larger = 1.0 / (1.0 + e)
    w = tl.where(u < 0.0, e * larger, larger)
    r = tl.where(u < 0.0, larger, e * larger)
    log_r = -(tl.where(u > 0.0, u, 0.0) + log1p(e))
    shift = w * (mu - prior_mu) * exp(-prior_log_sigma, tl.float32)
    return w, r, log_r, shift


@triton.jit(do_not_specialize=["n_rows", "row_offset", "vectors"], do_not_specialize_on_alignment=["samples"])
def _gaussian_merge_fwd_kernel(
    z_ptr, log_q_ptr, log_p_ptr, kl_ptr, mu_ptr, log_sigma_ptr, prior_mu_ptr, prior_log_sigma_ptr, noise_ptr,
    n_rows, samples, row_offset, D, vectors, stride_mu, stride_log_sigma, stride_prior_mu, stride_prior_log_sigma,
    GIVEN: tl.constexpr, BY_DIMENSION: tl.constexpr, VECTOR: tl.constexpr,
    BLOCK_K: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_Q: tl.constexpr,
):  # fmt: skip
    """One program owns BLOCK_K samples of BLOCK_N rows, all columns.

    z = mu_p + sigma_p (shift + sqrt(r) eps), its log-densities under the merged Gaussian and the prior, and the
    divergence (shift^2 - w - log r) / 2. The backward pass keeps the parameters and the seed.
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
    prior_mu_ptr += point * stride_prior_mu
    prior_log_sigma_ptr += point * stride_prior_log_sigma
    source = noise_source(noise_ptr, GIVEN)
    energy = tl.zeros((BLOCK_K * BLOCK_N, BLOCK_Q), dtype)
    prior_energy = tl.zeros((BLOCK_K * BLOCK_N, BLOCK_Q), dtype)
    kl = tl.zeros((BLOCK_K * BLOCK_N, BLOCK_Q), dtype)
    for start in range(0, quarter, BLOCK_Q):
        column = start + tl.arange(0, BLOCK_Q)[None, :]
        inside = exists & (column < quarter)
        counter = column if GIVEN else in_layout_of(column, tl.load(prior_mu_ptr + column, inside, 0.0))
        eps = noise_quarters(source, sample, row, counter, row_offset, n_rows, D, quarter, inside, GIVEN, dtype)
        for lane in tl.static_range(4):
            at = lane * quarter + column
            # Where quarters are aligned all four are full.
            mask = inside if VECTOR > 1 else inside & (at < D)
            log_s = tl.load(prior_log_sigma_ptr + at, mask, 0.0).to(dtype)
            prior_mu = tl.load(prior_mu_ptr + at, mask, 0.0).to(dtype)
            mu = tl.load(mu_ptr + at, mask, 0.0).to(dtype)
            log_sigma = tl.load(log_sigma_ptr + at, mask, 0.0).to(dtype)
            w, _r, log_r, shift = _merge(mu, log_sigma, prior_mu, log_s)
            whitened = shift + exp(0.5 * log_r, tl.float32) * eps[lane]
            z = prior_mu + exp(log_s, tl.float32) * whitened
            tl.store(z_ptr + point * D + at, z.to(out_dtype), mask)
            part = 0.5 * (shift * shift - w - log_r)
            if BY_DIMENSION:
                tl.store(kl_ptr + point * D + at, part, mask)
            else:
                kl += tl.where(mask, part, 0.0)
            energy += tl.where(mask, 0.5 * (eps[lane] * eps[lane] + log_r) + log_s, 0.0)
            prior_energy += tl.where(mask, 0.5 * whitened * whitened + log_s, 0.0)
    constant = tl.cast(D, dtype) * HALF_LOG_2PI
    tl.store(log_q_ptr + point, -tl.sum(energy, 1)[:, None] - constant, exists)
    tl.store(log_p_ptr + point, -tl.sum(prior_energy, 1)[:, None] - constant, exists)
    if not BY_DIMENSION:
        tl.store(kl_ptr + point, tl.sum(kl, 1)[:, None], exists)


@triton.jit(do_not_specialize=["n_rows", "row_offset", "vectors"], do_not_specialize_on_alignment=["samples"])
def _gaussian_merge_bwd_kernel(
    d_mu_ptr, d_log_sigma_ptr, d_prior_mu_ptr, d_prior_log_sigma_ptr, d_z_ptr, d_log_q_ptr, d_log_p_ptr, d_kl_ptr,
    mu_ptr, log_sigma_ptr, prior_mu_ptr, prior_log_sigma_ptr, noise_ptr,
    n_rows, samples, row_offset, D, vectors, stride_mu, stride_log_sigma, stride_prior_mu, stride_prior_log_sigma,
    GIVEN: tl.constexpr, BY_DIMENSION: tl.constexpr, VECTOR: tl.constexpr,
    BLOCK_K: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_Q: tl.constexpr,
):  # fmt: skip
    """One program owns BLOCK_K samples of BLOCK_N rows, BLOCK_Q columns of every quarter.

    The gradients of every point, by way of u, of the moved mean and of the prior's scale, see _merge.
    eps is drawn again from the seed, or given again.
    """
    dtype: tl.constexpr = d_log_q_ptr.dtype.element_ty
    out_dtype: tl.constexpr = d_mu_ptr.dtype.element_ty
    quarter = vectors * VECTOR
    column_blocks = tl.cdiv(quarter, BLOCK_Q)
    sample_blocks = tl.cdiv(samples, BLOCK_K)
    block = tl.program_id(0) // column_blocks
    sample, row = tile_points(block % sample_blocks, block // sample_blocks, BLOCK_K, BLOCK_N)
    sample, row = sample[:, None], row[:, None]
    exists = (row < n_rows) & (sample < samples)
    point = sample.to(tl.int64) * n_rows + row
    n_points = tl.cast(samples, tl.int64) * n_rows
    d_log_q = tl.load(d_log_q_ptr + point, exists, 0.0)
    d_log_p = tl.load(d_log_p_ptr + point, exists, 0.0)
    source = noise_source(noise_ptr, GIVEN)
    column = (tl.program_id(0) % column_blocks) * BLOCK_Q + tl.arange(0, BLOCK_Q)[None, :]
    inside = exists & (column < quarter)
    counter = column if GIVEN else in_layout_of(column, tl.load(d_z_ptr + point * D + column, inside, 0.0))
    eps = noise_quarters(source, sample, row, counter, row_offset, n_rows, D, quarter, inside, GIVEN, dtype)
    for lane in tl.static_range(4):
        at = lane * quarter + column
        mask = inside if VECTOR > 1 else inside & (at < D)
        log_s = tl.load(prior_log_sigma_ptr + point * stride_prior_log_sigma + at, mask, 0.0).to(dtype)
        prior_mu = tl.load(prior_mu_ptr + point * stride_prior_mu + at, mask, 0.0).to(dtype)
        mu = tl.load(mu_ptr + row * stride_mu + at, mask, 0.0).to(dtype)
        log_sigma = tl.load(log_sigma_ptr + row * stride_log_sigma + at, mask, 0.0).to(dtype)
        w, r, log_r, shift = _merge(mu, log_sigma, prior_mu, log_s)
        d_z = tl.load(d_z_ptr + point * D + at, mask, 0.0).to(dtype)
        d_kl = load_d_kl(d_kl_ptr, point, at, n_points, D, BY_DIMENSION)
        d_whitened = d_z * exp(log_s, tl.float32)
        spread = exp(0.5 * log_r, tl.float32) * eps[lane]
        whitened = shift + spread
        d_scale = d_whitened * whitened - d_log_q - d_log_p - d_kl * shift * shift
        d_whitened -= d_log_p * whitened
        d_scale -= d_whitened * shift
        d_mu = (d_whitened + d_kl * shift) * w * exp(-log_s, tl.float32)
        d_u = d_whitened * (r * shift - 0.5 * w * spread) + 0.5 * d_log_q * w
        d_u += d_kl * (r * shift * shift + 0.5 * w * w)
        tl.store(d_mu_ptr + point * D + at, d_mu.to(out_dtype), mask)
        tl.store(d_log_sigma_ptr + point * D + at, (-2.0 * d_u).to(out_dtype), mask)
        tl.store(d_prior_mu_ptr + point * D + at, (d_z - d_mu).to(out_dtype), mask)
        tl.store(d_prior_log_sigma_ptr + point * D + at, (d_scale + 2.0 * d_u).to(out_dtype), mask)


@by_shape
def _plan(
    device: int,
    dtype: torch.dtype,
    sizes: tuple[int, int, int, int],
    strides: Sequence[int],
    given: bool,
    by_dimension: bool,
    is_backward: bool,
) -> Plan:
    n, samples, _, d = sizes
    quarter, vector = quarter_layout(dtype, d)
    # More numbers of half types a thread, with their conversions, would not fit in its registers.
    tile = point_tile(samples, n, quarter, min(vector, 4 if dtype.itemsize > 2 else 2))
    programs = ceil_div(samples, tile.samples) * ceil_div(n, tile.rows)
    return Plan(
        device, _gaussian_merge_bwd_kernel if is_backward else _gaussian_merge_fwd_kernel,
        programs * (ceil_div(quarter, tile.columns) if is_backward else 1), (*sizes, quarter // vector, *strides),
        GIVEN=given, BY_DIMENSION=by_dimension, VECTOR=vector,
        BLOCK_K=tile.samples, BLOCK_N=tile.rows, BLOCK_Q=tile.columns, num_warps=tile.warps,
    )  # fmt: skip


def _launch_points(
    outputs: tuple[Tensor, ...],
    parameters: tuple[Tensor, ...],
    noise: Tensor,
    row_offset: int,
    by_dimension: bool,
    is_backward: bool,
) -> None:
    mu = parameters[0]
    n, d = mu.shape
    sizes = n, parameters[2].shape[0] // n, row_offset, d
    strides, given = tuple([t.stride(0) for t in parameters]), noise.ndim > 0
    plan = _plan(mu.get_device(), mu.dtype, sizes, strides, given, by_dimension, is_backward)
    plan.launch(*outputs, *parameters, noise)


def gaussian_merge_fwd(
    mu: Tensor,
    log_sigma: Tensor,
    prior_mu: Tensor,
    prior_log_sigma: Tensor,
    noise: Tensor,
    row_offset: int,
    by_dimension: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The points (M, D), their log-densities (M,) under both, and the divergences, (M,) or (M, D); M = K N."""
    m, d = prior_mu.shape
    z, wide = prior_mu.new_empty((m, d)), compute_dtype(mu.dtype)
    log_q, log_p = prior_mu.new_empty(m, dtype=wide), prior_mu.new_empty(m, dtype=wide)
    kl = prior_mu.new_empty((m, d) if by_dimension else (m,), dtype=wide)
    parameters = mu, log_sigma, prior_mu, prior_log_sigma
    _launch_points((z, log_q, log_p, kl), parameters, noise, row_offset, by_dimension, False)
    return z, log_q, log_p, kl


def gaussian_merge_bwd(
    d_z: Tensor,
    d_log_q: Tensor,
    d_log_p: Tensor,
    d_kl: Tensor,
    mu: Tensor,
    log_sigma: Tensor,
    prior_mu: Tensor,
    prior_log_sigma: Tensor,
    noise: Tensor,
    row_offset: int,
) -> tuple[Tensor, ...]:
    """The gradients of all points to both Gaussians, (M, D) each; upstream gradients are contiguous."""
    gradients = tuple(prior_mu.new_empty(prior_mu.shape) for _ in range(4))
    parameters = mu, log_sigma, prior_mu, prior_log_sigma
    outputs, by_dimension = (*gradients, d_z, d_log_q, d_log_p, d_kl), d_kl.ndim == d_z.ndim
    _launch_points(outputs, parameters, noise, row_offset, by_dimension, True)
    return gradients


def aot_cases() -> list[AotCase]:
    cases = []
    for dtype, d, samples, given, by_dimension in (
        (torch.float32, 1024, 1, False, False),
        (torch.float32, 63, 8, True, True),
        (torch.bfloat16, 96, 1, False, True),
        (torch.float64, 1024, 8, False, False),
    ):
        n, wide = 65536, compute_dtype(dtype)
        name = f"{str(dtype)[6:]}, D = {d}, {'kl of each dimension' if by_dimension else 'kl'}"
        parameters = *(meta(n, d, dtype=dtype),) * 2, *(meta(samples * n, d, dtype=dtype),) * 2
        noise = meta_noise(samples, n, d, given=given)
        of_points = (meta(samples * n, dtype=wide),) * 2
        d_kl = meta(*(samples * n, d)[: 1 + by_dimension], dtype=wide)
        cases += [
            AotCase(name, gaussian_merge_fwd, (*parameters, noise, 0, by_dimension)),
            AotCase(name, gaussian_merge_bwd, (parameters[2], *of_points, d_kl, *parameters, noise, 0)),
        ]
    return cases
