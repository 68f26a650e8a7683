"""``python -m bench`` measures; ``report``, ``readme``, ``floors`` make tables of rows, ``profile`` divides a job."""

from __future__ import annotations

import argparse
import secrets
import sys
import time
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import torch

from . import environment, floor_table, profile, readme, registry, report, roofline, runner, timing, tuning, wording
from .rows import Row, append_rows
from .task import DTYPE_ALIASES, DTYPES, EXPLICIT, PROVIDERS, Case, Shape

_BUSY = 0.5


def main(arguments: Sequence[str] | None = None) -> int:
    given = list(sys.argv[1:] if arguments is None else arguments)
    commands = {"report": report.main, "readme": readme.main, "profile": profile.main, "floors": floor_table.main}
    if given and given[0] in commands:
        return commands[given[0]](given[1:])
    parser = _build_parser()
    options = parser.parse_args(given)
    try:
        cases = _choose_cases(options)
        providers = _choose_providers(options)
    except ValueError as error:
        parser.error(str(error))
    if options.list:
        print(_list_tasks(cases))
        return 0
    if options.threads:
        torch.set_num_threads(options.threads)
    rows = run(cases, providers, options)
    print(tuning.build_table(rows) if options.tune else report.build_table(rows))
    if options.report is not None:
        report.write_report(rows, options.report)
    return 1 if any("error" in row and row["provider"] in ("fastvae", "reference", "rule") for row in rows) else 0


def run(cases: Sequence[Case], providers: Sequence[str], options: argparse.Namespace) -> list[Row]:
    """Measures the cases one after the other; rows go to the file as soon as their case is done."""
    # Kernels and their peers multiply float32 alike.
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32
    plan = timing.QUICK if options.quick else timing.Plan()
    settings = runner.Settings(plan, graphs=options.graphs)
    described: dict[str, Any] = environment.describe(options.device)
    run_id = f"{described['date']}-{secrets.token_hex(2)}"
    if (described["load"] or 0.0) > _BUSY and not options.quick:
        _say(f"warning: {described['load']} processes per processor are running: times will be disturbed")
    deadline = time.monotonic() + (options.budget or float("inf"))
    rows: list[Row] = []
    left_out: list[str] = []
    for (_, dtype), group in groupby(cases, key=lambda case: (case.op, case.dtype)):
        limits = roofline.measure(options.device, dtype, plan)
        for case in group:
            if time.monotonic() > deadline:
                left_out.append(str(case))
                continue
            if options.tune:
                task = tuning.add_alternatives(registry.find_task(case), case)
                new = runner.measure(case, [*task.peers], limits, settings, task)
                new = [row | {"kind": "tuning"} for row in new]
            else:
                new = runner.measure(case, providers, limits, settings)
            new = [row | {"run": run_id, "environment": described, "quick": options.quick} for row in new]
            rows += new
            if options.json:
                append_rows(options.json, new)
            _tell(case, new)
    if left_out:
        _say(f"left out when {options.budget:g} s were over: {len(left_out)} cases\n  " + "\n  ".join(left_out))
        if options.json:
            append_rows(options.json, [{"kind": "left_out", "run": run_id, "cases": left_out}])
    return rows


def _tell(case: Case, rows: Sequence[Row]) -> None:
    times = "  ".join(
        f"{row['provider']} {wording.format_duration(row['p50_us'])}"
        for row in rows
        if row.get("timer") in ("host", "events")
    )
    _say(f"{case}: {times}")
    for row in rows:
        if "error" in row:
            _say(f"  {row['provider']} failed: {row['error']}")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _list_tasks(cases: Sequence[Case]) -> str:
    lines = []
    for task, group in groupby(cases, key=lambda case: case.task):
        members = list(group)
        known = registry.find_task(members[0])
        lines += [
            task,
            "  shapes     " + " ".join(dict.fromkeys(str(case.shape) for case in members)),
            "  modes      " + " ".join(dict.fromkeys(case.mode for case in members)),
            "  dtypes     " + " ".join(dict.fromkeys(case.dtype for case in members)),
            "  providers  " + " ".join(filter(known.offers, (*PROVIDERS, *EXPLICIT))),
        ]
    return "\n".join(lines)


def _choose_cases(options: argparse.Namespace) -> list[Case]:
    if options.device == "cuda" and not torch.cuda.is_available() and not options.list:
        raise ValueError("--device cuda: torch sees no CUDA device here")
    return registry.select_cases(
        options.device,
        ops=_split_names(options.op),
        entries=_split_names(options.entry),
        variants=_split_names(options.variant),
        modes=_split_names(options.mode),
        dtypes=[DTYPE_ALIASES.get(name, name) for name in _split_names(options.dtype) or ()],
        shapes=[Shape.parse(text) for text in _split_names(options.shape) or ()],
    )


def _choose_providers(options: argparse.Namespace) -> list[str]:
    chosen = _split_names(options.impl) or list(PROVIDERS)
    for name in chosen:
        if name not in (*PROVIDERS, *EXPLICIT):
            known = ", ".join((*PROVIDERS, *EXPLICIT))
            raise ValueError(f"unknown impl {name!r}; known are {known}")
        reason = _find_reason(name, options.device)
        if reason:
            raise ValueError(f"impl {name!r} cannot run on {options.device}: {reason}")
    return chosen


def _find_reason(name: str, device: str) -> str | None:
    if name not in EXPLICIT:
        return None
    from fastvae import backend

    return backend.why_not(name, device)


def _split_names(text: str | None) -> list[str] | None:
    return [part.strip() for part in text.split(",") if part.strip()] if text else None


def _build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description="Measures every op beside its reference, torch.compile of it, and torch.distributions.",
        epilog="python -m bench report FILE... --out DIR makes a table and plots out of result files.",
    )
    several: dict[str, Any] = {"metavar": "NAME[,NAME]"}
    parser.add_argument("--op", help=f"stems: {', '.join(registry.list_stems())}; all by default", **several)
    parser.add_argument("--entry", help="entry points of an op, such as rsample, log_prob, kl", **several)
    parser.add_argument("--variant", help="layouts or models of an op, such as dense, packed", **several)
    parser.add_argument(
        "--impl",
        help=f"providers: {', '.join(PROVIDERS)} (all by default), {', '.join(EXPLICIT)}",
        **several,
    )
    parser.add_argument("--mode", help="fwd, fwdbwd, step; all by default", **several)
    parser.add_argument("--dtype", help=f"{', '.join(DTYPES)} or fp32, bf16, ...", **several)
    parser.add_argument("--shape", help="ROWSxCOLUMNS or SAMPLESxROWSxCOLUMNS, also others than the listed", **several)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", choices=("cpu", "cuda"), default=device, help=f"{device} by default here")
    parser.add_argument("--threads", type=int, help="CPU threads; torch's number by default")
    parser.add_argument("--graphs", action="store_true", help="on CUDA: time replays of CUDA graphs as well")
    parser.add_argument(
        "--tune", action="store_true", help="the Triton kernels with other tiles than their rules choose"
    )
    parser.add_argument("--quick", action="store_true", help="few repetitions: shows that it runs, not how fast")
    parser.add_argument("--budget", type=float, metavar="SECONDS", help="begin no further case after this time")
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="append the rows to this file, one JSON object a line"
    )
    parser.add_argument("--report", type=Path, metavar="DIR", help="write the table and plots into this folder")
    parser.add_argument("--list", action="store_true", help="show what would be measured, and stop")
    return parser


if __name__ == "__main__":
    sys.exit(main())
