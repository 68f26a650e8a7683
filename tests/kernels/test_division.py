"""Division by a product and a shift."""

import random

import pytest
import torch
import triton
import triton.language as tl

from fastvae.kernels._division import divide, index_type, reciprocal
from tests.support.implementations import GPU

DIVISORS = [1, 2, 3, 5, 7, 28, 784, 1024, 4095, 4096, 4097, 65535, 1 << 30, (1 << 31) - 1]


@triton.jit
def _divide_kernel(out_ptr, n_ptr, divisor, multiplier, shift, size, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    n = tl.load(n_ptr + at, at < size, 0)
    tl.store(out_ptr + at, divide(n, divisor, multiplier, shift), at < size)


def numbers_around(divisor: int) -> list[int]:
    """Where a quotient changes, and the limits of what is divided."""
    last = (1 << 31) - 1
    near = [k * divisor + d for k in (0, 1, 2, last // divisor) for d in (-1, 0, 1)]
    return [n for n in (*near, last, *(random.Random(0).randrange(last) for _ in range(50))) if 0 <= n <= last]


@pytest.mark.parametrize("divisor", DIVISORS)
def test_quotients_are_exact(divisor):
    multiplier, shift = reciprocal(divisor)
    assert 2**31 <= multiplier < 2**32
    for n in numbers_around(divisor):
        assert (n * multiplier) >> (31 + shift) == n // divisor


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("divisor", [1, 7, 784, (1 << 31) - 1])
def test_kernel(divisor, dtype):
    n = torch.tensor(numbers_around(divisor), dtype=dtype, device="cuda" if GPU else "cpu")
    out = torch.empty_like(n)
    _divide_kernel[(1,)](out, n, divisor, *reciprocal(divisor), n.numel(), BLOCK=64)
    assert torch.equal(out, n // divisor)


def test_types():
    assert index_type(1 << 30) == tl.int32
    assert index_type((1 << 31) - 1) == tl.int64
