"""How kernels are launched: plans, compiled kernels that they remember, the device guard, the recording of launches.

Triton looks for the compiled kernel at each launch, which takes longer than a small kernel runs. A `Plan` holds what
launches for the same sizes and types share, and the compiled kernel. From the second time on it hands the launcher of
the compiled kernel addresses: it looks at nothing else. Triton launches where this is not possible: in its interpreter,
and while hooks watch launches.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

import torch
import triton
from torch import Tensor

_FunctionT = TypeVar("_FunctionT", bound=Callable[..., Any])


class Launch(NamedTuple):
    """A kernel, the number of its programs, and its arguments."""

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
_rules: list[Any] = []
# Sizes that differ from call to call are new to a rule.
_MOST_KNOWN = 4096
_VERSION = tuple(map(int, triton.__version__.split(".")[:2]))
_runtime: Any = triton.knobs.runtime if hasattr(triton, "knobs") else None
_current_device: Callable[[], int] = getattr(torch._C, "_cuda_getDevice", torch.cuda.current_device)


def warp_size() -> int:
    """Threads per warp of the device that launches are for."""
    return _warp_size


def by_shape(rule: _FunctionT) -> _FunctionT:
    """Remembers what a rule chooses for sizes and dtypes, as long as the threads per warp stay; see `forget_rules`."""
    remembered = functools.lru_cache(_MOST_KNOWN)(rule)
    _rules.append(remembered)
    return remembered  # type: ignore[return-value]


@functools.cache
def _has_gpu() -> bool:
    return torch.version.hip is None and torch.cuda.is_available()


@functools.cache
def _capability_of(device: int) -> int:
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def capability(device: int) -> int:
    """Compute capability of the NVIDIA GPU that launches are for, such as 90; 0 for others."""
    if _capability is not None:
        return _capability
    return _capability_of(device) if device >= 0 and _has_gpu() else 0


def forget_rules() -> None:
    """Lets rules choose and plan anew, after a change of what they read."""
    for rule in _rules:
        rule.cache_clear()


def _set_target(threads_per_warp: int, of_capability: int | None) -> None:
    global _warp_size, _capability
    _warp_size, _capability = threads_per_warp, of_capability
    forget_rules()


@contextmanager
def record_launches(threads_per_warp: int, of_capability: int = 0) -> Iterator[list[Launch]]:
    """Collects launches instead of making them, so that AOT compiles exactly what launchers would launch."""
    global _recorded
    launches: list[Launch] = []
    before = _warp_size, _capability
    # Plans that are made from here on record.
    _set_target(threads_per_warp, of_capability)
    _recorded = launches
    try:
        yield launches
    finally:
        _recorded = None
        _set_target(*before)


# The code of a plan's own launch: a loop over the tensors would take half as long again.
_LAUNCH = """
def launch({tensors}):
    {read_addresses}{look_around}
    run(programs, 1, 1, get_stream(device), *before, {arguments})
