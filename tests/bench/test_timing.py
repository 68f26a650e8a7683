"""The sampling of times, on samplers whose times are made up: nothing here is measured."""

import gc

import pytest

from bench import timing
from bench.timing import Plan


class Scripted:
    """Takes a given time per repetition; remembers the order in which samplers were asked."""

    def __init__(self, name, log, seconds, calls_per_repetition=1):
        self.name, self.log, self.seconds = name, log, seconds
        self.calls_per_repetition = calls_per_repetition

    def sample(self, repetitions):
        self.log.append((self.name, repetitions))
        return repetitions * self.seconds


def measured_rounds(log, names):
    """The order of names in each round, calibration left out: rounds are the tail of the log."""
    order = [name for name, _ in log]
    return [order[start : start + len(names)] for start in range(len(order) - len(names) * 6, len(order), len(names))]


def test_samples_are_long_enough_and_times_are_per_call():
    log = []
    plan = Plan(rounds=6, min_rounds=6, min_sample_s=2e-3, warmup_s=0, budget_s=60)
    taken = timing.measure({"a": Scripted("a", log, 1e-6), "b": Scripted("b", log, 5e-3)}, plan)
    assert taken["a"].calls * 1e-6 >= 2e-3
    assert taken["b"].calls == 1
    assert taken["a"].p50 == pytest.approx(1e-6)
    assert taken["b"].p20 == taken["b"].p80 == pytest.approx(5e-3)


def test_rounds_interleave_and_rotate():
    log = []
    names = ["a", "b", "c"]
    plan = Plan(rounds=6, min_rounds=6, min_sample_s=1e-3, warmup_s=0, budget_s=60)
    timing.measure({name: Scripted(name, log, 1e-3) for name in names}, plan)
    rounds = measured_rounds(log, names)
    assert all(sorted(order) == names for order in rounds)
    assert [order[0] for order in rounds] == ["a", "b", "c", "a", "b", "c"]


def test_quantiles_are_of_the_samples():
    class Growing(Scripted):
        def sample(self, repetitions):
            super().sample(repetitions)
            return float(len(self.log))

    log = []
    plan = Plan(rounds=11, min_rounds=11, min_sample_s=0.5, warmup_s=0, budget_s=60)
    taken = timing.measure({"a": Growing("a", log, 0)}, plan)["a"]
    first = len(log) - 10
    assert (taken.p20, taken.p50, taken.p80, taken.samples) == (first + 2, first + 5, first + 8, 11)


def test_budget_ends_rounds_but_not_before_the_least_number():
    log = []
    plan = Plan(rounds=1000, min_rounds=5, min_sample_s=1e-3, warmup_s=0, budget_s=0)
    assert timing.measure({"a": Scripted("a", log, 1e-3)}, plan)["a"].samples == 5


def test_slow_calls_are_sampled_twice_and_spare_the_budget_of_the_others():
    log = []
    plan = Plan(rounds=6, min_rounds=2, min_sample_s=1e-3, warmup_s=0, budget_s=1.0, slow_s=2.0, slow_rounds=2)
    taken = timing.measure({"slow": Scripted("slow", log, 15.0), "fast": Scripted("fast", log, 1e-3)}, plan)
    assert [repetitions for name, repetitions in log if name == "slow"] == [1, 1]
    assert (taken["slow"].p50, taken["slow"].samples) == (15.0, 2)
    assert taken["fast"].samples == 6


def test_slow_calls_alone_end_after_their_rounds():
    log = []
    plan = Plan(rounds=40, min_rounds=9, slow_rounds=3)
    taken = timing.measure({name: Scripted(name, log, 15.0) for name in "ab"}, plan)
    assert {t.samples for t in taken.values()} == {3}
    assert len(log) == 6


def test_calls_of_a_graph_count_one_by_one():
    log = []
    plan = Plan(rounds=3, min_rounds=3, min_sample_s=1e-3, warmup_s=0, budget_s=60)
    taken = timing.measure({"a": Scripted("a", log, 8e-3, calls_per_repetition=8)}, plan)["a"]
    assert taken.p50 == pytest.approx(1e-3)
    assert taken.calls == 8


def test_host_sampler_takes_its_calls_in_turn():
    log = []
    sampler = timing.HostSampler([lambda: log.append("a"), lambda: log.append("b")])
    assert sampler.sample(3) >= 0
    sampler.sample(2)
    assert log == ["a", "b", "a", "b", "a"]


def test_garbage_collector_is_left_as_it_was():
    assert gc.isenabled()
    timing.measure({"a": Scripted("a", [], 1.0)}, timing.QUICK)
    assert gc.isenabled()
