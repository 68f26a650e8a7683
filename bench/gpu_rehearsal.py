"""``python -m bench.gpu_check --rehearse``: what the steps of a check compile, counted here, and their time.

Launches are recorded instead of made, on inputs of few rows: a kernel is compiled once for each set of types,
constants and alignments, whatever the number of rows. Seconds are counts times the figures of ``gpu_figures.py``.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import floors, gpu_figures, gpu_warm, registry, tuning
from .floors import Floor
from .gpu_plan import BASELINES_S, FLOORS_S, LIMITS_S, TEST_WORKERS, WARM_SHARES, plan_steps
from .steps import Step
from .task import Case, Shape, Task

_ROWS = 32
# A specialisation of a kernel, as just-in-time compilation tells them apart.
Keys = frozenset[tuple[Any, ...]]


class Estimate(NamedTuple):
    """Of one step: distinct kernels and graphs that it compiles, and its seconds."""

    name: str
    kernels: int
    graphs: int
    seconds: float


@contextmanager
def _record() -> Iterator[list[Any]]:
    """Collects launches of Triton's kernels, which are chosen for tensors on a CPU meanwhile."""
    from fastvae import backend
    from fastvae.kernels._launch import record_launches

    before, backend.INTERPRETING = backend.INTERPRETING, True
    try:
        with backend.use("triton"), record_launches(32) as launches:
            yield launches
    finally:
        backend.INTERPRETING = before


def identify(launches: Iterable[Any]) -> Keys:
    """The distinct specialisations among launches."""
    return frozenset(
        (launch.kernel.fn.__name__, *map(_classify, launch.args), *sorted(launch.meta.items())) for launch in launches
    )


def _classify(argument: Any) -> Any:
    """What Triton compiles for: a tensor's type; of an integer its width, and whether it is 1 or divisible by 16."""
    if isinstance(argument, Tensor):
        return str(argument.dtype)
    if isinstance(argument, int) and argument != 1:
        return "i32" if -(2**31) <= argument < 2**31 else "i64", argument % 16 == 0
    return argument if argument is None or isinstance(argument, int) else type(argument).__name__


def record_case(case: Case, provider: str, task: Task | None = None) -> list[Any]:
    """The launches of one call of a provider, on few rows."""
    task = task or registry.find_task(case)
    shape = Shape(min(case.shape.rows, _ROWS), case.shape.columns, case.shape.samples)
    here = replace(case, shape=shape, device="cpu")
    inputs = task.adapt(here, provider, task.inputs(here, torch.Generator().manual_seed(0)))
    inputs = tuple(t.detach().requires_grad_(case.mode == "fwdbwd") for t in inputs)
    with torch.set_grad_enabled(case.mode != "fwd"):
        function = task.function(here, provider)
        with _record() as launches, task.around(provider)():
            outputs = function(*inputs)
            if case.mode == "fwdbwd":
                outputs = [t for t in (outputs if isinstance(outputs, tuple) else (outputs,)) if t.requires_grad]
                torch.autograd.grad(outputs, inputs, [torch.zeros_like(t) for t in outputs])
    return launches


def list_tests() -> list[list[Keys]]:
    """The kernels of every test but those of offsets, one list for each file, in the order in which they run."""
    problems = importlib.import_module("tests.gpu.problems").PROBLEMS
    large = importlib.import_module("tests.gpu.test_determinism").LARGE
    halves = (torch.float32, torch.bfloat16, torch.float16)
    dtypes = [_count_problem(make, dtype) for make in problems.values() for dtype in halves]
    # Two types at most; the kernels of small problems are those of the first file.
    small = [Keys() for _ in problems for _ in halves[:2]]
    determinism = [_count_problem(make, dtype) for make in large.values() for dtype in halves[:2]]
    return [dtypes, [*small, *determinism], [*small, *_count_samplers()]]


