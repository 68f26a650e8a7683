"""How kernels are launched: compiled kernels that are remembered, the device guard, and the recording of launches.

Triton looks for the compiled kernel at each launch, which takes longer than a small kernel runs. `launch` remembers it
by a key that is finer than Triton's and made faster. From the second time on it calls the launcher of the compiled
kernel itself. Triton launches where this is not possible: in its interpreter, and while hooks watch launches.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

import torch
import triton
from torch import Tensor

_FunctionT = TypeVar("_FunctionT", bound=Callable[..., Any])


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


class _Compiled(NamedTuple):
    """A compiled kernel: `run(programs, 1, 1, stream, *before, *arguments, *constants)`.

    With `as_one` the arguments and constants are one tuple. `kernel` is kept since keys hold its identity.
    """

    kernel: Any
    run: Callable[..., Any]
    before: tuple[Any, ...]
    constants: tuple[Any, ...]
    as_one: bool
    get_stream: Callable[[Any], int]


_recorded: list[Launch] | None = None
_warp_size = 64 if torch.version.hip else 32
_capability: int | None = None
_rules: list[Any] = []
_known: dict[tuple[Any, ...], _Compiled] = {}
# Sizes that differ from call to call make new keys.
_MOST_KNOWN = 4096
_VERSION = tuple(map(int, triton.__version__.split(".")[:2]))
_current_device: Callable[[], int] = getattr(torch._C, "_cuda_getDevice", torch.cuda.current_device)


def warp_size() -> int:
    """Threads per warp of the device that launches are for."""
    return _warp_size


def by_shape(rule: _FunctionT) -> _FunctionT:
    """Remembers what a rule chooses for sizes and dtypes, as long as the threads per warp stay; see `forget_rules`."""
    remembered = functools.lru_cache(maxsize=4096)(rule)
    _rules.append(remembered)
    return remembered  # type: ignore[return-value]


@functools.cache
def _has_gpu() -> bool:
    return torch.version.hip is None and torch.cuda.is_available()


@functools.cache
def _capability_of(device: int) -> int:
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def capability() -> int:
    """Compute capability of the NVIDIA GPU that launches are for, such as 90; 0 for others."""
    if _capability is not None:
        return _capability
    return _capability_of(_current_device()) if _has_gpu() else 0


def forget_rules() -> None:
    """Lets rules choose anew, after a change of what they read."""
    for rule in _rules:
        rule.cache_clear()


def _set_warp_size(threads: int) -> None:
    global _warp_size
    if threads != _warp_size:
        _warp_size = threads
        forget_rules()


@contextmanager
def record_launches(threads_per_warp: int, of_capability: int = 0) -> Iterator[list[Launch]]:
    """Collects launches instead of making them, so that AOT compiles exactly what launchers would launch."""
    global _recorded, _capability
    launches: list[Launch] = []
    before = _warp_size
    _set_warp_size(threads_per_warp)
    _recorded, _capability = launches, of_capability
    try:
        yield launches
    finally:
        _recorded, _capability = None, None
        _set_warp_size(before)


def launch(kernel: Any, programs: int, *args: Any, **meta: Any) -> None:
    """Runs `programs` instances of `kernel` on the device of the first argument; launches nothing if it is 0."""
    if _recorded is not None:
        _recorded.append(Launch(kernel, programs, args, meta))
        return
    if programs == 0:
        return
    device = args[0].device
    index = device.index
    if device.type == "cuda" and index != _current_device():
        with torch.cuda.device(device):
            launch(kernel, programs, *args, **meta)
        return
    # Triton chooses by dtypes, by addresses and integers that 16 divides, by integers that are 1, and by constants.
    values, choice, misaligned = list(args), [id(kernel), index, *meta, *meta.values()], 0
    for place, value in enumerate(args):
        if isinstance(value, Tensor):
            # Launchers take addresses. To find one in a tensor takes them twice as long.
            values[place] = address = value.data_ptr()
            choice.append(value.dtype)
            misaligned = misaligned << 1 | (address & 15 != 0)
        else:
            choice.append(value)
    choice.append(misaligned)
    try:
        known = _known.get(key := tuple(choice))
    except TypeError:
        # An argument that has no hash, such as the descriptor of a tensor.
        kernel[(programs,)](*args, **meta)
        return
    if known is None or _is_watched(kernel):
        _remember(key, kernel, kernel[(programs,)](*args, **meta), len(args), meta)
    elif known.as_one:
        stream = known.get_stream(index)
        known.run(programs, 1, 1, stream, *known.before, (*values, *known.constants))
    else:
        known.run(programs, 1, 1, known.get_stream(index), *known.before, *values, *known.constants)


def _is_watched(kernel: Any) -> bool:
    """Whether hooks want to see launches: only Triton's own launch calls them."""
    runtime = triton.knobs.runtime
    enter, leave = runtime.launch_enter_hook, runtime.launch_exit_hook
    return bool(kernel.pre_run_hooks or getattr(enter, "calls", enter) or getattr(leave, "calls", leave))


def _remember(key: tuple[Any, ...], kernel: Any, compiled: Any, arguments: int, meta: dict[str, Any]) -> None:
    """Keeps what Triton compiled for `key`, if it shows how it is run."""
    names = getattr(kernel, "arg_names", ())[arguments:]
    shown = all(hasattr(compiled, name) for name in ("run", "function", "packed_metadata"))
    if not shown or not hasattr(triton, "knobs") or any(name not in meta for name in names):
        return
    if len(_known) >= _MOST_KNOWN:
        _known.clear()
    run, before, as_one = _launcher_of(compiled)
    get_stream = triton.runtime.driver.active.get_current_stream
    _known[key] = _Compiled(kernel, run, before, tuple([meta[name] for name in names]), as_one, get_stream)


def _launcher_of(compiled: Any) -> tuple[Callable[..., Any], tuple[Any, ...], bool]:
    """What runs a compiled kernel, its arguments between the stream and the kernel's own, and whether those are one.

    Triton's launcher is a Python object around a function in C, which is called itself where its arguments are known.
    No hook is passed: see `_is_watched`.
    """
    run, function, metadata = compiled.run, compiled.function, compiled.packed_metadata
    needs_memory = getattr(run, "global_scratch_size", 1) or getattr(run, "profile_scratch_size", 1)
    if type(run).__name__ == "CudaLauncher" and not needs_memory:
        before = (function, run.launch_cooperative_grid, run.launch_pdl)
        if _VERSION == (3, 6):
            return run.launch, (*before, None, None, metadata, None, None, None), False
        if _VERSION == (3, 7):
            signature = run.arg_annotations, run.kernel_signature
            return run.launch, (*before, metadata, None, None, None, None, None, *signature), True
    return run, (function, metadata, None, None, None), False


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def meta(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """A tensor without storage, for AOT cases."""
    return torch.empty(shape, dtype=dtype, device="meta")


def meta_noise(samples: int, rows: int, columns: int, *, given: bool) -> Tensor:
    """A seed, or the normals themselves, for AOT cases."""
    return meta(samples, rows, columns) if given else meta(dtype=torch.int64)
