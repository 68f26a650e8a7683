"""The sweeps of the inverse in CUDA C++: which calls they serve, and how they are launched.

A block keeps the sums of all units for a few rows in shared memory. So networks of some thousands of units fit. Larger
ones, and devices without NVRTC, are left to the Triton kernels.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..structure import ACTIVATION_NAMES, MadeStructure
from . import _nvrtc
from ._affine import KINDS
from ._launch import compute_dtype
from ._tiles import ceil_div, next_power_of_2
from .sorted_units import SortedStructure

_SOURCES = ("_sweep_maths.cuh", "_sweep.cuh", "autoregressive_inverse.cu", "autoregressive_inverse_solve.cu")
# The sources' names of types.
_TYPES = {torch.float32: "float", torch.float64: "double", torch.bfloat16: "bfloat16", torch.float16: "float16"}
# With eight rows products take as long as the loads of their weights.
_MOST_ROWS, _MOST_ROWS_DOUBLE, _LEAST_ROWS = 8, 4, 2
_THREADS = 128
# As in the sources: inputs that are multiplied at once, and how the rows of a layer's sums are padded.
_TOGETHER, _BANKS, _SKEW = 4, 32, 4
# What conversions to bfloat16 need.
_LEAST_CAPABILITY = (8, 0)
# Bytes of shared memory that a kernel gets without asking.
_UNASKED = 48 * 1024
# What the sources count in 32 bits: rows, and offsets within a block's rows.
_MOST = 1 << 27


class Sweep(NamedTuple):
    """A compiled kernel, the rows and threads of a block, and its bytes of shared memory."""

    kernel: Any
    rows: int
    threads: int
    shared: int

    def run(self, n: int, tensors: Sequence[Tensor], numbers: Sequence[int]) -> None:
        """Writes the results for n rows into the first tensors."""
        if n == 0:
            return
        if self.shared >= _UNASKED:
            self.kernel.set_shared_memory_config(self.shared)
        with torch.cuda.device_of(tensors[0]):
            self.kernel(
                (ceil_div(n, self.rows), 1, 1), (self.threads, 1, 1), [*tensors, *map(int, numbers)], self.shared
            )


def read_source() -> str:
    """The sources, after the numbers by which launches name activations and kinds."""
    names = [f"ACTIVATION_{name} = {i}" for i, name in enumerate(ACTIVATION_NAMES)]
    names += [f"KIND_{name} = {i}" for i, name in enumerate(KINDS)]
    parts = [Path(__file__).with_name(name).read_text() for name in _SOURCES]
    return "\n".join([f"enum {{ {', '.join(names)} }};", *parts])


def name_kernel(launcher: str, dtype: torch.dtype, rows: int, threads: int) -> str:
    """The C++ expression of the kernel of a launcher."""
    return f"{launcher}<{_TYPES[dtype]}, {_TYPES[compute_dtype(dtype)]}, {rows}, {threads}>"


def count_known(structure: SortedStructure, params: int) -> int:
    """The most units that become known at once."""
    return max(structure.most, params)


def count_shared(
    launcher: str, rows: int, dtype: torch.dtype, structure: MadeStructure, params: int, known: int
) -> int:
    """Bytes of shared memory of a block, as the sources lay it out."""
    d, layers = structure.features, len(structure.hidden_degrees)
    solves = launcher.endswith("solve")
    widths = [d if solves else d * params, *(counts[d - 1] for counts in structure.counts[1 : layers + 1])]
    sums = sum(ceil_div(width, _BANKS) * _BANKS + _SKEW for width in widths)
    streamed = known if structure.residual else 0
    numbers = rows * (sums + ceil_div(known, _TOGETHER) * _TOGETHER + streamed + d * (4 if solves else 1))
    return numbers * compute_dtype(dtype).itemsize + 4 * (layers * (d + 1) + layers + 2)


def choose_rows(n: int, dtype: torch.dtype, multiprocessors: int) -> int:
    """Rows of a block such that every multiprocessor has one, as far as rows suffice."""
    most = _MOST_ROWS_DOUBLE if dtype == torch.float64 else _MOST_ROWS
    return min(max(next_power_of_2(ceil_div(n, multiprocessors)), _LEAST_ROWS), most)


@lru_cache
def _can_run(device: torch.device) -> bool:
    """Whether NVRTC and PyTorch's loader serve this device."""
    if device.type != "cuda" or torch.version.hip or torch.cuda.get_device_capability(device) < _LEAST_CAPABILITY:
        return False
    return _nvrtc.can_load() and _nvrtc.find_library(torch.version.cuda) is not None


@lru_cache
def _compile(device: torch.device, launcher: str, dtype: torch.dtype, rows: int) -> Any:
    try:
        return _nvrtc.compile_kernel(read_source(), name_kernel(launcher, dtype, rows, _THREADS), device)
    except (AttributeError, KeyError, OSError, RuntimeError) as error:
        warnings.warn(f"{launcher} runs a slower kernel on {device}: {error}", stacklevel=2)
        return None


def find_sweep(
    launcher: str, rows: Sequence[Tensor | None], structure: MadeStructure, params: int, units: SortedStructure
) -> Sweep | None:
    """The kernel for a launcher whose arguments have these rows; None where a Triton kernel runs."""
    given = [t for t in rows if t is not None]
    first = given[0]
    # A compiler can trace the launch of a Triton kernel, but not that of another one.
    if torch.compiler.is_compiling() or not _can_run(first.device):
        return None
    if max(len(first), *(t.stride(0) for t in given)) > _MOST:
        return None
    device = torch.cuda.get_device_properties(first.device)
    limit = getattr(device, "shared_memory_per_block_optin", _UNASKED)
    block, known = choose_rows(len(first), first.dtype, device.multi_processor_count), count_known(units, params)
    while block >= _LEAST_ROWS:
        shared = count_shared(launcher, block, first.dtype, structure, params, known)
        if shared <= limit:
            kernel = _compile(first.device, launcher, first.dtype, block)
            return None if kernel is None else Sweep(kernel, block, _THREADS, shared)
        block //= 2
    return None