"""
_LOOK_AROUND = """
    try:
        if ({all_bits}) & 15 or runtime.launch_enter_hook.calls or runtime.launch_exit_hook.calls or {elsewhere}:
            return launch_otherwise({tensors})
    except AttributeError:
        return launch_otherwise({tensors})"""


class Plan:
    """A kernel, the number of its programs, and its arguments that are no tensors, which come last.

    Rules make plans, see `by_shape`. What a rule is called with must determine the device, the dtypes of the tensors,
    and which of them are None: `plan.launch(*tensors)` looks at addresses alone.
    """

    __slots__ = ("_dtypes", "_launches", "device", "kernel", "launch", "meta", "numbers", "programs")

    launch: Callable[..., None]

    def __init__(self, device: int, kernel: Any, programs: int, numbers: Sequence[Any], **meta: Any) -> None:
        """`device` as `Tensor.get_device` says it."""
        self.device, self.kernel, self.programs, self.numbers, self.meta = device, kernel, programs, numbers, meta
        self._dtypes: tuple[torch.dtype | None, ...] | None = None
        # By the last bits of addresses.
        self._launches: dict[tuple[int, ...], Callable[..., None]] = {}
        self.launch = self._launch_otherwise if _recorded is None else self._record

    def _record(self, *tensors: Tensor | None) -> None:
        assert _recorded is not None
        _recorded.append(Launch(self.kernel, self.programs, (*tensors, *self.numbers), self.meta))

    def _launch_otherwise(self, *tensors: Tensor | None) -> None:
        """Runs the kernel on the plan's device, whether or not it is compiled; nothing if there are no programs."""
        if self.programs == 0:
            return
        if self.device >= 0 and self.device != _current_device():
            with torch.cuda.device(self.device):
                self.launch(*tensors)
            return
        # What Triton compiles for besides: which addresses 16 does not divide.
        misaligned = tuple([0 if t is None else t.data_ptr() & 15 for t in tensors])
        known = self._launches.get(misaligned)
        # Only Triton's own launch calls hooks.
        if known is not None and not self._is_watched():
            known(*tensors)
            return
        self._check(tensors)
        compiled = self.kernel[(self.programs,)](*tensors, *self.numbers, **self.meta)
        if known is None:
            self._remember(tensors, misaligned, compiled)

    def _is_watched(self) -> bool:
        try:
            hooks = _runtime.launch_enter_hook.calls or _runtime.launch_exit_hook.calls or self.kernel.pre_run_hooks
        except AttributeError:
            # Someone put a function in the place of Triton's chain of hooks, or it is Triton 3.4, which has no chains.
            return True
        return bool(hooks)

    def _check(self, tensors: tuple[Tensor | None, ...]) -> None:
        """The interpreter checks each launch, so that tests find a plan whose rule does not determine dtypes."""
        dtypes = tuple([None if t is None else t.dtype for t in tensors])
        if self._dtypes not in (None, dtypes):
            raise RuntimeError(f"a plan of {self.kernel} must have tensors of {self._dtypes}, not of {dtypes}")
        self._dtypes = dtypes

    def _remember(self, tensors: Sequence[Tensor | None], misaligned: tuple[int, ...], compiled: Any) -> None:
        """Keeps what Triton compiled, if it shows how it is run."""
        names = getattr(self.kernel, "arg_names", ())[len(tensors) + len(self.numbers) :]
        shown = all(hasattr(compiled, name) for name in ("run", "function", "packed_metadata"))
        if not shown or _runtime is None or any(name not in self.meta for name in names):
            return
        launch = self._make_launch(tensors, any(misaligned), compiled, [self.meta[name] for name in names])
        self._launches[misaligned] = launch
        if not any(misaligned):
            self.launch = launch

    def _make_launch(
        self, tensors: Sequence[Tensor | None], misaligned: bool, compiled: Any, constants: Sequence[Any]
    ) -> Callable[..., None]:
        run, before, as_one = _launcher_of(compiled)
        names = [f"t{place}" for place in range(len(tensors))]
        # Launchers take addresses. To find one in a tensor takes them twice as long.
        addresses = {n: f"{n}_address" for n, t in zip(names, tensors, strict=True) if t is not None}
        arguments = ", ".join([*(addresses.get(name, "0") for name in names), "*after"])
        look_around = _LOOK_AROUND.format(
            tensors=", ".join(names),
            all_bits=" | ".join(addresses.values()),
            elsewhere="hooks or device != current_device()" if self.device >= 0 else "hooks",
        )
        source = _LAUNCH.format(
            tensors=", ".join(names),
            read_addresses="; ".join(f"{address} = {name}.data_ptr()" for name, address in addresses.items()),
            # Where addresses are misaligned, whoever found this launch has looked.
            look_around="" if misaligned else look_around,
            arguments=f"({arguments})" if as_one else arguments,
        )
        known: dict[str, Any] = {
            "launch_otherwise": self._launch_otherwise, "runtime": _runtime, "hooks": self.kernel.pre_run_hooks,
            "device": self.device, "current_device": _current_device, "run": run, "programs": self.programs,
            "get_stream": triton.runtime.driver.active.get_current_stream, "before": before,
            "after": (*self.numbers, *constants),
        }  # fmt: skip
        exec(source, known)
        launch: Callable[..., None] = known["launch"]
        return launch


def _launcher_of(compiled: Any) -> tuple[Callable[..., Any], tuple[Any, ...], bool]:
    """What runs a compiled kernel, its arguments between the stream and the kernel's own, and whether those are one.

    Triton's launcher is a Python object around a function in C, which is called itself where its arguments are known.
    No hook is passed: see `Plan`.
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