def _count_problem(make: Callable[[], Any], dtype: torch.dtype) -> Keys:
    run_with_gradients = importlib.import_module("tests.support.oracle").run_with_gradients
    problem = make().to(dtype, "cpu")
    with _record() as launches:
        upstream = [torch.zeros_like(t) for t in problem.outputs("triton")]
        run_with_gradients(problem, "triton", upstream)
    return identify(launches)


def _count_samplers() -> Iterator[Keys]:
    from fastvae.sampling import CausalSampler

    stacks = importlib.import_module("tests.support.causal_stacks").stacks()
    for name in ("gated", "gated map", "mixture"):
        stack = stacks[name]
        sampler = CausalSampler(stack.make(), stack.likelihood, in_channels=stack.channels, impl="triton")
        context = None if stack.context is None else stack.context(5, 6, 7)
        with _record() as launches:
            sampler.sample_with_parameters(5, (6, 7), context=context)
        yield identify(launches)


def rehearse(part: str) -> list[tuple[Step, Estimate]]:
    """What each step of a part compiles and how long it takes, the first part on a machine with empty caches."""
    plan = {"first": _estimate_first, "second": _estimate_second, "tune": _estimate_tuning}[part]
    estimates = {estimate.name: estimate for estimate in plan()}
    return [(step, estimates[step.name]) for step in plan_steps(part, Path())]


def add_up(rehearsed: Sequence[tuple[Step, Estimate]]) -> float:
    """Seconds from the begin of the first step to the end of the last."""
    now = beside = 0.0
    for step, estimate in rehearsed:
        if step.background:
            beside = max(beside, now + estimate.seconds)
        else:
            now = (max(now, beside) if step.alone else now) + estimate.seconds
    return max(now, beside)


def _estimate_first() -> Iterator[Estimate]:
    yield from _estimate_warm("floors", gpu_warm.list_units())
    files = list_tests()
    kernels = Keys().union(*(test for file in files for test in file))
    yield Estimate("tests", len(kernels), 0, _time_tests(files))
    yield _MACHINE
    yield from (_estimate_floors(op, False) for op in FLOORS_S)
    yield from (_estimate_floors(ops, True) for ops in BASELINES_S)


def _estimate_second() -> Iterator[Estimate]:
    yield from _estimate_warm("tuned", gpu_warm.list_tuned_units())
    tests = len(importlib.import_module("tests.gpu.problems").PROBLEMS)
    seconds = gpu_figures.SANITIZED_START_S + tests * gpu_figures.SANITIZED_TEST_S
    # Their kernels are those of the first part.
    yield from (Estimate(tool, 0, 0, seconds) for tool in ("memcheck", "initcheck"))
    kernels, tests = gpu_figures.OFFSETS_KERNELS, gpu_figures.OFFSETS_TESTS
    seconds = gpu_figures.START_S + tests * gpu_figures.OFFSETS_TEST_S + _time_kernels(kernels)
    yield Estimate("offsets beyond 2^31", kernels, 0, seconds)
    yield _estimate_counters()
    yield from _estimate_tuned()


def _estimate_tuning() -> Iterator[Estimate]:
    yield from _estimate_warm("tuned", gpu_warm.list_tuned_units())
    yield from _estimate_tuned()


def _estimate_tuned() -> Iterator[Estimate]:
    yield _MACHINE
    for case in floors.TUNED:
        alternatives = len(tuning.add_alternatives(registry.find_task(case), case).peers)
        seconds = gpu_figures.START_S + alternatives * (gpu_figures.ROW_S + 2 * gpu_figures.TIMER_S)
        yield Estimate(f"tune {case.op}", 0, 0, seconds)


_MACHINE = Estimate("machine", 0, 0, gpu_figures.START_S + 2 * gpu_figures.LIMIT_S)


def _time_kernels(count: int) -> float:
    """Seconds of one process for kernels that no cache holds, while others compile beside it."""
    return count * (gpu_figures.KERNEL_S + gpu_figures.LAUNCHER_S) * gpu_figures.CONTENTION


