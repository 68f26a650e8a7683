"""Bernoulli units: a sample with its log-probability, and the gradient of the logits.

Tiles hold the columns c of a row's first quarter; the other three quarters are the same tile moved by Q columns.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._activations import log1p
from ._launch import AotCase, Plan, by_shape, compute_dtype, meta, meta_noise
from ._philox import in_layout_of, noise_source, uniform_quarters
from ._tiles import BLOCK_TERMS, ceil_div, point_tile, quarter_layout, row_tile, sum_tile, tile_points, vector_width
from ._vecmath import exp


@triton.jit(do_not_specialize=["n_rows", "row_offset", "vectors"], do_not_specialize_on_alignment=["draws"])
def _bernoulli_fwd_kernel(
    b_ptr, log_q_ptr, logits_ptr, noise_ptr,
    n_rows, draws, row_offset, D, vectors, stride_logits,
    GIVEN: tl.constexpr, ANTITHETIC: tl.constexpr, VECTOR: tl.constexpr,
    BLOCK_K: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_Q: tl.constexpr,
):  # fmt: skip
    """One program owns BLOCK_K draws of BLOCK_N rows, all columns.

    b = [u > sigmoid(-l)],  log_q = sum(min(+-l, 0) - log(1 + e^-|l|)); with ANTITHETIC also those of 1 - u.
    The backward pass keeps the logits and b.
    """
    dtype: tl.constexpr = log_q_ptr.dtype.element_ty
    out_dtype: tl.constexpr = b_ptr.dtype.element_ty
    quarter = vectors * VECTOR  # the factor tells the compiler that each quarter is aligned
    # Draws of the same rows run side by side and find the logits in the L2 cache.
    sample_blocks = tl.cdiv(draws, BLOCK_K)
    sample, row = tile_points(tl.program_id(0) % sample_blocks, tl.program_id(0) // sample_blocks, BLOCK_K, BLOCK_N)
    sample, row = sample[:, None], row[:, None]
    exists = (row < n_rows) & (sample < draws)
    point = sample.to(tl.int64) * n_rows + row
    mirror = tl.cast(draws, tl.int64) * n_rows
    logits_ptr += row * stride_logits
    b_ptr += point * D
    source = noise_source(noise_ptr, GIVEN)
    total = tl.zeros((BLOCK_K * BLOCK_N, BLOCK_Q), dtype)
    mirrored_total = tl.zeros((BLOCK_K * BLOCK_N, BLOCK_Q), dtype)
    for start in range(0, quarter, BLOCK_Q):
        column = start + tl.arange(0, BLOCK_Q)[None, :]
        inside = exists & (column < quarter)
        first = tl.load(logits_ptr + column, inside, 0.0)
        counter = column if GIVEN else in_layout_of(column, first)
        u = uniform_quarters(source, sample, row, counter, row_offset, n_rows, D, quarter, inside, GIVEN, dtype)
        for lane in tl.static_range(4):
            at = lane * quarter + column
            # Where quarters are aligned all four are full.
            mask = inside if VECTOR > 1 else inside & (at < D)
            logit = tl.load(logits_ptr + at, mask, 0.0).to(dtype)
            tail = exp(-tl.abs(logit), dtype)
            off = tl.where(logit < 0.0, 1.0, tail) / (1.0 + tail)
            shared = tl.where(mask, log1p(tail), 0.0)
            on = u[lane] > off
            tl.store(b_ptr + at, tl.where(on, 1.0, 0.0).to(out_dtype), mask)
            total += tl.minimum(tl.where(on, logit, -logit), 0.0, tl.PropagateNan.ALL) - shared
            if ANTITHETIC:
                on = 1.0 - u[lane] > off
                tl.store(b_ptr + mirror * D + at, tl.where(on, 1.0, 0.0).to(out_dtype), mask)
                mirrored_total += tl.minimum(tl.where(on, logit, -logit), 0.0, tl.PropagateNan.ALL) - shared
    tl.store(log_q_ptr + point, tl.sum(total, 1)[:, None], exists)
    if ANTITHETIC:
        tl.store(log_q_ptr + mirror + point, tl.sum(mirrored_total, 1)[:, None], exists)


@triton.jit
def _other(logit, b, dtype: tl.constexpr):
    """d log q / d logit: the probability of the other value, with the sign of the unit's own."""
    tail = exp(-tl.abs(logit), dtype)
    # sigmoid(-logit) for a unit that is on, else sigmoid(logit): neither is a difference from 1.
    of_other = tl.where((b != 0.0) == (logit < 0.0), 1.0, tail) / (1.0 + tail)
    return tl.where(b != 0.0, of_other, -of_other)


