"""Normal and uniform numbers as functions of (seed, sample, row, column), the noise contract of ``fastvae.rng``.

The four numbers of one Philox call are the four quarters of a row, so a tile of counters needs no shuffles and its
accesses are contiguous.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ._vecmath import cos_sin_quarter, minus_2_log


@triton.jit
def philox(seed, c0, c1, c2, c3):
    """Philox-4x32-10 of uint32 counters, which broadcast, under a 64-bit key (Salmon, Moraes, Dror, Shaw, 2011).

    One 64-bit product gives both halves in one instruction; `tl.philox` multiplies twice.
    """
    k0 = (seed & 0xFFFFFFFF).to(tl.uint32)
    k1 = ((seed >> 32) & 0xFFFFFFFF).to(tl.uint32)
    for _ in tl.static_range(10):
        p0 = c0.to(tl.uint64) * 0xD2511F53
        p1 = c2.to(tl.uint64) * 0xCD9E8D57
        c0 = (p1 >> 32).to(tl.uint32) ^ c1 ^ k0
        c2 = (p0 >> 32).to(tl.uint32) ^ c3 ^ k1
        c1 = p1.to(tl.uint32)
        c3 = p0.to(tl.uint32)
        k0 = tl.add(k0, 0x9E3779B9, sanitize_overflow=False)
        k1 = tl.add(k1, 0xBB67AE85, sanitize_overflow=False)
    return c0, c1, c2, c3


@triton.jit
def _box_muller(a, b):
    """Two normals from two words. The low thirty bits of b are an angle, which its two high bits turn by quarters."""
    u = (a >> 1).to(tl.float32) * 4.656612873077393e-10 + 2.3283064365386963e-10
    r = tl.sqrt(minus_2_log(u))
    angle = (b << 2).to(tl.int32, bitcast=True).to(tl.float32) * (0.7853981633974483 * 4.656612873077393e-10)
    c, s = cos_sin_quarter(angle)
    # Turning by half a circle negates both: flip the sign bit of the radius once.
    r = (r.to(tl.uint32, bitcast=True) ^ ((b << 1) & 0x80000000)).to(tl.float32, bitcast=True)
    swap = b.to(tl.int32, bitcast=True) < 0
    return r * tl.where(swap, s, c), r * tl.where(swap, c, s)


@triton.jit
def _words(seed, sample, row, column):
    """The four words of (sample, row, column c); the arguments broadcast.

    `row` is the int64 number of the row in the joint batch, `seed` an int64 scalar.
    """
    row_low = (row & 0xFFFFFFFF).to(tl.uint32)
    row_high = (row >> 32).to(tl.uint32)
    return philox(seed, column.to(tl.uint32), row_low, row_high, tl.cast(sample, tl.uint32))


@triton.jit
def normal_quarters(seed, sample, row, column):
    """float32 normals of the columns c, c + Q, c + 2Q, c + 3Q of (sample, row); see `_words`."""
    x0, x1, x2, x3 = _words(seed, sample, row, column)
    first, second = _box_muller(x0, x1)
    third, fourth = _box_muller(x2, x3)
    return first, second, third, fourth


@triton.jit
def in_layout_of(column, loaded):
    """`column`, spread over the threads as the tile `loaded` is.

    The comparison is false for every number, and LLVM drops it. Before that, it ties the counters to the loads. Without
    it Triton draws the noise in a layout of its own, and moves it through shared memory to the layout of the loads.
    """
    return tl.where(tl.abs(loaded.to(tl.float32)) < 0.0, 0, column)


@triton.jit
def noise_source(noise_ptr, GIVEN: tl.constexpr):
    """What `noise_quarters` reads from: the pointer to eps, or the seed, loaded once."""
    if GIVEN:
        return noise_ptr
    else:
        return tl.load(noise_ptr)


@triton.jit
def _given_quarters(source, sample, row, column, n_rows, D, quarter, inside):
    """The numbers of the columns c + {0, 1, 2, 3} Q out of (K, N, D); 0 where there are none."""
    at_ptr = source + (tl.cast(sample, tl.int64) * n_rows + row) * D + column
    e0 = tl.load(at_ptr, inside, 0.0)
    e1 = tl.load(at_ptr + quarter, inside & (column + quarter < D), 0.0)
    e2 = tl.load(at_ptr + 2 * quarter, inside & (column + 2 * quarter < D), 0.0)
    e3 = tl.load(at_ptr + 3 * quarter, inside & (column + 3 * quarter < D), 0.0)
    return e0, e1, e2, e3


@triton.jit
def noise_quarters(
    source, sample, row, column, row_offset, n_rows, D, quarter, inside, GIVEN: tl.constexpr, dtype: tl.constexpr
):
    """The noise of the columns c + {0, 1, 2, 3} Q in `dtype`: read from eps (K, N, D), or drawn from the seed.

    `inside` says which (row, c) exist. Elsewhere noise that is read is 0, and drawn noise is any finite number.
    """
    if GIVEN:
        e0, e1, e2, e3 = _given_quarters(source, sample, row, column, n_rows, D, quarter, inside)
    else:
        e0, e1, e2, e3 = normal_quarters(source, sample, row + row_offset, column)
    return e0.to(dtype), e1.to(dtype), e2.to(dtype), e3.to(dtype)


@triton.jit
def _to_uniform(word):
    """The uniform number in (0, 1) of a word, exact in float32."""
    return ((word >> 9).to(tl.float32) + 0.5) * 1.1920928955078125e-07


@triton.jit
def uniform_quarters(
    source, sample, row, column, row_offset, n_rows, D, quarter, inside, GIVEN: tl.constexpr, dtype: tl.constexpr
):
    """As `noise_quarters`, uniform numbers."""
    if GIVEN:
        u0, u1, u2, u3 = _given_quarters(source, sample, row, column, n_rows, D, quarter, inside)
    else:
        x0, x1, x2, x3 = _words(source, sample, row + row_offset, column)
        u0, u1, u2, u3 = _to_uniform(x0), _to_uniform(x1), _to_uniform(x2), _to_uniform(x3)
    return u0.to(dtype), u1.to(dtype), u2.to(dtype), u3.to(dtype)
