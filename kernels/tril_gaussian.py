"""Gaussian with a triangular scale: reparameterised sample with its log-density, and their gradient.

z = mu + (diag(sigma) + T) eps with T strictly lower triangular: packed (N, D(D-1)/2), row after row, or dense
(N, D, D). Columns are those of the quarter layout: l Q + c for the lanes l = 0..3 and c < Q.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._gaussian_kl import kl_part, load_d_kl
from ._launch import AotCase, Plan, by_shape, compute_dtype, meta, meta_noise
from ._philox import noise_quarters, noise_source
from ._tiles import BLOCK_TERMS, ceil_div, row_stride, tile_points, tril_strides, tril_tile
from ._vecmath import HALF_LOG_2PI, exp


@triton.jit
def tril_row_offset(i, stride_i, DENSE: tl.constexpr):
    """Where row i of a matrix starts, in elements from the matrix's own start."""
    i = tl.cast(i, tl.int64)
    if DENSE:
        return i * stride_i
    else:
        return i * (i - 1) // 2


# Unspecialised strides keep accesses to T one element wide. Wider ones would give each thread more columns, hence more
# noise to draw per element of T.
_GENERIC = ["n_rows", "row_offset", "D", "quarter", "stride_tril", "stride_tril_i"]
_GENERIC_BWD = [*_GENERIC, "stride_d_tril", "stride_d_tril_i"]
# Rows of T for which a thread draws noise once. Twice as many would halve the programs that have enough registers.
_HEIGHT = 8


