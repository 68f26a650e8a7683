"""Peak memory of one call, and how much of it is what the call returns."""

from __future__ import annotations

import ctypes
import gc
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile


def measure_peak_bytes(call: Callable[[], Any], device: str) -> int:
    """Highest sum of bytes that tensors allocated inside ``call`` occupy at one moment, results included.

    On a CPU the profiler tells every allocation and release of torch's allocator; on a GPU the caching
    allocator tells its high-water mark. What an extension takes from ``malloc`` shows in
    :func:`measure_peak_resident_bytes` alone.
    """
    return _measure_cuda(call) if device == "cuda" else _measure_cpu(call)


def _measure_cpu(call: Callable[[], Any]) -> int:
    call()
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        # Held until the profiler stops: a release of the results belongs to the caller.
        results = call()
    del results
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    level = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        level += event.nbytes()
        peak = max(peak, level)
    return peak


def _measure_cuda(call: Callable[[], Any]) -> int:
    call()
    gc.collect()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    results = call()
    torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated() - before
    del results
    return peak


def measure_peak_resident_bytes(call: Callable[[], Any]) -> int | None:
    """Highest growth of the process's resident memory during ``call``, whoever allocated it, results included.

    Counts whole pages, so only large calls tell something. None where the system does not offer it: it takes
    Linux and glibc.
    """
    call()
    gc.collect()
    try:
        # Freed memory that the allocator keeps would hide what the call needs.
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        before = _read_status("VmRSS")
        results = call()
        peak = _read_status("VmHWM") - before
    except (AttributeError, OSError, TypeError):
        return None
    del results
    return peak


def _read_status(field: str) -> int:
    found = re.search(rf"^{field}:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    if found is None:
        raise OSError(f"no {field} in the status of this process")
    return int(found[1]) << 10


def count_new_bytes(results: Any, given: Iterable[Tensor]) -> int:
    """Bytes of the distinct storages among ``results`` that none of the tensors in ``given`` owns."""
    known = {t.untyped_storage().data_ptr() for t in given}
    storages = {s.data_ptr(): s.nbytes() for t in _find_tensors(results) for s in (t.untyped_storage(),)}
    return sum(size for pointer, size in storages.items() if pointer not in known)


def _find_tensors(results: Any) -> list[Tensor]:
    if isinstance(results, Tensor):
        return [results]
    if isinstance(results, (tuple, list)):
        return [t for result in results for t in _find_tensors(result)]
    return []
