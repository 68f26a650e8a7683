"""What the matrix kernels of masked layers share: tile sizes, registers, splits, and the order of programs."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from ._launch import by_shape, capability, warp_size
from ._tiles import ceil_div

# Programs that run together share this many row blocks.
GROUP = 64
# A large device has this many multiprocessors, and each of them holds two programs.
_MULTIPROCESSORS = 132
_AT_ONCE = 2 * _MULTIPROCESSORS
# Two programs of eight warps share the registers of a multiprocessor if neither has more than half of them.
_ALL_REGISTERS, _SHARED_REGISTERS = 255, 128
# With these activations and no addend the widest tile needs no more; the code of the others would spill.
_SHORT_ACTIVATIONS = ("identity", "relu", "elu")
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


class MatrixTile(NamedTuple):
    """Rows and columns of one program's tile, the inner size of one product, warps, and stages of its pipeline."""

    rows: int
    columns: int
    inner: int
    warps: int
    stages: int

    def programs(self, rows: int, columns: int) -> int:
        return -(-rows // self.rows) * -(-columns // self.columns)


def matrix_tile(rows: int, columns: int, dtype: torch.dtype) -> MatrixTile:
    """The largest tile whose programs occupy nine tenths of a device; the smallest if none does."""
    return choose_tile(rows, columns, dtype, precision(dtype))


@by_shape
def choose_tile(rows: int, columns: int, dtype: torch.dtype, multiplied: str) -> MatrixTile:
    """As `matrix_tile`, for a precision that is known."""
    shapes = {torch.float32: _FLOAT_TILES, torch.float64: _DOUBLE_TILES}.get(dtype, _HALF_TILES)
    if multiplied == "tf32":
        shapes = _TF32_TILES
    tiles = [_on_device(MatrixTile(*shape)) for shape in shapes if shape[1] < WIDE_COLUMNS or columns % shape[1] == 0]
    return next((tile for tile in tiles if 10 * tile.programs(rows, columns) >= 9 * _MULTIPROCESSORS), tiles[-1])


def _on_device(tile: MatrixTile) -> MatrixTile:
    """On AMD a warp has twice the threads, more than four warps would leave each of them too few registers, and three
    stages of the widest tile would fill the local memory."""
    if warp_size() == 32:
        return tile
    return tile._replace(warps=min(tile.warps, 4), stages=2 if tile.columns == WIDE_COLUMNS else tile.stages)


@by_shape
def launch_options(warps: int, stages: int = 3, registers: int = _ALL_REGISTERS) -> dict[str, int]:
    """Warps and stages, and on NVIDIA the use of so many registers.

    Without it the assembler spills a few registers to make room for one more program.
    """
    options = {"num_warps": warps, "num_stages": stages}
    return options if warp_size() == 64 else options | {"maxnreg": registers}


@by_shape
def product_options(
    tile: MatrixTile,
    dtype: torch.dtype,
    sizes: Sequence[int],
    device: int,
    activation: str = "identity",
    adds: bool = False,
) -> dict[str, int]:
    """Options by which two programs share a multiprocessor of Hopper, so that one multiplies while the other begins or
    ends; where registers do not suffice, those for one program.

    `sizes` are those of contiguous rows: whole vectors need few registers.
    """
    vectors = all(size % 16 == 0 for size in sizes)
    short = tile.columns < WIDE_COLUMNS or (activation in _SHORT_ACTIVATIONS and not adds)
    shared = capability(device) == 90 and dtype.itemsize == 2 and vectors and short
    return launch_options(tile.warps, tile.stages, _SHARED_REGISTERS if shared else _ALL_REGISTERS)


def staircase_programs(out_blocks: int, in_blocks: int) -> int:
    """How many of the blocks of a weight a staircase leaves, about: those below its diagonal and on it."""
    return (out_blocks * in_blocks + max(out_blocks, in_blocks)) // 2


def split_products(terms: int, programs: int, least: int) -> tuple[int, int]:
    """(splits, terms of each) of sums such that programs run all at once; a split has `least` terms or more."""
    splits = max(min(_AT_ONCE // max(programs, 1), terms // least), 1)
    per_split = max(ceil_div(ceil_div(terms, splits), least), 1) * least
    return max(ceil_div(terms, per_split), 1), per_split


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
