"""Times a wheel's extension against the one that is installed here: ``python -m wheels.speed WHEEL``.

``WHEEL`` is the folder ``fastvae`` of an unpacked wheel, beside it nanobind-backend. Each build is in a process of its
own, with one thread; the processes take turns with the same calls, so that whatever disturbs the machine meets both.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import math
import multiprocessing
import os
import statistics
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path

# Ops and shapes of the benchmark: calls of some microseconds, products, convolutions, maths, whole networks.
CASES = (
    "diag_gaussian 128x32",
    "diag_gaussian 1024x64",
    "tril_gaussian 128x32",
    "linear_tril_gaussian 400x32x128",
    "masked_linear 128x320",
    "masked_linear 128x1920",
    "autoregressive_flow 128x32",
    "linear_bernoulli 100x200x10",
    "masked_conv2d 4x28",
    "gated_activation 100x28",
    "logistic_mixture 16x32",
)
BAR = 1.03  # of the wheel's time to the local build's, over all cases
SAMPLE_S = 5e-3
FEWEST = 10  # samples of a build


def load_extension(folder: Path) -> None:
    """Makes the extension in ``folder`` the one that ``fastvae`` imports."""
    import torch  # noqa: F401 - its OpenMP serves the extension

    sys.path.append(str(folder.parent))
    (path,) = folder.glob("_C.*.so")
    spec = importlib.util.spec_from_file_location("fastvae._C", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["fastvae._C"] = module
    spec.loader.exec_module(module)


def serve(connection: Connection, folder: Path | None) -> None:
    """Gets the text of a case, or a number of calls to make and to answer with their seconds; None ends it."""
    if folder:
        load_extension(folder)
    from bench import registry, runner, timing
    from bench.task import Shape

    while (asked := connection.recv()) is not None:
        if isinstance(asked, str):
            op, shape = asked.split()
            cases = registry.select_cases("cpu", ops=[op], shapes=[Shape.parse(shape)])
            case = next((case for case in cases if case.mode == "fwdbwd"), cases[0])
            task = registry.find_task(case)
            prepared = runner.prepare(task, case, "fastvae", runner.make_input_sets(task, case))
            sampler = timing.HostSampler(prepared.calls)
            connection.send(str(case))
        else:
            connection.send(sampler.sample(asked))


@contextmanager
def start(folders: Sequence[Path | None]) -> Iterator[list[Connection]]:
    """A process for each build, and the ends of the pipes to them."""
    context = multiprocessing.get_context("spawn")
    ends, processes = [], []
    for folder in folders:
        here, there = context.Pipe()
        processes.append(context.Process(target=serve, args=(there, folder), daemon=True))
        processes[-1].start()
        there.close()
        ends.append(here)
    yield ends
    for end, process in zip(ends, processes, strict=True):
        end.send(None)
        process.join()


def ask(end: Connection, question: str | int) -> str | float:
    end.send(question)
    return end.recv()


def compare(ends: Sequence[Connection], case: str, budget_s: float) -> tuple[str, list[float]]:
    """The case by its full name, and the seconds a call of each build: the quickest fifth of the samples ends there."""
    (name, *_) = [str(ask(end, case)) for end in ends]
    for end in ends:
        ask(end, 3)
    calls = max(1, round(SAMPLE_S / (float(ask(ends[0], 3)) / 3)))
    seconds: list[list[float]] = [[] for _ in ends]
    for first in itertools.count():
        if first >= FEWEST and sum(map(sum, seconds)) * calls > budget_s:
            break
        for i in range(len(ends)):
            turn = (i + first) % len(ends)
            seconds[turn].append(float(ask(ends[turn], calls)) / calls)
    return name, [statistics.quantiles(taken, n=5)[0] for taken in seconds]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m wheels.speed", description=__doc__)
    parser.add_argument("wheel", type=Path, help="folder fastvae of the unpacked wheel")
    parser.add_argument("--local", type=Path, help="folder of another extension than the installed one")
    parser.add_argument("--seconds", type=float, default=4.0, help="how long each case is timed")
    given = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    ratios = []
    with start([given.wheel.resolve(), given.local and given.local.resolve()]) as ends:
        for case in CASES:
            name, (wheel, local) = compare(ends, case, given.seconds)
            ratios.append(wheel / local)
            times = f"wheel {wheel * 1e6:9.1f} us, local {local * 1e6:9.1f} us"
            print(f"{name:58} {times}, ratio {ratios[-1]:.3f}", flush=True)
    mean = math.exp(statistics.fmean(map(math.log, ratios)))
    print(f"geometric mean {mean:.3f}, allowed {BAR}")
    if mean > BAR:
        raise SystemExit("the wheel is slower than the local build")


if __name__ == "__main__":
    main()
