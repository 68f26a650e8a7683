"""How kernels are launched: the device guard, and the recording of launches for AOT."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Launch(NamedTuple):
    """A kernel, the number of its programs, and its arguments as `launch` got them."""

    kernel: Any
    programs: int
    args: tuple[Any, ...]
    meta: dict[str, Any]


class AotCase(NamedTuple):
    """A launcher with arguments on the meta device; `name` says which specialisation of its kernels they select."""

    name: str
    launcher: Any
    args: tuple[Any, ...]


_recorded: list[Launch] | None = None
_warp_size = 64 if torch.version.hip else 32
_capability: int | None = None


def warp_size() -> int:
    """Threads per warp of the device that launches are for."""
    return _warp_size


@functools.cache
def _capability_of(device: int) -> int:
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def capability() -> int:
    """Compute capability of the NVIDIA GPU that launches are for, such as 90; 0 for others."""
    if _capability is not None:
        return _capability
    return _capability_of(torch.cuda.current_device()) if _warp_size == 32 and torch.cuda.is_available() else 0


@contextmanager
def record_launches(threads_per_warp: int, of_capability: int = 0) -> Iterator[list[Launch]]:
    """Collects launches instead of making them, so that AOT compiles exactly what launchers would launch."""
    global _recorded, _warp_size, _capability
    launches: list[Launch] = []
    before, _warp_size, _capability, _recorded = _warp_size, threads_per_warp, of_capability, launches
    try:
        yield launches
    finally:
        _warp_size, _capability, _recorded = before, None, None


def launch(kernel: Any, programs: int, *args: Any, **meta: Any) -> None:
    """Runs `programs` instances of `kernel` on the device of the first argument; launches nothing if it is 0."""
    if _recorded is not None:
        _recorded.append(Launch(kernel, programs, args, meta))
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


def meta(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """A tensor without storage, for AOT cases."""
    return torch.empty(shape, dtype=dtype, device="meta")


def meta_noise(samples: int, rows: int, columns: int, *, given: bool) -> Tensor:
    """A seed, or the normals themselves, for AOT cases."""
    return meta(samples, rows, columns) if given else meta(dtype=torch.int64)
