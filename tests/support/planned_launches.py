"""Prints how the second of two equal calls launches kernels, without a GPU: ``{stem: {case: [launched, ...]}}``.

It names the kernels that are launched, those of them that Triton itself launches, and those that are compiled. It runs
in a process of its own, where Triton does not interpret kernels.
"""

from __future__ import annotations

import importlib
import json
from typing import Any

from triton.runtime.jit import JITFunction

from fastvae.kernels import aot
from fastvae.kernels._launch import AotCase
from tests.support.stub_gpu import StubGpu, stub_gpu


def launch_again(gpu: StubGpu, by_triton: list[str], case: AotCase) -> tuple[list[str], list[str], list[str]]:
    """Tensors without storage have address 0."""
    for _ in range(2):
        for found in (gpu.launches, gpu.compiled, by_triton):
            found.clear()
        case.launcher(*case.args)
    return [name for name, *_ in gpu.launches], list(by_triton), list(gpu.compiled)


def main() -> None:
    by_triton, run = list[str](), JITFunction.run

    def note(kernel: Any, *args: Any, **options: Any) -> Any:
        by_triton.append(kernel.fn.__name__)
        return run(kernel, *args, **options)

    JITFunction.run = note  # type: ignore[method-assign]
    modules = {stem: importlib.import_module(f"fastvae.kernels.{stem}") for stem in aot.stems()}
    with stub_gpu() as gpu:
        counts = {
            stem: {f"{i}: {case.name}": launch_again(gpu, by_triton, case) for i, case in enumerate(module.aot_cases())}
            for stem, module in modules.items()
        }
    print(json.dumps(counts))


if __name__ == "__main__":
    main()
