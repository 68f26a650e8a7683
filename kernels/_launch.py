"""How kernels are launched: tile sizes for row kernels, the device guard, and the recording of launches for AOT."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

WARPS = 4
# Enough programs for two waves on the largest devices; with fewer, warps share a row instead of owning some each.
_BUSY = 1024


class Launch(NamedTuple):
    """A kernel with its arguments as `launch` got them."""

    kernel: Any
    args: tuple[Any, ...]
    meta: dict[str, Any]


class AotCase(NamedTuple):
    """A launcher with arguments on the meta device; `name` says which specialisation of its kernels they select."""

    name: str
    launcher: Any
    args: tuple[Any, ...]


_recorded: list[Launch] | None = None
_warp_size = 64 if torch.version.hip else 32


@contextmanager
def recording(warp_size: int) -> Iterator[list[Launch]]:
    """Collects launches instead of making them, so that AOT compiles exactly what launchers would launch.

    `warp_size` is that of the device compiled for, in threads.
    """
    global _recorded, _warp_size
    before = _warp_size
    _recorded, _warp_size = launches, _ = [], warp_size
    try:
        yield launches
    finally:
        _recorded, _warp_size = None, before


def launch(kernel: Any, programs: int, *args: Any, **meta: Any) -> None:
    """Runs `programs` instances of `kernel` on the device of the first argument; none of them for no programs."""
    if _recorded is not None:
        _recorded.append(Launch(kernel, args, meta))
        return
    if programs == 0:
        return
    device = args[0].device
    if device.type == "cuda" and device.index != torch.cuda.current_device():
        with torch.cuda.device(device):
            kernel[(programs,)](*args, **meta)
    else:
        kernel[(programs,)](*args, **meta)


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def next_power_of_2(n: int) -> int:
    return 1 << max(n - 1, 0).bit_length()


def vector_width(dtype: torch.dtype, width: int) -> int:
    """Elements per 128-bit access to contiguous rows of `width` elements; 1 where Triton cannot tell their alignment.

    Triton specialises kernels on integers that 16 divides.
    """
    return 16 // dtype.itemsize if width > 0 and width % 16 == 0 else 1


def quarter_layout(dtype: torch.dtype, columns: int) -> tuple[int, int]:
    """(Q, elements per access) of a row in quarters, of which each must be aligned."""
    quarter, vector = ceil_div(columns, 4), vector_width(dtype, columns)
    return quarter, vector if quarter % vector == 0 else 1


class RowTile(NamedTuple):
    """Rows and columns of one program's tile."""

    rows: int
    columns: int
    warps: int


def row_tile(rows: int, columns: int, vector: int) -> RowTile:
    """A tile in which each thread makes one access per operand; if there are many rows, none of them crosses warps."""
    per_warp = _warp_size * vector
    block = min(next_power_of_2(columns), per_warp if rows >= _BUSY else 8 * per_warp)
    block_rows = min(max(WARPS * per_warp // block, 1), next_power_of_2(rows))
    return RowTile(block_rows, block, max(block_rows * block // per_warp, 1))


class SampleTile(NamedTuple):
    """Samples, rows and columns of one program's tile, which a loop moves along the samples."""

    samples: int
    rows: int
    columns: int
    warps: int


def sample_tile(samples: int, rows: int, columns: int, vector: int) -> SampleTile:
    """As `row_tile`; where rows are few, the warps of a program share out the samples."""
    per_warp = _warp_size * vector
    block = min(next_power_of_2(columns), per_warp)
    free = WARPS * per_warp // block
    block_rows = min(free, next_power_of_2(max(rows * ceil_div(columns, block) // _BUSY, 1)))
    block_samples = min(free // block_rows, next_power_of_2(samples))
    warps = max(block_samples * block_rows * block // per_warp, 1)
    return SampleTile(block_samples, block_rows, block, warps)


def meta(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """A tensor without storage, for AOT cases."""
    return torch.empty(shape, dtype=dtype, device="meta")


def meta_noise(samples: int, rows: int, columns: int, *, given: bool) -> Tensor:
    """A seed, or the normals themselves, for AOT cases."""
    return meta(samples, rows, columns) if given else meta(dtype=torch.int64)


def solve_tile(d: int) -> RowTile:
    """Systems to solve per program: a warp solves one or several, and only large ones take more than a warp."""
    columns = next_power_of_2(d)
    rows = max(_warp_size // columns, 1)
    return RowTile(rows, columns, max(columns // (8 * _warp_size), 1))


class TrilTile(NamedTuple):
    """Rows of T, distributions, and columns of each quarter of one program's tile."""

    rows: int
    batch: int
    columns: int
    warps: int


def tril_tile(batch: int, d: int, quarter: int, rows: int) -> TrilTile:
    """Each thread holds one column of up to `rows` rows of T; sums along a row stay within a warp."""
    rows = min(next_power_of_2(d), rows)
    columns = min(next_power_of_2(quarter), _warp_size)
    per_warp = _warp_size // columns
    warps = WARPS if batch * ceil_div(d, rows) >= _BUSY * WARPS * per_warp else 1
    return TrilTile(rows, per_warp * warps, columns, warps)


def tril_strides(tril: Tensor) -> tuple[int, int]:
    """(between matrices, between the rows of a matrix), the second unused where matrices are packed."""
    return (tril.stride(0), tril.stride(1)) if tril.ndim == 3 else (tril.stride(0), 0)