def _time_tests(files: Sequence[Sequence[Keys]]) -> float:
    """Seconds of all tests. Each goes to the worker that has least; two of one file may compile the same kernel."""
    loads = [gpu_figures.OTHER_TESTS_S, *[0.0] * (TEST_WORKERS - 1)]
    known = Keys()
    for file in files:
        for kernels in file:
            loads[loads.index(min(loads))] += gpu_figures.TEST_S + _time_kernels(len(kernels - known))
        known = known.union(*file)
    return gpu_figures.START_S + gpu_figures.COLLECTION_S + max(loads)


def _estimate_warm(what: str, units: Sequence[gpu_warm.Unit]) -> Iterator[Estimate]:
    for index, share in enumerate(gpu_warm.share_out(units, WARM_SHARES)):
        graphs = [case for unit in share for case, provider in unit.calls if provider == "compile"]
        calls = [(unit.task, call) for unit in share for call in unit.calls if call[1] != "compile"]
        kernels = Keys().union(*(identify(record_case(*call, task)) for task, call in calls))
        seconds = gpu_figures.START_S + gpu_figures.COMPILER_START_S * bool(graphs) + _time_kernels(len(kernels))
        seconds += gpu_figures.ROW_S * (len(calls) + len(graphs))
        seconds += sum(gpu_figures.compile_seconds(case.op) for case in graphs) * gpu_figures.CONTENTION
        seconds += sum(gpu_figures.LONG_ROWS_S.get(case.op, 0.0) for case in {case for _, (case, _) in calls})
        yield Estimate(f"warm {what} {index}", len(kernels), len(graphs), seconds)


def _estimate_floors(ops: str, compiled: bool) -> Estimate:
    chosen = [floor for op in ops.split(",") for floor in floors.select(op, compiled=compiled)]
    seconds = gpu_figures.START_S + sum(_time_row(floor, compiled) for floor in chosen)
    if compiled:
        seconds += gpu_figures.COMPILER_START_S
        seconds += sum(gpu_figures.cached_compile_seconds(floor.case.op) for floor in chosen)
    return Estimate(f"{'baselines' if compiled else 'floors'} {ops}", 0, len(chosen) if compiled else 0, seconds)


def _time_row(floor: Floor, compiled: bool) -> float:
    providers = floor.providers(compiled)
    long = sum(gpu_figures.LONG_ROWS_S.get(name, 0.0) for name in (floor.case.op, *providers))
    return gpu_figures.ROW_S + len(providers) * (1 + floor.graphs) * gpu_figures.TIMER_S + long


def _estimate_counters() -> Estimate:
    profiled = floors.list_profiled()
    launches = 0
    for floor in profiled:
        mode = registry.find_task(floor.case).modes[-1]
        launches += len(record_case(replace(floor.case, mode=mode), floor.ours))
    seconds = gpu_figures.PROFILER_START_S + gpu_figures.START_S + 2 * gpu_figures.ROW_S * len(profiled)
    return Estimate("counters", 0, 0, seconds + min(launches, 60) * gpu_figures.PROFILED_KERNEL_S)


def main() -> int:
    late = False
    for part, limit in LIMITS_S.items():
        rehearsed = rehearse(part)
        print(f"{part}\n{'step':56} {'kernels':>8} {'graphs':>8} {'seconds':>8} {'limit':>8}")
        for step, (name, kernels, graphs, seconds) in rehearsed:
            beside = "  beside others" * step.background
            print(f"{name:56} {kernels:8} {graphs:8} {seconds:8.0f} {step.limit_s:8.0f}{beside}")
        total = add_up(rehearsed)
        late |= total > limit
        print(f"{'in all':56} {'':8} {'':8} {total:8.0f} {limit:8.0f}\n")
    return int(late)
