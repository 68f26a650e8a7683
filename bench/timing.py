"""Time per call: samples of all providers in turns, so that a drift of the machine meets them alike."""

from __future__ import annotations

import gc
import itertools
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

Call = Callable[[], object]


@dataclass(frozen=True)
class Plan:
    """How long to measure: rounds of one sample per provider, samples of many calls.

    Rounds end when there are ``rounds`` of them, or when ``budget_s`` is spent and there are ``min_rounds``. Calls that
    take longer than ``slow_s`` are sampled ``slow_rounds`` times, calibration included, and do not count against it.
    """

    rounds: int = 40
    min_rounds: int = 11
    min_sample_s: float = 2e-3
    warmup_s: float = 0.1
    budget_s: float = 4.0
    slow_s: float = 2.0
    slow_rounds: int = 2


QUICK = Plan(rounds=3, min_rounds=3, min_sample_s=2e-4, warmup_s=0.0, budget_s=0.5, slow_rounds=1)


@dataclass(frozen=True)
class Timing:
    """Seconds per call at three quantiles of the samples; each sample is the mean of ``calls`` calls."""

    p20: float
    p50: float
    p80: float
    samples: int
    calls: int


class Sampler(Protocol):
    """Runs a provider; ``sample(n)`` is the seconds taken by ``n * calls_per_repetition`` calls."""

    calls_per_repetition: int

    def sample(self, repetitions: int) -> float: ...


class HostSampler:
    """Wall-clock time of calls that end when they return."""

    calls_per_repetition = 1

    def __init__(self, calls: Sequence[Call]) -> None:
        self._calls = itertools.cycle(calls)

    def sample(self, repetitions: int) -> float:
        start = time.perf_counter()
        for call in itertools.islice(self._calls, repetitions):
            call()
        return time.perf_counter() - start


class EventSampler:
    """Device time between events around back-to-back calls; of short ones, the host's time to launch them."""

    calls_per_repetition = 1

    def __init__(self, calls: Sequence[Call]) -> None:
        self._calls = itertools.cycle(calls)
        self._start, self._end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def sample(self, repetitions: int) -> float:
        torch.cuda.synchronize()
        self._start.record()
        for call in itertools.islice(self._calls, repetitions):
            call()
        self._end.record()
        self._end.synchronize()
        return self._start.elapsed_time(self._end) * 1e-3


class GraphSampler:
    """Device time of replays of one CUDA graph that holds every call once: launches cost the host nothing."""

    def __init__(self, calls: Sequence[Call]) -> None:
        self.calls_per_repetition = len(calls)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        # Three calls outside the capture: lazy initialisation and compilation may not happen inside.
        with torch.cuda.stream(side):
            for call in itertools.islice(itertools.cycle(calls), 3):
                call()
        torch.cuda.current_stream().wait_stream(side)
        self._graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(self._graph):
                for call in calls:
                    call()
        except Exception:
            # After a broken capture the default generator still waits for its end, and every later draw fails.
            generator = torch.cuda.default_generators[torch.cuda.current_device()]
            generator.graphsafe_set_state(torch.Generator("cuda").graphsafe_get_state())
            raise
        self._replays = EventSampler([self._graph.replay])

    def sample(self, repetitions: int) -> float:
        return self._replays.sample(repetitions)


def measure(samplers: Mapping[str, Sampler], plan: Plan) -> dict[str, Timing]:
    """Timings of all samplers from interleaved rounds; each round starts with another of them."""
    with _pause_collector():
        first = {name: sampler.sample(1) for name, sampler in samplers.items()}
        slow = [name for name, taken in first.items() if taken > plan.slow_s]
        repetitions = {name: 1 if name in slow else _calibrate(sampler, plan) for name, sampler in samplers.items()}
        seconds: dict[str, list[float]] = {name: [] for name in samplers}
        for name in slow:
            seconds[name].append(first[name] / samplers[name].calls_per_repetition)
        spent = 0.0
        for done, names in enumerate(itertools.islice(_rotate(list(samplers)), plan.rounds)):
            if spent > plan.budget_s and done >= plan.min_rounds:
                break
            for name in names:
                if name in slow and len(seconds[name]) >= plan.slow_rounds:
                    continue
                calls = repetitions[name] * samplers[name].calls_per_repetition
                taken = samplers[name].sample(repetitions[name])
                seconds[name].append(taken / calls)
                spent += 0.0 if name in slow else taken
            if len(slow) == len(samplers) and done + 1 >= plan.slow_rounds:
                break
    per_sample = {name: repetitions[name] * sampler.calls_per_repetition for name, sampler in samplers.items()}
    return {name: _summarise(taken, per_sample[name]) for name, taken in seconds.items()}


def _summarise(seconds: list[float], calls: int) -> Timing:
    p20, p50, p80 = (float(quantile) for quantile in np.percentile(seconds, (20, 50, 80)))
    return Timing(p20, p50, p80, len(seconds), calls)


def _calibrate(sampler: Sampler, plan: Plan) -> int:
    """Warms up, and finds how many repetitions make a sample as long as the plan asks."""
    warm = time.perf_counter() + plan.warmup_s
    while time.perf_counter() < warm:
        sampler.sample(1)
    repetitions = 1
    while (taken := sampler.sample(repetitions)) < plan.min_sample_s:
        # At most tenfold at once: the first, cold estimate of a short call is far too high or too low.
        repetitions *= min(10, max(2, math.ceil(plan.min_sample_s / max(taken, 1e-9))))
    return repetitions


def _rotate(names: list[str]) -> Iterator[list[str]]:
    for first in itertools.count():
        shift = first % len(names)
        yield names[shift:] + names[:shift]


@contextmanager
def _pause_collector() -> Iterator[None]:
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
