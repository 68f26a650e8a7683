"""Kernels in CUDA C++, compiled as C++ and run on CPU tensors: ``tests/csrc/emulated_cuda.h`` emulates the threads."""

from __future__ import annotations

import ctypes
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

_HEADER = Path(__file__).parents[1] / "csrc" / "emulated_cuda.h"
# An access that is not aligned stops the process, as it stops a kernel on a GPU.
_OPTIONS = (
    *("-std=c++17", "-O1", "-fPIC", "-shared", "-Wno-unknown-pragmas"),
    *("-fsanitize=alignment", "-fsanitize-undefined-trap-on-error"),
)
_FAULTS = (None, "its threads meet different barriers", "it writes beyond its shared memory")


class EmulatedKernel:
    """As a kernel that PyTorch has loaded: called with grid, block, arguments and bytes of shared memory."""

    def __init__(self, function: Any, name: str) -> None:
        self._function, self._name = function, name
        self.descending = False
        self.calls = 0

    def set_shared_memory_config(self, shared: int) -> None:
        pass

    def __call__(
        self, grid: Sequence[int], block: Sequence[int], args: Sequence[Tensor | int], shared_mem: int
    ) -> None:
        values = [ctypes.c_void_p(a.data_ptr()) if isinstance(a, Tensor) else ctypes.c_int(a) for a in args]
        addresses = (ctypes.c_void_p * len(values))(*[ctypes.addressof(value) for value in values])
        fault = self._function(grid[0], block[0], shared_mem, int(self.descending), addresses)
        assert not fault, f"{self._name}: {_FAULTS[fault]}"
        self.calls += 1


def compile_kernels(source: str, kernels: Sequence[str], memory: str, folder: Path) -> list[EmulatedKernel]:
    """The C++ expressions ``kernels`` of the source. ``memory`` is the type in which it declares its shared memory."""
    lines = [f'#include "{_HEADER}"', source, f"EMULATE_MEMORY({memory})"]
    lines += [f"EMULATE(kernel_{i}, {kernel})" for i, kernel in enumerate(kernels)]
    path, library = folder / "kernels.cpp", folder / "kernels.so"
    path.write_text("\n".join(lines) + "\n")
    compiler = os.environ.get("CXX", "c++")
    subprocess.run([compiler, *_OPTIONS, str(path), "-o", str(library)], check=True)
    loaded = ctypes.CDLL(str(library))
    return [EmulatedKernel(getattr(loaded, f"kernel_{i}"), kernel) for i, kernel in enumerate(kernels)]