@triton.jit(do_not_specialize=["n_rows", "vectors"])
def _bernoulli_bwd_kernel(
    d_logits_ptr, d_log_q_ptr, b_ptr, logits_ptr,
    n_rows, D, vectors, stride_logits,
    VECTOR: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """One program owns BLOCK_N rows of the only sample, BLOCK_D columns.

    d_logits = d_log_q (b - sigmoid(l)).
    """
    dtype: tl.constexpr = d_log_q_ptr.dtype.element_ty
    width = vectors * VECTOR
    column_blocks = tl.cdiv(width, BLOCK_D)
    row = (tl.program_id(0) // column_blocks).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)[:, None]
    column = (tl.program_id(0) % column_blocks) * BLOCK_D + tl.arange(0, BLOCK_D)[None, :]
    inside = (row < n_rows) & (column < width)
    d_log_q = tl.load(d_log_q_ptr + row, row < n_rows, 0.0)
    logit = tl.load(logits_ptr + row * stride_logits + column, inside, 0.0).to(dtype)
    b = tl.load(b_ptr + row * D + column, inside, 0.0).to(dtype)
    d_logits = d_log_q * _other(logit, b, dtype)
    tl.store(d_logits_ptr + row * D + column, d_logits.to(d_logits_ptr.dtype.element_ty), inside)


@triton.jit(do_not_specialize=["n_rows", "vectors"], do_not_specialize_on_alignment=["samples"])
def _bernoulli_bwd_samples_kernel(
    d_logits_ptr, d_log_q_ptr, b_ptr, logits_ptr,
    n_rows, samples, D, vectors, stride_logits,
    VECTOR: tl.constexpr, LONG: tl.constexpr,
    BLOCK_K: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """One program owns BLOCK_N rows, BLOCK_D columns, and walks all samples, BLOCK_K at a time.

    d_logits = sum_k d_log_q (b - sigmoid(l)). The order of summation is fixed, by blocks of samples: no atomics.
    """
    dtype: tl.constexpr = d_log_q_ptr.dtype.element_ty
    width = vectors * VECTOR
    column_blocks = tl.cdiv(width, BLOCK_D)
    row = ((tl.program_id(0) // column_blocks).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N))[None, :, None]
    column = ((tl.program_id(0) % column_blocks) * BLOCK_D + tl.arange(0, BLOCK_D))[None, None, :]
    owned = (row < n_rows) & (column < width)
    logit = tl.load(logits_ptr + row * stride_logits + column, owned, 0.0).to(dtype)
    total = tl.zeros((BLOCK_K, BLOCK_N, BLOCK_D), dtype)
    for first in range(0, samples if LONG else 1, BLOCK_TERMS * BLOCK_K):
        part = tl.zeros((BLOCK_K, BLOCK_N, BLOCK_D), dtype)
        last = tl.minimum(first + BLOCK_TERMS * BLOCK_K, samples) if LONG else samples
        for start in range(first, last, BLOCK_K):
            sample = start + tl.arange(0, BLOCK_K)[:, None, None]
            point = sample.to(tl.int64) * n_rows + row
            d_log_q = tl.load(d_log_q_ptr + point, (row < n_rows) & (sample < samples), 0.0)
            b = tl.load(b_ptr + point * D + column, owned & (sample < samples), 0.0).to(dtype)
            part += d_log_q * _other(logit, b, dtype)
        total += part
    d_logits = tl.sum(total, 0)[None, :, :]
    tl.store(d_logits_ptr + row * D + column, d_logits.to(d_logits_ptr.dtype.element_ty), owned)


def bernoulli_fwd(
    logits: Tensor, noise: Tensor, draws: int, row_offset: int, antithetic: bool
) -> tuple[Tensor, Tensor]:
    """Samples (K, N, D) and their log-probabilities (K, N); K is twice the draws with `antithetic`."""
    n, d = logits.shape
    samples = 2 * draws if antithetic else draws
    b, log_q = logits.new_empty((samples, n, d)), logits.new_empty((samples, n), dtype=compute_dtype(logits.dtype))
    sizes, given = (n, draws, row_offset, d), noise.ndim > 0
    plan = _plan_fwd(logits.get_device(), logits.dtype, sizes, logits.stride(0), given, antithetic)
    plan.launch(b, log_q, logits, noise)
    return b, log_q


@by_shape
def _plan_fwd(
    device: int, dtype: torch.dtype, sizes: tuple[int, int, int, int], stride: int, given: bool, antithetic: bool
) -> Plan:
    n, draws, _, d = sizes
    quarter, vector = quarter_layout(dtype, d)
    tile = point_tile(draws, n, quarter, vector)
    return Plan(
        device, _bernoulli_fwd_kernel, ceil_div(draws, tile.samples) * ceil_div(n, tile.rows),
        (*sizes, quarter // vector, stride), GIVEN=given, ANTITHETIC=antithetic, VECTOR=vector,
        BLOCK_K=tile.samples, BLOCK_N=tile.rows, BLOCK_Q=tile.columns, num_warps=tile.warps,
    )  # fmt: skip


def bernoulli_bwd(d_log_q: Tensor, b: Tensor, logits: Tensor) -> Tensor:
    """The gradient of the logits (N, D) of samples (K, N, D)."""
    samples, n, d = b.shape
    d_logits = logits.new_empty((n, d))
    plan = _plan_bwd(logits.get_device(), logits.dtype, samples, n, d, logits.stride(0))
    plan.launch(d_logits, d_log_q, b, logits)
    return d_logits


@by_shape
def _plan_bwd(device: int, dtype: torch.dtype, samples: int, n: int, d: int, stride: int) -> Plan:
    vector = vector_width(dtype, d)
    if samples == 1:
        tile = row_tile(n, d, vector)
        return Plan(
            device, _bernoulli_bwd_kernel, ceil_div(n, tile.rows) * ceil_div(d, tile.columns),
            (n, d, d // vector, stride),
            VECTOR=vector, BLOCK_N=tile.rows, BLOCK_D=tile.columns, num_warps=tile.warps,
        )  # fmt: skip
    sums = sum_tile(samples, n, d, vector)
    return Plan(
        device, _bernoulli_bwd_samples_kernel, ceil_div(n, sums.rows) * ceil_div(d, sums.columns),
        (n, samples, d, d // vector, stride), VECTOR=vector, LONG=samples > BLOCK_TERMS.value * sums.samples,
        BLOCK_K=sums.samples, BLOCK_N=sums.rows, BLOCK_D=sums.columns, num_warps=sums.warps,
    )  # fmt: skip


def aot_cases() -> list[AotCase]:
    cases = []
    for dtype, d, given, antithetic in (
        (torch.float32, 1024, False, False),
        (torch.float32, 200, False, True),
        (torch.float32, 63, True, False),
        (torch.bfloat16, 1024, False, True),
        (torch.float16, 1, False, False),
        (torch.float64, 1024, True, False),
    ):
        n, name = 65536, f"{str(dtype)[6:]}, D = {d}, {'uniforms' if given else 'seed'}{', pairs' * antithetic}"
        draws, samples = (1, 1) if d == 1024 else (4, 8 if antithetic else 4)
        logits, noise = meta(n, d, dtype=dtype), meta_noise(draws, n, d, given=given)
        upstream = meta(samples, n, dtype=compute_dtype(dtype)), meta(samples, n, d, dtype=dtype), logits
        cases += [
            AotCase(name, bernoulli_fwd, (logits, noise, draws, 0, antithetic)),
            AotCase(name, bernoulli_bwd, upstream),
        ]
    return cases
