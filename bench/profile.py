"""``python -m bench profile``: where the time of a whole job goes, by kind of op, Python and waiting.

A job's time, and how long its main thread waits, come from runs without a profiler. The shares come from a profiled
run: of each kind that of its ops' own time, and Python has what no op has.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from . import environment, registry, roofline, runner, timing, wording
from .rows import Row, append_rows, read_rows
from .task import Case, Shape

_ENTRIES = ("step", "evaluate", "sample")
_WARMUP, _RUNS, _LEAST_S = 3, 5, 1.0
_PREFIXES = {
    "ours": ("fastvae::",),
    "products": ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "aten::mkldnn_linear"),
    "convolutions": ("aten::mkldnn_conv", "aten::conv", "aten::slow_conv", "aten::cudnn_conv"),
    "optimizer": ("Optimizer.", "aten::_fused_ada", "aten::_foreach"),
}
KINDS = (*_PREFIXES, "others", "python")
_TITLES = {
    "ours": "fastvae's ops",
    "products": "dense products",
    "convolutions": "convolutions",
    "optimizer": "optimiser",
    "others": "other ops",
    "python": "Python",
}


def find_kind(name: str) -> str:
    """The kind of what the profiler calls ``name``."""
    return next((kind for kind, prefixes in _PREFIXES.items() if name.startswith(prefixes)), "others")


def profile(case: Case, provider: str, limits: roofline.Limits) -> Row:
    """One row: the time of a run, its floor, the share of each kind, and the dearest ops."""
    task = registry.find_task(case)
    torch._dynamo.reset()
    call = runner.prepare(task, case, provider, runner.make_input_sets(task, case)).calls[0]
    with torch.set_grad_enabled(case.mode != "fwd"):
        seconds, waiting = measure_waiting(call)
        runs = max(1, min(_RUNS, round(_LEAST_S / seconds)))
        total, ops = record_ops(call, runs)
    times = dict.fromkeys(KINDS, 0.0)
    for name, taken in ops.items():
        times[find_kind(name)] += taken
    times["python"] = max(0.0, total - sum(times.values()))
    dearest = sorted(ops.items(), key=lambda item: -item[1])[:8]
    return {
        "kind": "profile",
        "schema": runner.SCHEMA,
        "op": case.op,
        "entry": case.entry,
        "variant": case.variant,
        "mode": case.mode,
        "shape": str(case.shape),
        "dtype": case.dtype,
        "device": case.device,
        "provider": provider,
        "p50_us": round(seconds * 1e6, 1),
        "floor_us": round(limits.seconds(task.work(case)) * 1e6, 1),
        "waiting": round(waiting, 4),
        "shares": {kind: round(taken / total, 4) for kind, taken in times.items()},
        "dearest": {name: round(taken / total, 4) for name, taken in dearest},
        **limits.record(),
    }


def measure_waiting(call: Callable[[], Any]) -> tuple[float, float]:
    """The median seconds of a call, and the share of its time in which this thread did not run."""
    for _ in range(_WARMUP):
        call()
    taken, ran = [], 0.0
    while len(taken) < _RUNS or (sum(taken) < _LEAST_S and len(taken) < 100):
        start, own = time.perf_counter(), time.thread_time()
        call()
        ran += time.thread_time() - own
        taken.append(time.perf_counter() - start)
    return statistics.median(taken), max(0.0, 1.0 - ran / sum(taken))


def record_ops(call: Callable[[], Any], runs: int) -> tuple[float, dict[str, float]]:
    """Seconds of a profiled call, and of that each op's own seconds."""
    call()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        start = time.perf_counter()
        for _ in range(runs):
            call()
        total = time.perf_counter() - start
    return total / runs, {e.key: e.self_cpu_time_total * 1e-6 / runs for e in profiler.key_averages()}


def build_table(records: Iterable[Row]) -> str:
    """The last row of every case as Markdown."""
    rows = {(r["op"], r["variant"], r["shape"], r["provider"], r["environment"]["cpu"]): r for r in records}
    if not rows:
        return "No profiles."
    lines = [
        "| work | shape | by | time | " + " | ".join(_TITLES[kind] for kind in KINDS) + " | waits | floor |",
        "| --- | --- | --- | ---: |" + " ---: |" * (len(KINDS) + 2),
    ]
    for row in rows.values():
        shares = [f"{100 * share:.0f} %" for share in (*(row["shares"][kind] for kind in KINDS), row["waiting"])]
        cells = [wording.name_work(row), wording.name_shape(row), wording.TITLES[row["provider"]]]
        floor = f"{wording.format_duration(row['floor_us'])}, {100 * row['floor_us'] / row['p50_us']:.0f} %"
        lines.append("| " + " | ".join([*cells, wording.format_duration(row["p50_us"]), *shares, floor]) + " |")
    return "\n".join(lines)


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench profile", description=__doc__)
    parser.add_argument("--op", help="training_step, density_step, ...; every whole job by default")
    parser.add_argument("--variant", help="the variants to profile")
    parser.add_argument("--shape", help="ROWSxCOLUMNS or SAMPLESxROWSxCOLUMNS")
    parser.add_argument("--impl", default="fastvae,reference", help="providers (%(default)s)")
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="append the rows to this file, and write the table of all beside it"
    )
    options = parser.parse_args(arguments)
    try:
        cases = registry.select_cases(
            "cpu",
            ops=_split(options.op),
            entries=_ENTRIES if options.op is None else None,
            variants=_split(options.variant),
            shapes=[Shape.parse(text) for text in _split(options.shape) or ()],
        )
    except ValueError as error:
        parser.error(str(error))
    cases = [case for case in cases if registry.find_task(case).whole]
    described, rows = environment.describe("cpu"), []
    limits = roofline.measure("cpu", "float32", timing.QUICK)
    for case in cases:
        for provider in filter(registry.find_task(case).offers, options.impl.split(",")):
            rows.append(profile(case, provider, limits) | {"environment": described, "run": described["date"]})
            print(f"{case} {provider}", file=sys.stderr, flush=True)
            if options.json:
                append_rows(options.json, rows[-1:])
    print(build_table(rows))
    if options.json:
        options.json.with_suffix(".md").write_text(build_table(read_rows([options.json])) + "\n", encoding="utf-8")
    return 0


def _split(text: str | None) -> list[str] | None:
    return text.split(",") if text else None
