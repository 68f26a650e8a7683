"""Ahead-of-time compilation of every kernel, without a GPU: ``python -m fastvae.kernels.aot``.

Runs each launcher's AOT cases and records the launches, compiles the launches for every target, and prints what the
machine code uses and how it accesses memory; docs/guides/gpu.md says what the columns mean. Exits with 1 if a kernel
does not compile.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import multiprocessing
import os
import pkgutil
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ._launch import AotCase, Launch, record_launches
from ._layouts import measure_request
from ._machine_code import Code, count_instructions, read_amd, read_nvidia
from ._multiprocessors import count_programs, count_waves
from ._ttgir import read_accesses

TARGETS = ("sm_90", "sm_80", "sm_100", "gfx942")
COLUMNS = (
    "registers", "shared", "local", "resident", "waves", "instructions", "loop", "per_16_bytes", "bytes", "sectors",
    "least", "loads_128", "stores_128", "matrix", "warp_group", "serialised", "calls", "barriers", "divisions",
)  # fmt: skip
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


class _Job(NamedTuple):
    """A case, and for each target the kernels of it to compile; None means all."""

    stem: str
    index: int
    kernels: Mapping[str, frozenset[str] | None]


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


def _specialise(kernel: Any, args: Sequence[Any], constexprs: dict[str, Any]) -> tuple[dict, dict, dict, dict]:
    """(signature, constants, attributes) that a just-in-time launch with these arguments would compile with, and the
    arguments that the compiled kernel takes."""
    signature, constants, attributes, taken = {}, dict(constexprs), {}, {}
    positional = iter(args)
    for index, parameter in enumerate(kernel.params):
        name = parameter.name
        if name in constants:
            signature[name] = "constexpr"
            continue
        value = next(positional)
        if value is None or (isinstance(value, int) and value == 1 and not parameter.do_not_specialize):
            signature[name], constants[name] = "constexpr", value
            continue
        taken[name] = value
        if isinstance(value, torch.Tensor):
            signature[name] = _TYPES[value.dtype]
            attributes[(index,)] = [["tt.divisibility", 16]]
        elif isinstance(value, float):
            signature[name] = "fp32"
        else:
            signature[name] = "i32" if -(2**31) <= value < 2**31 else "i64"
            if value % 16 == 0 and not (parameter.do_not_specialize or parameter.do_not_specialize_on_alignment):
                attributes[(index,)] = [["tt.divisibility", 16]]
    return signature, constants, attributes, taken


def compile_launch(recorded: Launch, target: str) -> tuple[Any, dict[str, Any]]:
    """The compiled kernel of a recorded launch, for a target such as ``"sm_90"`` or ``"gfx942"``; its arguments."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    nvidia = target.startswith("sm_")
    gpu = GPUTarget("cuda" if nvidia else "hip", int(target[3:]) if nvidia else target, _warp_size(target))
    parameters = {parameter.name for parameter in recorded.kernel.params}
    constexprs = {name: value for name, value in recorded.meta.items() if name in parameters}
    options = {name: value for name, value in recorded.meta.items() if name not in parameters}
    signature, constants, attributes, taken = _specialise(recorded.kernel, recorded.args, constexprs)
    source = ASTSource(fn=recorded.kernel, signature=signature, constexprs=constants, attrs=attributes)
    return triton.compile(source, target=gpu, options=options), taken


def _read(recorded: Launch, target: str) -> tuple[dict[str, Any], Code | None]:
    compiled, taken = compile_launch(recorded, target)
    if not target.startswith("sm_"):
        return read_amd(compiled), None
    usage, code = read_nvidia(compiled)
    resident = count_programs(target, usage["registers"], usage["shared"], compiled.metadata.num_warps)
    usage |= {"resident": resident, "waves": count_waves(target, recorded.programs, resident)}
    return usage | _read_requests(compiled.asm["ttgir"], taken), code


def _read_requests(ttgir: str, taken: Mapping[str, Any]) -> dict[str, Any]:
    """The requests of accesses that are at least as wide as a warp, and the mean of their sectors."""
    names = list(taken)
    found = []
    for access in read_accesses(ttgir, [value if isinstance(value, int) else None for value in taken.values()]):
        request = measure_request(access)
        if request is not None and access.distinct() >= 32:
            found.append({"kind": access.kind, "argument": names[access.argument], **request._asdict()})
    means = {
        name: round(sum(request[name] for request in found) / len(found), 1) if found else None
        for name in ("sectors", "least")
    }
    return {"requests": found, **means}


def _compile_case(job: _Job) -> list[tuple[dict[str, Any], Code | None]]:
    """The case's rows. A row for NVIDIA comes with its code, whose instructions are still to be counted."""
    import triton

    case = cases(job.stem)[job.index]
    rows: list[tuple[dict[str, Any], Code | None]] = []
    for target, kernels in job.kernels.items():
        for recorded in launches(case, target):
            kernel = recorded.kernel.__name__
            if kernels is not None and kernel not in kernels:
                continue
            row: dict[str, Any] = {
                "triton": triton.__version__, "stem": job.stem, "kernel": kernel, "case": case.name, "target": target,
                "programs": recorded.programs, "error": None,
            }  # fmt: skip
            code = None
            try:
                usage, code = _read(recorded, target)
                row |= usage
            except Exception as error:  # a failure becomes a row, so that one run shows all of them
                row["error"] = f"{type(error).__name__}: {error}"
            rows.append((row, code))
    return rows


