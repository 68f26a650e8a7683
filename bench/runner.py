"""Measures one case: every provider on the same inputs, in turns, and a row of results for each."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from . import environment, memory, registry, roofline, timing
from .task import Case, Inputs, Task

SCHEMA = 1
_SEED = 20260101
# On a GPU, calls take turns with inputs that overflow its cache this many times.
_CACHE_TURNS = 2


def _keep_nothing(rows: Sequence[dict[str, Any]]) -> None:
    pass


@dataclass(frozen=True)
class Settings:
    """How to measure: the plan of the timing, and whether CUDA graphs are replayed as well.

    ``keep`` gets rows as soon as they are there. ``most_sets`` bounds the sets of inputs that a GPU takes in turns.
    """

    plan: timing.Plan
    graphs: bool = False
    keep: Callable[[Sequence[dict[str, Any]]], None] = _keep_nothing
    most_sets: int = 64


@dataclass(frozen=True)
class Prepared:
    """One provider, ready: a call per set of inputs, and the tensors that its first call is given."""

    calls: list[Callable[[], Any]]
    given: list[Tensor]
    first_s: float


def make_input_sets(task: Task, case: Case, most_sets: int = 64) -> list[Inputs]:
    """The inputs of ``case``: one set on a CPU, on a GPU as many as keep its cache cold, up to ``most_sets``."""
    generator = torch.Generator(case.device).manual_seed(_SEED)
    sets = [task.inputs(case, generator)]
    if case.device == "cuda":
        size = sum(t.nbytes for t in sets[0])
        wanted = math.ceil(_CACHE_TURNS * environment.find_last_cache_bytes("cuda") / size)
        sets += [task.inputs(case, generator) for _ in range(min(wanted, most_sets) - 1)]
    return sets


def prepare(task: Task, case: Case, provider: str, sets: Sequence[Inputs]) -> Prepared:
    """Binds ``provider`` to the inputs, runs it once and checks what it gives.

    Raises:
        RuntimeError: the result is not what the reference in float64 says.
    """
    function = task.function(case, provider)
    differentiated = case.mode == "fwdbwd"
    with torch.no_grad():
        own = [task.adapt(case, provider, inputs) for inputs in sets]
    own = [tuple(t.detach().requires_grad_(differentiated) for t in inputs) for inputs in own]
    around = task.around(provider)
    start = time.perf_counter()
    with around(), torch.set_grad_enabled(case.mode != "fwd"):
        outputs = function(*own[0])
    first_s = time.perf_counter() - start
    wrong = task.check(case, sets[0], outputs) if task.check and task.checks(provider) else None
    if wrong:
        raise RuntimeError(f"wrong result: {wrong}")
    if not differentiated:
        return Prepared([_guard(around, _bind_forward(function, inputs)) for inputs in own], list(own[0]), first_s)
    upstream = [torch.randn_like(t) for t in _to_tuple(outputs) if t.requires_grad]
    calls = [_guard(around, _bind_both_passes(function, inputs, upstream)) for inputs in own]
    return Prepared(calls, [*own[0], *upstream], first_s)


def _guard(around: Callable[[], AbstractContextManager[None]], call: Callable[[], Any]) -> Callable[[], Any]:
    if around is nullcontext:
        return call

    def call_within() -> Any:
        with around():
            return call()

    return call_within


def _bind_forward(function: Callable[..., Any], inputs: Inputs) -> Callable[[], Any]:
    return lambda: function(*inputs)


def _bind_both_passes(function: Callable[..., Any], inputs: Inputs, upstream: Sequence[Tensor]) -> Callable[[], Any]:
    def call() -> Any:
        outputs = _to_tuple(function(*inputs))
        # Units have no gradient.
        return outputs, torch.autograd.grad([t for t in outputs if t.requires_grad], inputs, upstream)

    return call


def _to_tuple(outputs: Any) -> tuple[Tensor, ...]:
    return outputs if isinstance(outputs, tuple) else (outputs,)


def measure(
    case: Case, providers: Sequence[str], limits: roofline.Limits, settings: Settings, task: Task | None = None
) -> list[dict[str, Any]]:
    """The rows of ``case``, one per provider and timer; a provider that fails leaves a row that says so.

    ``task`` replaces the registered one.
    """
    task = task or registry.find_task(case)
    if "torch._dynamo" in sys.modules:
        # Compiled code of earlier cases would count against the limit of recompilations.
        torch._dynamo.reset()
    if case.device == "cuda":
        torch.cuda.empty_cache()
    sets = make_input_sets(task, case, settings.most_sets)
    rows: list[dict[str, Any]] = []
    ready: dict[str, Prepared] = {}
    facts: dict[str, dict[str, Any]] = {}
    with torch.set_grad_enabled(case.mode != "fwd"):
        for provider in filter(task.offers, providers):
            try:
                prepared = prepare(task, case, provider, sets)
                facts[provider] = {
                    "impl": _find_implementation(provider, sets[0]),
                    **({} if _is_slow(prepared, settings.plan) else _measure_memory(prepared, case.device)),
                }
                ready[provider] = prepared
            except Exception as error:
                # Whatever a provider raises must not cost the others their rows.
                rows.append(_make_row(case, provider, error=_describe_error(error)))
        settings.keep(rows)
        for timer, sampler in _choose_timers(case.device, settings).items():
            timed = _time_providers(case, task, timer, sampler, ready, facts, limits, settings, len(sets))
            settings.keep(timed)
            rows += timed
    return rows


def _is_slow(prepared: Prepared, plan: timing.Plan) -> bool:
    """Whether calls are too long to repeat them for their memory; the first one may have been long to compile."""
    if prepared.first_s <= plan.slow_s:
        return False
    start = time.perf_counter()
    prepared.calls[0]()
    return time.perf_counter() - start > plan.slow_s


def _time_providers(
    case: Case,
    task: Task,
    timer: str,
    sampler: Callable[[list[Callable[[], Any]]], timing.Sampler],
    ready: Mapping[str, Prepared],
    facts: Mapping[str, dict[str, Any]],
    limits: roofline.Limits,
    settings: Settings,
    sets: int,
) -> list[dict[str, Any]]:
    rows, samplers = [], {}
    for provider, prepared in ready.items():
        try:
            samplers[provider] = sampler(prepared.calls)
            if "peak_bytes" not in facts[provider]:
                continue  # a slow call, which has run
            samplers[provider].sample(1)
        except Exception as error:
            samplers.pop(provider, None)
            rows.append(_make_row(case, provider, timer=timer, error=_describe_error(error)))
    taken = timing.measure(samplers, settings.plan) if samplers else {}
    work = task.work(case)
    for provider, t in taken.items():
        row = _make_row(case, provider, timer=timer, **facts[provider])
        row |= {
            "p50_us": _round(t.p50 * 1e6),
            "p20_us": _round(t.p20 * 1e6),
            "p80_us": _round(t.p80 * 1e6),
            "samples": t.samples,
            "calls_per_sample": t.calls,
            "bytes": work.bytes,
            "flops": work.flops,
            "gbps": _round(work.bytes / t.p50 * 1e-9),
            "gflops": _round(work.flops / t.p50 * 1e-9),
            "bound": limits.bound(work),
            "percent_of_limit": _round(100 * limits.seconds(work) / t.p50),
            "in_cache": sets * work.bytes <= environment.find_last_cache_bytes(case.device),
            **limits.record(),
        }
        row |= {f"vs_{other}": _round(taken[other].p50 / t.p50) for other in taken if other != provider}
        rows.append(row)
    return rows


def _make_row(case: Case, provider: str, **facts: Any) -> dict[str, Any]:
    return {
        "kind": "row",
        "schema": SCHEMA,
        "op": case.op,
        "entry": case.entry,
        "variant": case.variant,
        "mode": case.mode,
        "shape": str(case.shape),
        "dtype": case.dtype,
        "device": case.device,
        "provider": provider,
        **facts,
    }


def _choose_timers(device: str, settings: Settings) -> dict[str, Callable[[list[Callable[[], Any]]], timing.Sampler]]:
    if device != "cuda":
        return {"host": timing.HostSampler}
    graph = {"graph": timing.GraphSampler} if settings.graphs else {}
    return {"events": timing.EventSampler, **graph}


def _measure_memory(prepared: Prepared, device: str) -> dict[str, int | None]:
    peak = memory.measure_peak_bytes(prepared.calls[0], device)
    result = memory.count_new_bytes(prepared.calls[0](), prepared.given)
    return {
        "peak_bytes": peak,
        "result_bytes": result,
        "temporary_bytes": max(peak - result, 0),
        "resident_bytes": memory.measure_peak_resident_bytes(prepared.calls[0]) if device == "cpu" else None,
    }


def _find_implementation(provider: str, inputs: Inputs) -> str:
    """What runs behind a provider's name: for the library, the implementation that it chose."""
    if provider not in ("fastvae", "fastvae_compile"):
        return provider
    from fastvae import backend

    return backend.resolve("auto", inputs[0])


def _describe_error(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return environment.cut_paths(f"{type(error).__name__}: {lines[0] if lines else ''}")[:300]


def _round(value: float) -> float:
    return float(f"{value:.4g}")


class LostContextError(RuntimeError):
    """The device refuses all further work of this process."""


def check_context(device: str) -> None:
    """Waits for the device.

    Raises:
        LostContextError: an error stays on the device, so that only another process can go on.
    """
    if device == "cuda":
        try:
            torch.cuda.synchronize()
        except RuntimeError as error:
            raise LostContextError(str(error).strip().splitlines()[0]) from error
