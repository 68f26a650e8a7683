"""``make gpu-check``: tests and measures the kernels on a machine with a GPU, in two parts of a few minutes each.

Needs PyTorch, Triton and pytest, no build tools and no network. What it finds is on disk at once: when the time is
over, or the machine gone, the finished rows are kept. Results go into the folder that the variable OUT names.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from . import environment, gpu_rehearsal
from .gpu_page import summarise, write_page
from .gpu_plan import LIMITS_S, ROOT, find_records, plan_steps
from .rows import append_rows
from .steps import Running, Step, start_step

_LEAST_S = 5.0
# Caches of compiled kernels outlive a call.
_STAGE = ROOT / "build" / "gpu-check"


def main(arguments: Sequence[str] | None = None) -> int:
    options = _build_parser().parse_args(arguments)
    if options.rehearse:
        return gpu_rehearsal.main()
    lacking = find_missing()
    if lacking:
        print("gpu-check cannot run here; it lacks:", *(f"  - {item}" for item in lacking), sep="\n", file=sys.stderr)
        print("python -m bench.gpu_check --rehearse counts here what it would do.", file=sys.stderr)
        return 2
    deadline = time.monotonic() + (options.limit or LIMITS_S[options.part])
    folder = (options.out or _find_folder()).resolve()
    records = find_records(folder, options.part)
    for suffix in (".jsonl", ".log"):
        records.with_suffix(suffix).unlink(missing_ok=True)
    wheels = options.wheels if any(options.wheels.glob("*.whl")) else None
    site = _STAGE / "site"
    header = {"kind": "header", "part": options.part, "environment": environment.describe("cuda")}
    append_rows(records, [header])
    with link_kernels(ROOT), end_on_signals():
        done = run_steps(plan_steps(options.part, folder, wheels, site), records, deadline, _STAGE)
    print(summarise(records))
    bad = [f"{step['name']}: {step['outcome']}" for step in done if step["outcome"] != "ok"]
    if bad:
        print("gpu-check FAILED:", *(f"  - {line}" for line in bad), sep="\n", file=sys.stderr)
    return 1 if bad else 0


def find_missing() -> list[str]:
    """What this machine lacks for the check, each with a hint."""
    lacking = []
    if not torch.cuda.is_available():
        lacking.append("a CUDA device that torch can use (torch.cuda.is_available() is False)")
    lacking += [
        f"the Python package {module}"
        for module in ("numpy", "pytest", "hypothesis", "triton")
        if importlib.util.find_spec(module) is None
    ]
    return lacking


@contextmanager
def link_kernels(root: Path) -> Iterator[None]:
    """The kernels where a build would put them, so that the checkout can be imported as it is."""
    link = root / "fastvae" / "kernels"
    if link.is_symlink() or link.exists():
        yield
        return
    link.symlink_to(Path("..") / "kernels", target_is_directory=True)
    try:
        yield
    finally:
        link.unlink()


@contextmanager
def end_on_signals() -> Iterator[None]:
    """A signal to end raises SystemExit, so that no step outlives the check."""

    def leave(number: int, frame: Any) -> None:
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, leave) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def make_variables(stage: Path) -> dict[str, str]:
    """The environment of all steps: the checkout, packages that came along, and caches that they share."""
    # The versions of the machine are what is measured.
    dropped = ("TRITON_INTERPRET", "PIP_CONSTRAINT")
    variables = {name: value for name, value in os.environ.items() if name not in dropped}
    paths = [str(ROOT), str(stage / "site"), *filter(None, [os.environ.get("PYTHONPATH")])]
    return variables | {
        "PYTHONPATH": os.pathsep.join(paths),
        "PYTHONUNBUFFERED": "1",
        "TORCHINDUCTOR_CACHE_DIR": str(stage / "inductor"),
        "TORCHINDUCTOR_COMPILE_THREADS": "4",
        "TRITON_CACHE_DIR": str(stage / "triton"),
        "FASTVAE_COMMIT": environment.find_commit() or "unknown",
    }


class _Journal:
    """The records of steps that have ended, the page about them, and one file with all that they said."""

    def __init__(self, records: Path) -> None:
        self.done: list[dict[str, Any]] = []
        self._records = records

    def write(self, record: dict[str, Any], said: str = "") -> None:
        self.done.append(record)
        append_rows(self._records, [{"kind": "step", **record}])
        with self._records.with_suffix(".log").open("a") as log:
            log.write(f"\n==== {record['name']}: {record['outcome']}, {record.get('seconds', 0)} s\n{said}")
        write_page(self._records)
        print(f"gpu-check: {record['name']}: {record['outcome']}, {record.get('seconds', 0)} s", flush=True)

    def finish(self, running: Running, limit_s: float) -> None:
        record = running.finish(limit_s)
        self.write(record, running.read_log())


def run_steps(steps: Sequence[Step], records: Path, deadline: float, stage: Path) -> list[dict[str, Any]]:
    """Runs the steps in their order until the deadline; returns how each ended. A step that fails ends no other."""
    variables, journal = make_variables(stage), _Journal(records)
    waiting: list[Running] = []
    current: Running | None = None
    try:
        for step in steps:
            if step.alone:
                _finish_all(waiting, journal, deadline)
            if deadline - time.monotonic() < _LEAST_S:
                journal.write({"name": step.name, "outcome": "not run: the time was over"})
                continue
            current = start_step(step, variables, stage / "logs")
            if step.background:
                waiting.append(current)
            else:
                journal.finish(current, min(step.limit_s, deadline - time.monotonic()))
            current = None
        _finish_all(waiting, journal, deadline)
    finally:
        for running in [*waiting, *([current] if current else [])]:
            running.kill()
    return journal.done


def _finish_all(waiting: list[Running], journal: _Journal, deadline: float) -> None:
    while waiting:
        running = waiting[0]
        journal.finish(running, min(running.step.limit_s, running.seconds + deadline - time.monotonic()))
        waiting.pop(0)


def _find_folder() -> Path:
    if os.environ.get("OUT"):
        return Path(os.environ["OUT"])
    name = re.sub(r"[^a-z0-9]+", "-", environment.describe_gpu()["name"].lower()).strip("-")
    return ROOT / "bench" / "results" / name


def _build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu_check", description=__doc__)
    parser.add_argument("part", nargs="?", choices=tuple(LIMITS_S), default="first", help="first by default")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where to write; $OUT, or bench/results/<GPU>")
    parser.add_argument("--limit", type=float, metavar="SECONDS", help=f"for the part; {LIMITS_S} by default")
    parser.add_argument("--wheels", type=Path, default=ROOT / ".whl", metavar="DIR", help="of other libraries; .whl")
    parser.add_argument("--rehearse", action="store_true", help="count what the parts would compile, without a GPU")
    return parser


if __name__ == "__main__":
    sys.exit(main())