def _complete_rows(rows: Sequence[tuple[dict[str, Any], Code | None]]) -> Iterator[dict[str, Any]]:
    counts = iter(count_instructions([code for _, code in rows if code is not None]))
    for row, code in rows:
        yield row if code is None else row | next(counts)


def _plan(targets: Sequence[str], only: Sequence[str], brief: bool, pattern: str) -> list[_Job]:
    """One job for each case whose name matches; with `brief` one case of each kernel."""
    plan = []
    for stem in only:
        all_cases = cases(stem)
        chosen = _choose_cases(all_cases, targets[0]) if brief else {}
        for index, case in enumerate(all_cases):
            if not re.search(pattern, case.name):
                continue
            kernels: dict[str, frozenset[str] | None] = dict.fromkeys(targets)
            if brief:
                names = frozenset(name for name, place in chosen.items() if place == index)
                if not names:
                    continue
                kernels = dict.fromkeys(targets, names)
            plan.append(_Job(stem, index, kernels))
    return plan


def _choose_cases(all_cases: Sequence[AotCase], target: str) -> dict[str, int]:
    """For each kernel the case that shows most of it: the first in a half type, or the first."""
    order = sorted(range(len(all_cases)), key=lambda i: not all_cases[i].name.startswith(("bfloat16", "float16")))
    chosen: dict[str, int] = {}
    for index in order:
        for recorded in launches(all_cases[index], target):
            chosen.setdefault(recorded.kernel.__name__, index)
    return chosen


def compile_all(
    targets: Sequence[str] = TARGETS,
    workers: int | None = None,
    only: Sequence[str] | None = None,
    brief: bool = False,
    pattern: str = "",
) -> Iterator[dict[str, Any]]:
    """One row per kernel, specialisation and target, in a fixed order; of the stems in ``only``, or of all.

    With ``brief`` every target has one specialisation of each kernel. ``pattern`` is a regular expression
    that the names of cases match.
    """
    if os.environ.get("TRITON_INTERPRET", "0") == "1":
        raise RuntimeError("TRITON_INTERPRET must not be 1: interpreted kernels cannot be compiled")
    jobs = _plan(targets, only or stems(), brief, pattern)
    workers = workers or max(min(len(jobs), os.cpu_count() or 1, 8), 1)
    waiting: list[tuple[dict[str, Any], Code | None]] = []
    # Each worker starts afresh: MLIR's and torch's threads do not survive a fork.
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        for rows in pool.map(_compile_case, jobs):
            waiting += rows
            if len(waiting) >= _TOGETHER:
                yield from _complete_rows(waiting)
                waiting = []
    yield from _complete_rows(waiting)


def _table(rows: Iterable[dict[str, Any]]) -> Iterator[str]:
    widths = {name: max(len(name), 6) + 1 for name in COLUMNS}
    yield f"{'kernel':42} {'case':46} {'target':7} {'triton':7}" + "".join(
        f"{name:>{widths[name]}}" for name in COLUMNS
    )
    for row in rows:
        values = (row["error"] or "").partition("\n")[0] or "".join(
            f"{_write(row.get(name)):>{width}}" for name, width in widths.items()
        )
        kernel = row["kernel"].strip("_").removesuffix("_kernel")
        yield f"{kernel:42} {row['case']:46} {row['target']:7} {row['triton']:7}{values}"


def _write(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "-" if value is None else str(value)


def _is_imported_from(folder: Path) -> bool:
    return Path(importlib.import_module("triton").__file__ or "").parent.parent == folder.resolve()


def _run_with_triton_from(folder: Path, arguments: Sequence[str]) -> int:
    """Runs this program in a process that finds Triton in `folder` first, as this one has imported another."""
    path = os.pathsep.join(filter(None, [str(folder.resolve()), os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-m", "fastvae.kernels.aot", *arguments]
    return subprocess.run(command, env=os.environ | {"PYTHONPATH": path}, check=False).returncode


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m fastvae.kernels.aot", description=__doc__.split("\n")[0])
    parser.add_argument("--targets", default=",".join(TARGETS), help="comma-separated, default %(default)s")
    parser.add_argument("--stems", help=f"comma-separated, all by default: {', '.join(stems())}")
    parser.add_argument("--cases", default="", metavar="PATTERN", help="a regular expression of their names")
    parser.add_argument("--brief", action="store_true", help="one case of each kernel")
    parser.add_argument("--triton", type=Path, metavar="FOLDER", help="compile with the Triton that is installed there")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the rows there")
    arguments = parser.parse_args(argv)
    only = arguments.stems.split(",") if arguments.stems else None
    if unknown := set(only or ()) - set(stems()):
        parser.error(f"--stems must be among {', '.join(stems())}, got {', '.join(sorted(unknown))}")
    if arguments.triton:
        if not (arguments.triton / "triton").is_dir():
            parser.error(f"--triton must be a folder with the package triton, got {arguments.triton}")
        if not _is_imported_from(arguments.triton):
            return _run_with_triton_from(arguments.triton, sys.argv[1:] if argv is None else argv)
    rows = []

    def collect() -> Iterator[dict[str, Any]]:
        for row in compile_all(arguments.targets.split(","), only=only, brief=arguments.brief, pattern=arguments.cases):
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
