"""``make gpu-check``: build, test and measure on a machine with a GPU, into one JSON and one Markdown file.

Needs PyTorch, Triton and the build tools, but no network. Every step has a time limit, and its record is on
disk before the next begins: when the time is over, or the machine gone, the finished steps are kept.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import shutil
import sys
import sysconfig
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from . import environment
from .gpu_page import write_page
from .gpu_plan import LIMIT_S, plan_steps
from .rows import append_rows
from .steps import Step, run_step

_ROOT = Path(__file__).resolve().parent.parent
_LEAST_S = 8.0


def main(arguments: Sequence[str] | None = None) -> int:
    options = _build_parser().parse_args(arguments)
    lacking = find_missing(needs_gpu=not options.rehearse)
    if lacking:
        print(
            "gpu-check cannot run here; it lacks:",
            *(f"  - {item}" for item in lacking),
            sep="\n",
            file=sys.stderr,
        )
        if not options.rehearse:
            print("python -m bench.gpu_check --rehearse does what a CPU can do of it.", file=sys.stderr)
        return 2
    device = "cpu" if options.rehearse else "cuda"
    folder = options.out or (_ROOT / "build" / "gpu-check" if options.rehearse else _find_folder())
    records = folder / ("gpu-tune.jsonl" if options.tune else "gpu-check.jsonl")
    records.unlink(missing_ok=True)
    header = {"kind": "header", "environment": environment.describe(device), "rehearsal": options.rehearse}
    append_rows(records, [header])
    with tempfile.TemporaryDirectory(prefix="gpu-check-") as stage:
        steps = plan_steps(Path(stage), records, options.rehearse, options.tune)
        done = run_steps(steps, records, time.monotonic() + options.limit, Path(stage))
    page = write_page(records)
    print(f"results: {records.name} and {page.name} in {os.path.relpath(folder)}")
    bad = [f"{step['name']}: {step['outcome']}" for step in done if step["outcome"] != "ok"]
    if bad:
        print("gpu-check FAILED:", *(f"  - {line}" for line in bad), sep="\n", file=sys.stderr)
    return 1 if bad else 0


def find_missing(*, needs_gpu: bool) -> list[str]:
    """What this machine lacks for the check, each with a hint."""
    lacking = []
    if needs_gpu and not torch.cuda.is_available():
        lacking.append("a CUDA device that torch can use (torch.cuda.is_available() is False)")
    modules = ["numpy", "nanobind", "scikit_build_core", "pytest", "hypothesis"] + ["triton"] * needs_gpu
    for module in modules:
        if importlib.util.find_spec(module) is None:
            lacking.append(f"the Python package {module.replace('_', '-')}")
    for tool in ("cmake", "ninja"):
        if shutil.which(tool) is None and importlib.util.find_spec(tool) is None:
            lacking.append(f"the build tool {tool}")
    if not any(map(shutil.which, filter(None, (os.environ.get("CXX"), "c++", "g++", "clang++")))):
        lacking.append("a C++ compiler (c++, g++ or clang++)")
    if not (Path(sysconfig.get_paths()["include"]) / "Python.h").exists():
        lacking.append("the headers of Python (python3-dev)")
    return lacking


def run_steps(steps: Sequence[Step], records: Path, deadline: float, stage: Path) -> list[dict[str, Any]]:
    variables = {name: value for name, value in os.environ.items() if name not in ("TRITON_INTERPRET", "PYTHONPATH")}
    # Keeps the packages that came along, but no fastvae except the one that this check builds.
    carried = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    carried = [path for path in carried if not (Path(path) / "fastvae").exists()]
    variables |= {"PYTHONPATH": os.pathsep.join(carried)} if carried else {}
    variables |= {
        "TORCHINDUCTOR_CACHE_DIR": str(stage / "inductor"),
        "TRITON_CACHE_DIR": str(stage / "triton"),
        "FASTVAE_COMMIT": environment.find_commit() or "unknown",
    }
    done: list[dict[str, Any]] = []
    for step in steps:
        left = deadline - time.monotonic()
        if done and done[0]["outcome"] != "ok":
            record = {"name": step.name, "outcome": "not run: the build failed"}
        elif left < _LEAST_S:
            record = {"name": step.name, "outcome": "not run: the time was over"}
        else:
            print(f"gpu-check: {step.name} (at most {min(step.limit_s, left):.0f} s)", flush=True)
            record = run_step(step, min(step.limit_s, left), variables)
        done.append(record)
        append_rows(records, [{"kind": "step", **record}])
        write_page(records)
        if record["outcome"] != "ok":
            print(*record.get("output", []), record["outcome"], sep="\n", file=sys.stderr, flush=True)
    return done


def _find_folder() -> Path:
    name = re.sub(r"[^a-z0-9]+", "-", environment.describe_gpu()["name"].lower()).strip("-")
    return _ROOT / "bench" / "results" / name


def _build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.gpu_check",
        description="Builds, tests and measures on a GPU, and writes gpu-check.jsonl and gpu-check.md; with --tune "
        "measures other tiles than the kernels' rules choose, and writes gpu-tune.jsonl and gpu-tune.md.",
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="where to write; bench/results/<GPU> by default")
    parser.add_argument("--limit", type=float, default=LIMIT_S, metavar="SECONDS", help=f"for all; {LIMIT_S:g}")
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--tune", action="store_true", help="other tiles than the kernels' rules choose")
    kind.add_argument("--rehearse", action="store_true", help="what goes on a CPU, in miniature, into build/")
    return parser


if __name__ == "__main__":
    sys.exit(main())
