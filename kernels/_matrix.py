"""What the matrix kernels of masked layers share: tile sizes, and which tiles of a staircase are not empty."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from ._launch import warp_size
from ._tiles import ceil_div, next_power_of_2

# Programs that run together share this many row blocks.
GROUP = 64
# A large device runs this many programs at once.
_WAVE = 132
# Rows, columns, inner size, warps, stages. The largest come first: they read their operands least often.
# Four warps of Hopper multiply 64 rows at once. With 64 columns they read 128 bytes of shared memory a cycle, which is
# all that it gives: nothing is left for the arrival of the next tiles. With 128 columns they read 96 bytes.
# A deeper inner size would cost the widest tile local memory on Ampere.
_HALF_TILES = ((128, 128, 32, 8, 4), (128, 64, 64, 8, 3), (64, 64, 64, 4, 3), (32, 64, 64, 4, 3), (16, 32, 64, 2, 3))
_TF32_TILES = ((128, 128, 16, 8, 4), (128, 64, 32, 8, 3), (64, 64, 32, 4, 3), (32, 32, 16, 4, 2), (16, 16, 16, 2, 2))
# Without matrix instructions products are slow enough for two stages to hide the loads, which saves registers.
_FLOAT_TILES = ((64, 64, 16, 8, 2), (32, 64, 16, 8, 2), (32, 32, 16, 4, 2), (16, 16, 16, 2, 2))
_DOUBLE_TILES = ((32, 32, 16, 4, 2), (16, 16, 16, 2, 2))
# Tiles of this width serve only sizes that they fill.
WIDE_COLUMNS = 128

_FAR = tl.constexpr(1 << 62)


class MatrixTile(NamedTuple):
    """Rows and columns of one program's tile, the inner size of one product, warps, and stages of its pipeline."""

    rows: int
    columns: int
    inner: int
    warps: int
    stages: int

    def programs(self, rows: int, columns: int) -> int:
        return ceil_div(rows, self.rows) * ceil_div(columns, self.columns)


def matrix_tile(rows: int, columns: int, dtype: torch.dtype) -> MatrixTile:
    """The largest tile that makes enough programs to keep a device busy; the smallest if none does."""
    shapes = {torch.float32: _FLOAT_TILES, torch.float64: _DOUBLE_TILES}.get(dtype, _HALF_TILES)
    if precision(dtype) == "tf32":
        shapes = _TF32_TILES
    tiles = [_on_device(MatrixTile(*shape)) for shape in shapes if shape[1] < WIDE_COLUMNS or columns % shape[1] == 0]
    return next((tile for tile in tiles if tile.programs(rows, columns) >= _WAVE), tiles[-1])


def _on_device(tile: MatrixTile) -> MatrixTile:
    """On AMD a warp has twice the threads, more than four warps would leave each of them too few registers, and three
    stages of the widest tile would fill the local memory."""
    if warp_size() == 32:
        return tile
    return tile._replace(warps=min(tile.warps, 4), stages=2 if tile.columns == WIDE_COLUMNS else tile.stages)


def tiles_at_once(size: int, block: int) -> int:
    """How many tiles `staircase` looks at together: all of them if they are few."""
    return min(next_power_of_2(ceil_div(size, block)), 16)


def launch_options(warps: int, stages: int = 3) -> dict[str, int]:
    """Warps and stages, and on NVIDIA the use of all registers.

    Without it the assembler spills a few registers to make room for one more program.
    """
    options = {"num_warps": warps, "num_stages": stages}
    return options if warp_size() == 64 else options | {"maxnreg": 255}


def precision(dtype: torch.dtype) -> str:
    """How `tl.dot` multiplies float32; other types know one way only."""
    return "tf32" if dtype == torch.float32 and _allows_tf32() else "ieee"


def _allows_tf32() -> bool:
    """What torch's own products of float32 do.

    The newer setting has the inherited choice of `torch.backends` too. The older flag raises where the newer is used.
    """
    matmul = torch.backends.cuda.matmul
    chosen = getattr(matmul, "fp32_precision", None)
    return bool(matmul.allow_tf32) if chosen is None else chosen == "tf32"


def in_tf32(launcher: Callable[..., Any]) -> Callable[..., Any]:
    """The launcher with `allow_tf32` set during its call, for AOT cases."""

    @functools.wraps(launcher)
    def run(*args: Any) -> Any:
        allowed = torch.backends.cuda.matmul.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = True
        try:
            return launcher(*args)
        finally:
            torch.backends.cuda.matmul.allow_tf32 = allowed

    return run


@triton.jit
def group_blocks(program, row_blocks, column_blocks, GROUP: tl.constexpr):
    """(row block, column block) of a program, the last columns first: with ascending degrees they are the longest.

    Programs that run together share GROUP row blocks, which stay in the L2 cache.
    """
    group = program // (GROUP * column_blocks)
    height = tl.minimum(row_blocks - group * GROUP, GROUP)
    rest = program - group * GROUP * column_blocks
    return group * GROUP + rest % height, column_blocks - 1 - rest // height


@triton.jit
def bounds(degree, inside):
    """The least and the largest of the degrees that are inside."""
    return tl.min(tl.where(inside, degree, _FAR), 0), tl.max(tl.where(inside, degree, -_FAR), 0)


@triton.jit
def staircase(degrees_ptr, first, size, least, most, SIGN: tl.constexpr, BLOCK: tl.constexpr, TILES: tl.constexpr):
    """(bits, count) of the tiles from `first` on that the staircase cuts, then of those wholly below it.

    An element counts where SIGN * degree is at most that of its partner. The partners have `least` to `most`. A tile in
    neither set is empty.
    """
    at = first + tl.arange(0, TILES)[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
    degree = SIGN * tl.load(degrees_ptr + at, at < size, 0)
    lowest = tl.min(tl.where(at < size, degree, _FAR), 1)
    highest = tl.max(tl.where(at < size, degree, -_FAR), 1)
    bit = 1 << tl.arange(0, TILES)
    below = ((lowest <= most) & (highest <= least)).to(tl.int32)
    cut = ((lowest <= most) & (highest > least)).to(tl.int32)
    return tl.sum(cut * bit, 0), tl.sum(cut, 0), tl.sum(below * bit, 0), tl.sum(below, 0)


@triton.jit
def lowest_bit(bits):
    """The place of the lowest bit set, from the exponent of its float."""
    return ((bits & -bits).to(tl.float32).to(tl.int32, bitcast=True) >> 23) - 127
