"""Division of indices by a number that a whole launch shares: a product and a shift instead of twenty instructions."""

from __future__ import annotations

import triton
import triton.language as tl

# Indices below it are divided by a product, and fit into 32 bits with room for a block more.
_LIMIT = 2**31 - 2**16


def index_type(size: int) -> tl.dtype:
    """The type that counts `size` things: 64 bits only where it must, since they make each address dearer."""
    return tl.int32 if size < _LIMIT else tl.int64


def reciprocal(divisor: int) -> tuple[int, int]:
    """(multiplier, shift) of `divide`: n / divisor = n * multiplier / 2^(31 + shift), rounded up.

    The multiplier exceeds its exact value by less than 1, so that the quotient of n < 2^31 exceeds its own by less than
    1 / divisor: the integer part is right.
    """
    shift = max(divisor - 1, 0).bit_length()
    return -(-(1 << (31 + shift)) // max(divisor, 1)), shift


@triton.jit
def divide(n, divisor, multiplier, shift):
    """n // divisor for 0 <= n < 2^31, or for n of 64 bits, which knows no such product."""
    if n.dtype == tl.int64:
        return n // divisor
    else:
        high = tl.umulhi((n.to(tl.uint32) << 1), multiplier.to(tl.uint32))
        return (high >> shift).to(tl.int32)
