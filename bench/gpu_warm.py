"""Compiles what is measured later into caches of all processes: ``python -m bench.gpu_warm floors --share 0/6``."""

from __future__ import annotations

import argparse
import heapq
import sys
import time
from collections.abc import Sequence
from typing import NamedTuple

import torch

from . import floors, gpu_figures, registry, runner, tuning
from .task import Case, Task


class Unit(NamedTuple):
    """Calls that one process makes one after the other, and the seconds that they take by estimate."""

    name: str
    calls: tuple[tuple[Case, str], ...]
    seconds: float
    task: Task | None = None

    def warm(self) -> None:
        for case, provider in self.calls:
            task = self.task or registry.find_task(case)
            with torch.set_grad_enabled(case.mode != "fwd"):
                runner.prepare(task, case, provider, runner.make_input_sets(task, case, 1)).calls[0]()
            torch.cuda.empty_cache()


def list_units() -> list[Unit]:
    """The kernels of every floor, those that rows of an op share in one unit; then each compiled baseline."""
    shared: dict[tuple[str, ...], list[tuple[Case, str]]] = {}
    for floor in floors.FLOORS:
        shared.setdefault((floor.case.op, floor.case.variant, floor.case.dtype), []).append((floor.case, floor.ours))
    kernels = [
        Unit(" ".join(filter(None, names)), tuple(dict.fromkeys(calls)), gpu_figures.kernel_seconds(names[0]))
        for names, calls in shared.items()
    ]
    compiled = [
        Unit(f"compile {floor.case}", ((floor.case, "compile"),), gpu_figures.compile_seconds(floor.case.op))
        for floor in floors.FLOORS
        if floor.compiles
    ]
    return [*kernels, *compiled]


def list_tuned_units() -> list[Unit]:
    """Every alternative of the cases that are tuned."""
    units = []
    for case in floors.TUNED:
        task = tuning.add_alternatives(registry.find_task(case), case)
        units += [
            Unit(f"{case} {name}", ((case, name),), gpu_figures.kernel_seconds(case.op), task) for name in task.peers
        ]
    return units


def share_out(units: Sequence[Unit], shares: int) -> list[list[Unit]]:
    """The units in shares of about the same seconds: the longest first, each to the share that has least."""
    loads = [(0.0, index) for index in range(shares)]
    out: list[list[Unit]] = [[] for _ in range(shares)]
    for unit in sorted(units, key=lambda unit: -unit.seconds):
        load, index = heapq.heappop(loads)
        out[index].append(unit)
        heapq.heappush(loads, (load + unit.seconds, index))
    return out


def warm_units(units: Sequence[Unit], device: str = "cuda") -> int:
    """Runs the units; returns how many failed. A failure is said, and costs no other unit its turn.

    Raises:
        LostContextError: a unit left the device unusable.
    """
    failed = 0
    for unit in units:
        start = time.monotonic()
        try:
            unit.warm()
            print(f"warm: {unit.name}, {time.monotonic() - start:.1f} s", flush=True)
        except Exception as error:
            failed += 1
            print(f"cold: {unit.name}: {type(error).__name__}: {error}"[:500], flush=True)
        runner.check_context(device)
    return failed


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu_warm", description=__doc__)
    parser.add_argument("what", choices=("floors", "tuned"))
    parser.add_argument("--share", default="0/1", metavar="I/N", help="the I-th of N shares, from 0")
    options = parser.parse_args(arguments)
    index, shares = map(int, options.share.split("/"))
    units = list_units() if options.what == "floors" else list_tuned_units()
    failed = warm_units(share_out(units, shares)[index])
    # Some alternatives cannot be compiled; their measurement says so.
    return 1 if failed and options.what == "floors" else 0


if __name__ == "__main__":
    sys.exit(main())
