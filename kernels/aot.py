"""Ahead-of-time compilation of every kernel, without a GPU: ``python -m fastvae.kernels.aot``.

Runs each launcher's AOT cases and records the launches, compiles the launches for every target, and prints what the
machine code uses: registers, shared memory, local memory (stack and spills), 128-bit global accesses, matrix
instructions, and those of them that a warp group issues (Hopper's wgmma). Exits with 1 if a kernel does not compile.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import multiprocessing
import os
import pkgutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch

from ._launch import AotCase, Launch, record_launches
from ._machine_code import COLUMNS, Code, count_instructions, read_amd, read_nvidia

TARGETS = ("sm_80", "sm_90", "sm_100", "gfx942")
# Rows whose instructions are counted together: enough to start few disassemblers, few enough to see progress.
_TOGETHER = 96

_TYPES = {
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.float32: "*fp32",
    torch.float64: "*fp64",
    torch.int32: "*i32",
    torch.int64: "*i64",
}


def stems() -> list[str]:
    """The modules of this package that declare AOT cases."""
    package = importlib.import_module(__package__)
    names = [module.name for module in pkgutil.iter_modules(package.__path__)]
    return sorted(name for name in names if not name.startswith("_") and name != "aot")


def cases(stem: str) -> list[AotCase]:
    return importlib.import_module(f".{stem}", __package__).aot_cases()


def _warp_size(target: str) -> int:
    return 64 if target.startswith("gfx9") else 32


def launches(case: AotCase, target: str) -> list[Launch]:
    """What the case's launcher would launch on a device of this target, without kernels of other modules."""
    capability = int(target[3:]) if target.startswith("sm_") else 0
    with record_launches(_warp_size(target), capability) as recorded:
        case.launcher(*case.args)
    return [launch for launch in recorded if launch.kernel.__module__ == case.launcher.__module__]


def _specialise(kernel: Any, args: Sequence[Any], constexprs: dict[str, Any]) -> tuple[dict, dict, dict]:
    """(signature, constants, attributes) that a just-in-time launch with these arguments would compile with."""
    signature, constants, attributes = {}, dict(constexprs), {}
    positional = iter(args)
    for index, parameter in enumerate(kernel.params):
        name = parameter.name
        if name in constants:
            signature[name] = "constexpr"
            continue
        value = next(positional)
        if value is None or (isinstance(value, int) and value == 1 and not parameter.do_not_specialize):
            signature[name], constants[name] = "constexpr", value
        elif isinstance(value, torch.Tensor):
            signature[name] = _TYPES[value.dtype]
            attributes[(index,)] = [["tt.divisibility", 16]]
        elif isinstance(value, float):
            signature[name] = "fp32"
        else:
            signature[name] = "i32" if -(2**31) <= value < 2**31 else "i64"
            if value % 16 == 0 and not (parameter.do_not_specialize or parameter.do_not_specialize_on_alignment):
                attributes[(index,)] = [["tt.divisibility", 16]]
    return signature, constants, attributes


def compile_launch(recorded: Launch, target: str) -> Any:
    """The compiled kernel of a recorded launch, for a target such as ``"sm_90"`` or ``"gfx942"``."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    nvidia = target.startswith("sm_")
    gpu = GPUTarget("cuda" if nvidia else "hip", int(target[3:]) if nvidia else target, _warp_size(target))
    parameters = {parameter.name for parameter in recorded.kernel.params}
    constexprs = {name: value for name, value in recorded.meta.items() if name in parameters}
    options = {name: value for name, value in recorded.meta.items() if name not in parameters}
    signature, constants, attributes = _specialise(recorded.kernel, recorded.args, constexprs)
    source = ASTSource(fn=recorded.kernel, signature=signature, constexprs=constants, attrs=attributes)
    return triton.compile(source, target=gpu, options=options)


def _compile_case(stem: str, index: int, targets: Sequence[str]) -> list[tuple[dict[str, Any], Code | None]]:
    """The case's rows. A row for NVIDIA comes with its code, whose instructions are still to be counted."""
    case = cases(stem)[index]
    rows: list[tuple[dict[str, Any], Code | None]] = []
    for target in targets:
        for recorded in launches(case, target):
            row: dict[str, Any] = {
                "stem": stem, "kernel": recorded.kernel.__name__, "case": case.name, "target": target, "error": None,
            }  # fmt: skip
            code = None
            try:
                compiled = compile_launch(recorded, target)
                if target.startswith("sm_"):
                    usage, code = read_nvidia(compiled)
                else:
                    usage = read_amd(compiled)
                row |= usage
            except Exception as error:  # a failure becomes a row, so that one run shows all of them
                row["error"] = f"{type(error).__name__}: {error}"
            rows.append((row, code))
    return rows


def _complete_rows(rows: Sequence[tuple[dict[str, Any], Code | None]]) -> Iterator[dict[str, Any]]:
    counts = iter(count_instructions([code for _, code in rows if code is not None]))
    for row, code in rows:
        yield row if code is None else row | next(counts)


def compile_all(
    targets: Sequence[str] = TARGETS, workers: int | None = None, only: Sequence[str] | None = None
) -> Iterator[dict[str, Any]]:
    """One row per kernel, specialisation and target, in a fixed order; of the stems in ``only``, or of all."""
    if os.environ.get("TRITON_INTERPRET", "0") == "1":
        raise RuntimeError("TRITON_INTERPRET must not be 1: interpreted kernels cannot be compiled")
    jobs = [(stem, index) for stem in only or stems() for index in range(len(cases(stem)))]
    workers = workers or min(len(jobs), os.cpu_count() or 1, 8)
    waiting: list[tuple[dict[str, Any], Code | None]] = []
    # Each worker starts afresh: MLIR's and torch's threads do not survive a fork.
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        for rows in pool.map(_compile_case, *zip(*jobs, strict=True), [targets] * len(jobs)):
            waiting += rows
            if len(waiting) >= _TOGETHER:
                yield from _complete_rows(waiting)
                waiting = []
    yield from _complete_rows(waiting)


def _table(rows: Iterable[dict[str, Any]]) -> Iterator[str]:
    yield f"{'kernel':48} {'case':28} {'target':8}" + "".join(f"{name:>13}" for name in COLUMNS)
    for row in rows:
        values = (row["error"] or "").partition("\n")[0] or "".join(f"{row[name]:13}" for name in COLUMNS)
        yield f"{row['kernel']:48} {row['case']:28} {row['target']:8}{values}"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m fastvae.kernels.aot", description=__doc__.split("\n")[0])
    parser.add_argument("--targets", default=",".join(TARGETS), help="comma-separated, default %(default)s")
    parser.add_argument("--stems", help=f"comma-separated, all by default: {', '.join(stems())}")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the rows there")
    arguments = parser.parse_args(argv)
    only = arguments.stems.split(",") if arguments.stems else None
    if unknown := set(only or ()) - set(stems()):
        parser.error(f"--stems must be among {', '.join(stems())}, got {', '.join(sorted(unknown))}")
    rows = []

    def collect() -> Iterator[dict[str, Any]]:
        for row in compile_all(arguments.targets.split(","), only=only):
            rows.append(row)
            yield row

    with contextlib.suppress(BrokenPipeError):
        for line in _table(collect()):
            print(line, flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")
    failures = sum(row["error"] is not None for row in rows)
    if failures:
        print(f"{failures} of {len(rows)} compilations failed", file=sys.stderr)
    return min(failures, 1)


if __name__ == "__main__":
    sys.exit(main())
