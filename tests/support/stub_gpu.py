"""A GPU that computes nothing: launches go the way of a real one up to the launcher of a compiled kernel."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction


class StubGpu:
    """What was compiled, by name of the kernel, and what was launched: a name, programs and arguments."""

    def __init__(self) -> None:
        self.compiled: list[str] = []
        self.launches: list[tuple[str, int, tuple[Any, ...]]] = []
        # What a compiled kernel shows of itself.
        self.shown = {"function": 7, "packed_metadata": (4, 1, 0)}

    def compile(self, kernel: Any, key: Any, *_: Any, **__: Any) -> CompiledStub:
        name = kernel.fn.__name__
        self.compiled.append(name)
        found = CompiledStub(self, name)
        kernel.device_caches[0][0][key] = found
        return found


class CompiledStub:
    """A compiled kernel whose launcher writes down its arguments."""

    def __init__(self, gpu: StubGpu, name: str) -> None:
        self.gpu, self.name = gpu, name
        vars(self).update(gpu.shown)

    def launch_metadata(self, grid: Any, stream: Any, *args: Any) -> None:
        return None

    def run(
        self, programs: int, y: int, z: int, stream: int, function: int, metadata: Any, launch_metadata: Any,
        enter: Any, leave: Any, *args: Any,
    ) -> None:  # fmt: skip
        if enter is not None:
            enter(launch_metadata)
        self.gpu.launches.append((self.name, programs, args))
        if leave is not None:
            leave(launch_metadata)


class StubDriver:
    """Triton's driver of a device of compute capability 9.0."""

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: Any) -> int:
        return 3


@contextmanager
def stub_gpu() -> Iterator[StubGpu]:
    """Launches nothing until the end; kernels that were launched before must not be launched within."""
    gpu, compile_before, driver_before = StubGpu(), JITFunction._do_compile, driver._active
    JITFunction._do_compile = lambda kernel, key, *args, **kwargs: gpu.compile(kernel, key)  # type: ignore[method-assign]
    driver._active = StubDriver()  # type: ignore[assignment]
    try:
        yield gpu
    finally:
        JITFunction._do_compile = compile_before  # type: ignore[method-assign]
        driver._active = driver_before
