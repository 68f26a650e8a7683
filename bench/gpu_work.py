"""What the check of a GPU runs on the device: its limits, the floors of one op, tiles, kernels for a profiler.

``python -m bench.gpu_work floors OP`` measures the rows of one op; each is on disk before the next is measured.
"""

from __future__ import annotations

import argparse
import importlib.util
import secrets
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from . import environment, floors, registry, roofline, runner, timing, tuning
from .floors import Floor
from .rows import Row, append_rows, read_rows

# A fraction of a second for each provider and timer.
PLAN = timing.Plan(rounds=30, min_rounds=7, warmup_s=0.05, budget_s=0.6, slow_s=0.5, slow_rounds=1)
_DTYPES = ("float32", "bfloat16")
_SUBJECTS = ("floors", "baselines", "tune")


def report_machine(records: Path, device: str = "cuda") -> int:
    """Prints what runs where, and writes the limits of this machine."""
    from fastvae import backend

    print(backend.report())
    for dtype in _DTYPES:
        limits = roofline.measure(device, dtype, PLAN)
        append_rows(records, [{"kind": "limits", "dtype": dtype, "copy": limits.copy, "matmul": limits.matmul}])
        print(f"{dtype}: copy {limits.copy * 1e-9:.4g} GB/s, product {limits.matmul * 1e-9:.4g} GFLOP/s")
    chosen = backend.resolve("auto", torch.empty(1, device=device))
    print(f"impl='auto' chooses {chosen} on {device}")
    return 1 if chosen == "reference" else 0


def find_limits(records: Path, dtype: str, device: str) -> roofline.Limits:
    """The limits that this check has measured; measures them if it has not."""
    for record in reversed(read_rows([records]) if records.exists() else []):
        if record["kind"] == "limits" and record["dtype"] == dtype:
            return roofline.Limits(record["copy"], record["matmul"])
    return roofline.measure(device, dtype, PLAN)


def measure_floors(chosen: Sequence[Floor], records: Path, *, baselines: bool, plan: timing.Plan = PLAN) -> int:
    """Measures rows one after the other; returns how many cases lack a row of fastvae.

    Raises:
        LostContextError: a provider left the device unusable. The rows before are on disk.
    """
    keep = _label_rows(records, chosen[0].case.device, "baselines" if baselines else "floors", plan)
    failed = 0
    for floor in chosen:
        case, wanted = floor.case, floor.providers(baselines)
        present = [name for name in wanted if has_package(name)]
        lacking = [f"{case}: {name} is not installed" for name in wanted if name not in present]
        if lacking:
            append_rows(records, [{"kind": "left_out", "cases": lacking}])
        if len(present) == 1 < len(wanted):
            continue
        settings = runner.Settings(plan, floor.graphs, keep, floor.most_sets)
        rows = runner.measure(case, present, find_limits(records, case.dtype, case.device), settings)
        failed += any("error" in row and row["provider"] == floor.ours for row in rows)
        runner.check_context(case.device)
    return failed


def tune(op: str, records: Path, plan: timing.Plan = PLAN) -> int:
    """Measures ``op`` with other constants than its rules choose; returns how often the rules themselves failed."""
    failed = 0
    for case in floors.TUNED:
        if case.op == op:
            task = tuning.add_alternatives(registry.find_task(case), case)
            keep = _label_rows(records, case.device, "tune", plan, kind="tuning")
            settings = runner.Settings(plan, True, keep)
            limits = find_limits(records, case.dtype, case.device)
            rows = runner.measure(case, [*task.peers], limits, settings, task)
            failed += any("error" in row and row["provider"] == "rule" for row in rows)
    return failed


def _label_rows(
    records: Path, device: str, step: str, plan: timing.Plan, **facts: str
) -> Callable[[Sequence[Row]], None]:
    """A function that writes rows with what they must say about this run, and prints their times."""
    # Kernels and their peers multiply float32 alike.
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32
    described = environment.describe(device)
    label: dict[str, Any] = {
        "run": f"{described['date']}-{secrets.token_hex(2)}",
        "environment": described,
        "quick": plan == timing.QUICK,
        "step": step,
        **facts,
    }

    def keep(rows: Sequence[Row]) -> None:
        append_rows(records, [row | label for row in rows])
        for row in rows:
            names = (row[name] for name in ("op", "entry", "variant", "mode", "shape", "dtype", "provider"))
            said = row.get("error") or f"{row['p50_us']} µs"
            print(*filter(None, names), f"{row.get('timer', '')}: {said}", flush=True)

    return keep


def has_package(provider: str) -> bool:
    """Whether the package of a provider is installed; most providers need none."""
    return provider not in floors.PEERS or importlib.util.find_spec(provider) is not None


def profile_kernels() -> int:
    """One call of each profiled case, between the marks that a profiler looks for."""
    for floor in floors.list_profiled():
        task = registry.find_task(floor.case)
        case = replace(floor.case, mode=task.modes[-1])
        call = runner.prepare(task, case, floor.ours, runner.make_input_sets(task, case, 1)).calls[0]
        with torch.set_grad_enabled(case.mode != "fwd"):
            call()
            torch.cuda.synchronize()
            torch.cuda.profiler.start()
            call()
            torch.cuda.synchronize()
            torch.cuda.profiler.stop()
        print(f"profiled: {case}", flush=True)
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    parser = _build_parser()
    options = parser.parse_args(arguments)
    ops = options.ops.split(",") if options.ops else []
    if options.work in _SUBJECTS and not (ops and set(ops) <= set(floors.list_ops())):
        parser.error(f"{options.work} needs ops among {', '.join(floors.list_ops())}")
    if options.work == "machine":
        failed = report_machine(options.json)
    elif options.work == "profile":
        failed = profile_kernels()
    elif options.work == "tune":
        failed = sum(tune(op, options.json) for op in ops)
    else:
        baselines = options.work == "baselines"
        chosen = [floor for op in ops for floor in floors.select(op, compiled=baselines)]
        failed = measure_floors(chosen, options.json, baselines=baselines)
    return min(failed, 1)


def _build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu_work", description=__doc__)
    parser.add_argument("work", choices=("machine", "profile", *_SUBJECTS))
    parser.add_argument(
        "ops", nargs="?", metavar="OP[,OP]", help=f"of {', '.join(_SUBJECTS)}: {', '.join(floors.list_ops())}"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="rows are appended to this file")
    return parser


if __name__ == "__main__":
    sys.exit(main())
