"""The divergence of a Gaussian's dimensions from N(0, 1), and where its gradient comes from."""

from __future__ import annotations

import triton
import triton.language as tl

from ._vecmath import exp


@triton.jit
def kl_part(mu, log_sigma, dtype: tl.constexpr):
    """The divergence of N(mu, sigma^2) from N(0, 1); exactly 0 where mu = log_sigma = 0."""
    return 0.5 * (mu * mu + (exp(2.0 * log_sigma, dtype) - 1.0 - 2.0 * log_sigma))


@triton.jit
def load_d_kl(d_kl_ptr, row, column, n_rows, D, BY_DIMENSION: tl.constexpr):
    """The gradient of the divergence of elements (row, column): one for each, or one for the row."""
    if BY_DIMENSION:
        return tl.load(d_kl_ptr + row * D + column, (row < n_rows) & (column < D), 0.0)
    else:
        return tl.load(d_kl_ptr + row, row < n_rows, 0.0)
