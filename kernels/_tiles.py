"""Tile sizes by rule, not by autotuning: what one program owns, and how many warps work on it."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._launch import by_shape, warp_size

_WARPS = 4
# Enough programs for two waves on the largest devices; with fewer, warps share a row instead of owning some each.
_BUSY = 1024
# A sum that is long enough is split among this many programs: two for each multiprocessor.
_SPLIT_PROGRAMS = 264
# Numbers that are added one after another: their error grows with their count, so that longer sums are sums of blocks.
BLOCK_TERMS = tl.constexpr(128)


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def next_power_of_2(n: int) -> int:
    return 1 << max(n - 1, 0).bit_length()


@by_shape
def vector_width(dtype: torch.dtype, width: int) -> int:
    """Elements per 128-bit access to contiguous rows of `width` elements; 1 where Triton cannot tell their alignment.

    Triton specialises kernels on integers that 16 divides.
    """
    return 16 // dtype.itemsize if width > 0 and width % 16 == 0 else 1


@by_shape
def quarter_layout(dtype: torch.dtype, columns: int) -> tuple[int, int]:
    """(Q, elements per access) of a row in quarters; each quarter must be aligned."""
    quarter, vector = ceil_div(columns, 4), vector_width(dtype, columns)
    return quarter, vector if quarter % vector == 0 else 1


class RowTile(NamedTuple):
    """Rows and columns of one program's tile."""

    rows: int
    columns: int
    warps: int


@by_shape
def row_tile(rows: int, columns: int, vector: int) -> RowTile:
    """A tile in which each thread makes one access per operand; with many rows, no row crosses warps."""
    per_warp = warp_size() * vector
    block = min(next_power_of_2(columns), per_warp if rows >= _BUSY else 8 * per_warp)
    block_rows = min(max(_WARPS * per_warp // block, 1), next_power_of_2(rows))
    return RowTile(block_rows, block, max(block_rows * block // per_warp, 1))


@by_shape
def split_sum(terms: int, programs: int, least: int) -> tuple[int, int]:
    """(splits, terms of each) such that all programs together keep a device busy; a split has `least` terms or more."""
    splits = max(min(ceil_div(_SPLIT_PROGRAMS, max(programs, 1)), terms // least), 1)
    per_split = max(ceil_div(ceil_div(terms, splits), least), 1) * least
    return max(ceil_div(terms, per_split), 1), per_split


class SampleTile(NamedTuple):
    """Samples, rows and columns of one program's tile."""

    samples: int
    rows: int
    columns: int
    warps: int


@by_shape
def split_points(points: int, samples: int, rows: int) -> tuple[int, int]:
    """(samples, rows) of a tile of `points`, a power of two; samples of a row share a tile if that wastes none."""
    together = max(min(points, samples & -samples), points // next_power_of_2(rows), 1)
    return together, points // together


@by_shape
def point_tile(samples: int, rows: int, columns: int, vector: int) -> SampleTile:
    """As `row_tile`, for every sample of every row."""
    tile = row_tile(samples * rows, columns, vector)
    return SampleTile(*split_points(tile.rows, samples, rows), tile.columns, tile.warps)


@by_shape
def sum_tile(samples: int, rows: int, columns: int, vector: int) -> SampleTile:
    """A tile for sums over samples in one program; if rows are few, its warps share the samples."""
    per_warp = warp_size() * vector
    block = min(next_power_of_2(columns), per_warp)
    free = _WARPS * per_warp // block
    block_rows = min(free, next_power_of_2(max(rows * ceil_div(columns, block) // _BUSY, 1)))
    block_samples = min(free // block_rows, next_power_of_2(samples))
    warps = max(block_samples * block_rows * block // per_warp, 1)
    return SampleTile(block_samples, block_rows, block, warps)


@by_shape
def solve_tile(samples: int, rows: int, d: int) -> SampleTile:
    """A warp solves one triangular system or several; only large ones take more than a warp."""
    columns = next_power_of_2(d)
    points = max(warp_size() // columns, 1)
    return SampleTile(*split_points(points, samples, rows), columns, max(columns // (8 * warp_size()), 1))


class TrilTile(NamedTuple):
    """Rows of T, samples, distributions, and columns of each quarter of one program's tile."""

    i: int
    samples: int
    rows: int
    columns: int


@by_shape
def tril_tile(samples: int, rows: int, d: int, *, height: int) -> TrilTile:
    """The tile of one warp, in which each thread holds one column of up to `height` rows of T.

    With more warps Triton 3.4 to 3.6 would spread a warp over matrices instead of columns.
    """
    i, columns = min(next_power_of_2(d), height), min(next_power_of_2(ceil_div(d, 4)), warp_size())
    return TrilTile(i, *split_points(warp_size() // columns, samples, rows), columns)


def row_stride(t: Tensor | None) -> int:
    return 0 if t is None else t.stride(0)


def tril_strides(tril: Tensor) -> tuple[int, int]:
    """(between matrices, between the rows of a matrix), the second unused where matrices are packed."""
    return (tril.stride(0), tril.stride(1)) if tril.ndim == 3 else (tril.stride(0), 0)


@triton.jit
def tile_points(sample_block, row_block, BLOCK_K: tl.constexpr, BLOCK_N: tl.constexpr):
    """(sample, row) of BLOCK_K * BLOCK_N points, row as int64 since offsets are multiples of it."""
    point = tl.arange(0, BLOCK_K * BLOCK_N)
    return sample_block * BLOCK_K + point // BLOCK_N, row_block.to(tl.int64) * BLOCK_N + point % BLOCK_N