@triton.jit(do_not_specialize=_GENERIC, do_not_specialize_on_alignment=["samples"])
def _tril_gaussian_fwd_kernel(
    z_ptr, log_q_ptr, kl_ptr, mu_ptr, log_sigma_ptr, tril_ptr, noise_ptr,
    n_rows, samples, row_offset, D, quarter, stride_mu, stride_log_sigma, stride_tril, stride_tril_i,
    DENSE: tl.constexpr, GIVEN: tl.constexpr, HAS_KL: tl.constexpr,
    BLOCK_I: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_Q: tl.constexpr,
):  # fmt: skip
    """One program owns BLOCK_I elements of z for BLOCK_K samples of BLOCK_N rows; the last one also log_q.

    z = mu + (diag(sigma) + T) eps,  log_q = -sum(eps^2 / 2 + log_sigma + log(2 pi) / 2); with HAS_KL the divergence of
    BLOCK_I dimensions, kl_i = (sum_j T_ij^2 + exp(2 log_sigma_i) - 1 - 2 log_sigma_i + mu_i^2) / 2.
    The backward pass keeps log_sigma and the seed, with HAS_KL also mu and T.
    """
    dtype: tl.constexpr = log_q_ptr.dtype.element_ty
    blocks = tl.cdiv(D, BLOCK_I)
    sample_blocks = tl.cdiv(samples, BLOCK_K)
    # Samples of the same rows run side by side and find T in the L2 cache; the longest rows of T start first.
    task = tl.program_id(0) // sample_blocks
    block = blocks - 1 - task % blocks
    samples_of, rows = tile_points(tl.program_id(0) % sample_blocks, task // blocks, BLOCK_K, BLOCK_N)
    # Points past the last repeat it and store the same values in the same place: no masks to keep in registers.
    samples_of, rows = tl.minimum(samples_of, samples - 1), tl.minimum(rows, n_rows - 1)
    points = samples_of.to(tl.int64) * n_rows + rows
    end = tl.minimum((block + 1) * BLOCK_I, D)
    is_last = end == D
    # Columns that lie below the diagonal in all rows of the block.
    whole = tl.where((block + 1) * BLOCK_I <= D, block * BLOCK_I, 0)
    # Tiles are (i, point, column). Threads share the points and columns, and each has all i for the noise it drew.
    i, row = block * BLOCK_I + tl.arange(0, BLOCK_I)[:, None], rows[None, :]
    log_sigma = tl.load(log_sigma_ptr + row * stride_log_sigma + tl.minimum(i, D - 1))
    sigma = exp(log_sigma.to(dtype), dtype)[:, :, None]
    tril_row_ptr = (tril_ptr + row * stride_tril + tril_row_offset(i, stride_tril_i, DENSE))[:, :, None]
    # Rows of T past the last end before their first column.
    diagonal = tl.where(i < D, i, -1)[:, :, None]
    source = noise_source(noise_ptr, GIVEN)
    product = tl.zeros((BLOCK_I, BLOCK_K * BLOCK_N, BLOCK_Q), dtype)
    total = tl.zeros((BLOCK_K * BLOCK_N, BLOCK_Q), dtype)
    if HAS_KL:
        squares = tl.zeros((BLOCK_I, BLOCK_K * BLOCK_N, BLOCK_Q), dtype)
    sample, row = samples_of[:, None], rows[:, None]
    for start in range(0, tl.minimum(quarter, end), BLOCK_Q):
        column = start + tl.arange(0, BLOCK_Q)[None, :]
        inside = column < quarter
        eps = noise_quarters(source, sample, row, column, row_offset, n_rows, D, quarter, inside, GIVEN, dtype)
        for lane in tl.static_range(4):
            at = lane * quarter + column
            e = tl.where(inside & (at < D), eps[lane], 0.0)
            if is_last:
                log_sigma_at = tl.load(log_sigma_ptr + row * stride_log_sigma + at, inside & (at < D), 0.0)
                total += 0.5 * e * e
                total += log_sigma_at.to(dtype)
            j, first = at[None, :, :], lane * quarter + start
            if (first + BLOCK_Q <= whole) & (start + BLOCK_Q <= quarter):
                weight = tl.load(tril_row_ptr + j).to(dtype)
                product += weight * e[None, :, :]
                if HAS_KL:
                    squares += weight * weight
            elif first < end:
                # Columns of the next quarter must not count twice.
                once = inside[None, :, :]
                weight = tl.load(tril_row_ptr + j, once & (j < diagonal), 0.0).to(dtype)
                product += tl.where(once & (j == diagonal), sigma, weight) * e[None, :, :]
                if HAS_KL:
                    squares += weight * weight
    log_q = -tl.sum(total, 1)[:, None] - tl.cast(D, dtype) * HALF_LOG_2PI
    tl.store(log_q_ptr + points[:, None], log_q, is_last)
    mu = tl.load(mu_ptr + rows[None, :] * stride_mu + i, i < D).to(dtype)
    tl.store(z_ptr + points[None, :] * D + i, (mu + tl.sum(product, 2)).to(z_ptr.dtype.element_ty), i < D)
    if HAS_KL:
        kl = kl_part(mu, log_sigma.to(dtype), dtype) + 0.5 * tl.sum(squares, 2)
        tl.store(kl_ptr + rows[None, :] * D + i, kl, (i < D) & (samples_of[None, :] == 0))


@triton.jit(do_not_specialize=_GENERIC_BWD, do_not_specialize_on_alignment=["samples"])
def _tril_gaussian_bwd_kernel(
    d_mu_ptr, d_log_sigma_ptr, d_tril_ptr, d_z_ptr, d_log_q_ptr, d_kl_ptr, mu_ptr, log_sigma_ptr, tril_ptr, noise_ptr,
    n_rows, samples, row_offset, D, quarter, stride_mu, stride_log_sigma, stride_tril, stride_tril_i,
    stride_d_tril, stride_d_tril_i,
    DENSE: tl.constexpr, GIVEN: tl.constexpr, HAS_KL: tl.constexpr, BY_DIMENSION: tl.constexpr, LONG: tl.constexpr,
    BLOCK_I: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_Q: tl.constexpr,
):  # fmt: skip
    """One program owns BLOCK_I rows of d_T and as many elements of d_mu and d_log_sigma, for BLOCK_N rows, all samples.

    d_mu = sum_k d_z,  d_log_sigma_i = sum_k (d_z_i sigma_i eps_i - d_log_q),  d_T_ij = sum_k d_z_i eps_j for j < i.
    With HAS_KL d_kl mu_i, d_kl (sigma_i^2 - 1) and d_kl T_ij are added.
    The order of summation is fixed, by blocks of samples: no atomics.
    """
    dtype: tl.constexpr = d_log_q_ptr.dtype.element_ty
    out_dtype: tl.constexpr = d_mu_ptr.dtype.element_ty
    blocks = tl.cdiv(D, BLOCK_I)
    block = blocks - 1 - tl.program_id(0) % blocks
    rows = (tl.program_id(0) // blocks).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    rows = tl.minimum(rows, n_rows - 1)  # see the forward pass
    i, row = block * BLOCK_I + tl.arange(0, BLOCK_I)[:, None], rows[None, :]
    d_tril_row_ptr = (d_tril_ptr + row * stride_d_tril + tril_row_offset(i, stride_d_tril_i, DENSE))[:, :, None]
    if HAS_KL:
        tril_row_ptr = (tril_ptr + row * stride_tril + tril_row_offset(i, stride_tril_i, DENSE))[:, :, None]
        d_kl = load_d_kl(d_kl_ptr, row, i, n_rows, D, BY_DIMENSION)
    diagonal = tl.where(i < D, i, -1)[:, :, None]
    source = noise_source(noise_ptr, GIVEN)
    on_diagonal = tl.zeros((BLOCK_I, BLOCK_N, BLOCK_Q), dtype)
    block_end = tl.minimum((block + 1) * BLOCK_I, D)
    whole = tl.where((block + 1) * BLOCK_I <= D, block * BLOCK_I, 0)
    # A dense gradient is written above the diagonal too, with zeros.
    end = quarter if DENSE else tl.minimum(quarter, block_end)
    for start in range(0, end, BLOCK_Q):
        column = start + tl.arange(0, BLOCK_Q)[None, :]
        inside = column < quarter
        zero = tl.zeros((BLOCK_I, BLOCK_N, BLOCK_Q), dtype)
        product0, product1, product2, product3 = zero, zero, zero, zero
        for first in range(0, samples if LONG else 1, BLOCK_TERMS):
            part0, part1, part2, part3 = zero, zero, zero, zero
            last = tl.minimum(first + BLOCK_TERMS, samples) if LONG else samples
            for sample in range(first, last):
                eps = noise_quarters(
                    source, sample, rows[:, None], column, row_offset, n_rows, D, quarter, inside, GIVEN, dtype
                )
                d_z_row = tl.cast(sample, tl.int64) * n_rows + row
                d_z = tl.load(d_z_ptr + d_z_row * D + i, i < D, 0.0).to(dtype)[:, :, None]
                part0 += d_z * eps[0][None, :, :]
                part1 += d_z * eps[1][None, :, :]
                part2 += d_z * eps[2][None, :, :]
                part3 += d_z * eps[3][None, :, :]
            product0 += part0
            product1 += part1
            product2 += part2
            product3 += part3
        products = (product0, product1, product2, product3)
        for lane in tl.static_range(4):
            value, left = products[lane], lane * quarter + start
            j, once = (lane * quarter + column)[None, :, :], inside[None, :, :]
            if (left + BLOCK_Q <= whole) & (start + BLOCK_Q <= quarter):
                if HAS_KL:
                    value += d_kl[:, :, None] * tl.load(tril_row_ptr + j).to(dtype)
                tl.store(d_tril_row_ptr + j, value.to(out_dtype))
            elif left < block_end:
                # Columns of the next quarter must not count twice.
                on_diagonal += tl.where(once & (j == diagonal), value, 0.0)
                below = once & (j < diagonal)
                if HAS_KL:
                    value += d_kl[:, :, None] * tl.load(tril_row_ptr + j, below, 0.0).to(dtype)
                if DENSE:
                    value = tl.where(below, value, 0.0)
                    tl.store(d_tril_row_ptr + j, value.to(out_dtype), once & (j < D) & (diagonal >= 0))
                else:
                    tl.store(d_tril_row_ptr + j, value.to(out_dtype), below)
            elif DENSE:
                tl.store(d_tril_row_ptr + j, zero.to(out_dtype), once & (j < D) & (diagonal >= 0))
    d_mu = tl.zeros((BLOCK_I, BLOCK_N), dtype)
    d_log_q = tl.zeros((1, BLOCK_N), dtype)
    for first in range(0, samples if LONG else 1, BLOCK_TERMS):
        of_mu = tl.zeros((BLOCK_I, BLOCK_N), dtype)
        log_q = tl.zeros((1, BLOCK_N), dtype)
        last = tl.minimum(first + BLOCK_TERMS, samples) if LONG else samples
        for sample in range(first, last):
            d_z_row = tl.cast(sample, tl.int64) * n_rows + row
            of_mu += tl.load(d_z_ptr + d_z_row * D + i, i < D, 0.0).to(dtype)
            log_q += tl.load(d_log_q_ptr + d_z_row)
        d_mu += of_mu
        d_log_q += log_q
    log_sigma = tl.load(log_sigma_ptr + row * stride_log_sigma + i, i < D, 0.0).to(dtype)
    d_log_sigma = tl.sum(on_diagonal, 2) * exp(log_sigma, dtype) - d_log_q
    if HAS_KL:
        d_mu += d_kl * tl.load(mu_ptr + row * stride_mu + i, i < D, 0.0).to(dtype)
        d_log_sigma += d_kl * (exp(2.0 * log_sigma, dtype) - 1.0)
    tl.store(d_mu_ptr + row * D + i, d_mu.to(out_dtype), i < D)
    tl.store(d_log_sigma_ptr + row * D + i, d_log_sigma.to(out_dtype), i < D)


def _fwd(
    mu: Tensor, log_sigma: Tensor, tril: Tensor, noise: Tensor, samples: int, row_offset: int, kl: Tensor | None
) -> tuple[Tensor, Tensor]:
    n, d = mu.shape
    z, log_q = mu.new_empty((samples, n, d)), mu.new_empty((samples, n), dtype=compute_dtype(mu.dtype))
    sizes, strides = (n, samples, row_offset, d), (mu.stride(0), log_sigma.stride(0), *tril_strides(tril))
    plan = _plan_fwd(mu.get_device(), mu.dtype, sizes, strides, tril.ndim == 3, noise.ndim > 0, kl is not None)
    plan.launch(z, log_q, kl, mu, log_sigma, tril, noise)
    return z, log_q


@by_shape
def _plan_fwd(
    device: int,
    dtype: torch.dtype,
    sizes: tuple[int, int, int, int],
    strides: Sequence[int],
    dense: bool,
    given: bool,
    has_kl: bool,
) -> Plan:
    n, samples, _, d = sizes
    tile = tril_tile(samples, n, d, height=_HEIGHT)
    return Plan(
        device, _tril_gaussian_fwd_kernel,
        ceil_div(samples, tile.samples) * ceil_div(n, tile.rows) * ceil_div(d, tile.i),
        (*sizes, ceil_div(d, 4), *strides), DENSE=dense, GIVEN=given, HAS_KL=has_kl,
        BLOCK_I=tile.i, BLOCK_K=tile.samples, BLOCK_N=tile.rows, BLOCK_Q=tile.columns, num_warps=1,
    )  # fmt: skip


def _bwd(
    d_z: Tensor,
    d_log_q: Tensor,
    log_sigma: Tensor,
    noise: Tensor,
    row_offset: int,
    dense: bool,
    d_kl: Tensor | None = None,
    mu: Tensor | None = None,
    tril: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    samples, n, d = d_z.shape
    d_mu, d_log_sigma = log_sigma.new_empty((n, d)), log_sigma.new_empty((n, d))
    d_tril = log_sigma.new_empty((n, d, d) if dense else (n, d * (d - 1) // 2))
    strides = row_stride(mu), log_sigma.stride(0), *((0, 0) if tril is None else tril_strides(tril))
    plan = _plan_bwd(
        log_sigma.get_device(), (log_sigma.dtype, d_z.dtype), (n, samples, row_offset, d),
        (*strides, *tril_strides(d_tril)), dense, noise.ndim > 0, 0 if d_kl is None else d_kl.ndim,
    )  # fmt: skip
    plan.launch(d_mu, d_log_sigma, d_tril, d_z, d_log_q, d_kl, mu, log_sigma, tril, noise)
    return d_mu, d_log_sigma, d_tril


@by_shape
def _plan_bwd(
    device: int,
    dtypes: tuple[torch.dtype, torch.dtype],
    sizes: tuple[int, int, int, int],
    strides: Sequence[int],
    dense: bool,
    given: bool,
    kl_dimensions: int,
) -> Plan:
    """`dtypes` are those of the parameters and of d_z; `kl_dimensions` are d_kl's, 0 without it."""
    n, samples, _, d = sizes
    # Each thread holds its part of four tiles.
    half = dtypes[0] == torch.float64 or kl_dimensions > 0 or given
    tile = tril_tile(1, n, d, height=_HEIGHT // 2 if half else _HEIGHT)
    return Plan(
        device, _tril_gaussian_bwd_kernel, ceil_div(n, tile.samples * tile.rows) * ceil_div(d, tile.i),
        (*sizes, ceil_div(d, 4), *strides),
        DENSE=dense, GIVEN=given, HAS_KL=kl_dimensions > 0, BY_DIMENSION=kl_dimensions == 2,
        LONG=samples > BLOCK_TERMS.value,
        BLOCK_I=tile.i, BLOCK_N=tile.samples * tile.rows, BLOCK_Q=tile.columns, num_warps=1,
    )  # fmt: skip


def tril_gaussian_fwd(
    mu: Tensor, log_sigma: Tensor, tril: Tensor, noise: Tensor, samples: int, row_offset: int
) -> tuple[Tensor, Tensor]:
    return _fwd(mu, log_sigma, tril, noise, samples, row_offset, None)


def tril_gaussian_bwd(
    d_z: Tensor, d_log_q: Tensor, log_sigma: Tensor, noise: Tensor, row_offset: int, dense: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients to mu, log_sigma and tril, which is zero on and above the diagonal when `dense`."""
    return _bwd(d_z, d_log_q, log_sigma, noise, row_offset, dense)


def tril_gaussian_with_kl_fwd(
    mu: Tensor, log_sigma: Tensor, tril: Tensor, noise: Tensor, samples: int, row_offset: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The same for one sample or more, with the divergence from N(0, I) of each dimension, (N, D)."""
    kl = mu.new_empty(mu.shape, dtype=compute_dtype(mu.dtype))
    return *_fwd(mu, log_sigma, tril, noise, samples, row_offset, kl), kl


def tril_gaussian_with_kl_bwd(
    d_z: Tensor,
    d_log_q: Tensor,
    d_kl: Tensor,
    mu: Tensor,
    log_sigma: Tensor,
    tril: Tensor,
    noise: Tensor,
    row_offset: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of the sample and of the divergence, whose d_kl is (N,) or (N, D)."""
    return _bwd(d_z, d_log_q, log_sigma, noise, row_offset, tril.ndim == 3, d_kl, mu, tril)


def aot_cases() -> list[AotCase]:
    cases = []
    for dtype, n, d, samples, given, dense in (
        (torch.float32, 4096, 256, 1, False, False),
        (torch.float32, 1024, 63, 8, True, False),
        (torch.float32, 65536, 64, 1, False, False),
        (torch.bfloat16, 4096, 256, 1, False, True),
        (torch.float16, 1024, 1, 8, False, False),
        (torch.float64, 1024, 64, 8, True, True),
    ):
        name = f"{str(dtype)[6:]}, D = {d}, {'dense' if dense else 'packed'}, {'eps' if given else 'seed'}"
        parameter, noise = meta(n, d, dtype=dtype), meta_noise(samples, n, d, given=given)
        tril = meta(n, d, d, dtype=dtype) if dense else meta(n, d * (d - 1) // 2, dtype=dtype)
        upstream = meta(samples, n, d, dtype=dtype), meta(samples, n, dtype=compute_dtype(dtype))
        cases += [
            AotCase(name, tril_gaussian_fwd, (parameter, parameter, tril, noise, samples, 0)),
            AotCase(name, tril_gaussian_bwd, (*upstream, parameter, noise, 0, dense)),
        ]
    for dtype, d, samples, dense in (
        (torch.float32, 256, 1, False),
        (torch.float32, 63, 8, True),
        (torch.bfloat16, 256, 1, True),
        (torch.float64, 64, 8, False),
    ):
        n, name = 4096, f"{str(dtype)[6:]}, D = {d}, {'dense' if dense else 'packed'}, kl"
        parameter, seed, wide = meta(n, d, dtype=dtype), meta(dtype=torch.int64), compute_dtype(dtype)
        tril = meta(n, d, d, dtype=dtype) if dense else meta(n, d * (d - 1) // 2, dtype=dtype)
        d_kl = meta(n, d, dtype=wide) if dense else meta(n, dtype=wide)
        gradients = (meta(samples, n, d, dtype=dtype), meta(samples, n, dtype=wide), d_kl)
        cases += [
            AotCase(name, tril_gaussian_with_kl_fwd, (parameter, parameter, tril, seed, samples, 0)),
            AotCase(name, tril_gaussian_with_kl_bwd, (*gradients, parameter, parameter, tril, seed, 0)),
        ]
    return cases
