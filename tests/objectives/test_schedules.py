"""KL annealing schedules."""

import math
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastvae.objectives import CyclicSchedule, LinearSchedule, SigmoidSchedule

SCHEDULES = [
    LinearSchedule(0.0, 1.0, 200),
    LinearSchedule(1.0, 0.1, 7),
    CyclicSchedule(0.0, 1.0, period=100),
    CyclicSchedule(0.0, 0.7, period=30, ramp=1.0, cycles=4),
    SigmoidSchedule(0.0, 1.0, midpoint=29, slope=0.51),
]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
@given(step=st.floats(0, 1e18))
def test_stays_between_its_ends(schedule, step):
    low, high = sorted((schedule.start, schedule.end))
    assert low <= schedule(step) <= high


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_pure_comparable_and_picklable(schedule):
    twin = pickle.loads(pickle.dumps(schedule))
    assert twin == schedule
    assert hash(twin) == hash(schedule)
    assert [twin(step) for step in range(300)] == [schedule(step) for step in range(300)]
    with pytest.raises(AttributeError):
        schedule.start = 2.0


@pytest.mark.parametrize("schedule", [SCHEDULES[0], SCHEDULES[1], SCHEDULES[4]], ids=repr)
def test_monotone(schedule):
    values = [schedule(step) for step in range(500)]
    assert values == sorted(values, reverse=schedule.start > schedule.end)


def test_linear():
    schedule = LinearSchedule(0.1, 0.7, steps=3)
    assert schedule(0) == 0.1
    assert schedule(1.5) == pytest.approx(0.4)
    assert schedule(3) == schedule(10**12) == 0.7


def test_cyclic():
    schedule = CyclicSchedule(0.0, 1.0, period=10, ramp=0.4, cycles=2)
    cycle = [0.0, 0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]
    assert [schedule(step) for step in range(25)] == pytest.approx(cycle + cycle + [1.0] * 5)
    endless = CyclicSchedule(0.0, 1.0, period=10, ramp=0.4)
    assert endless(1000) == 0.0


def test_sigmoid():
    schedule = SigmoidSchedule(0.0, 1.0, midpoint=29, slope=0.51)
    for step in (0, 20, 29, 40):
        assert schedule(step) == pytest.approx(1 / (1 + math.exp(0.51 * (29 - step))))
    assert SigmoidSchedule(0.0, 1.0, midpoint=1e6, slope=100.0)(0) == 0.0
    assert schedule(1e300) == 1.0


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda: LinearSchedule(0.0, 1.0, 0), ValueError, "steps must be > 0, got 0"),
        (lambda: LinearSchedule(0.0, 1.0, "9"), TypeError, "steps must be a number, got str"),
        (lambda: LinearSchedule(torch.zeros(()), 1.0, 9), TypeError, "start must be a number, got Tensor"),
        (lambda: LinearSchedule(0.0, math.inf, 9), ValueError, "end must be finite, got inf"),
        (lambda: CyclicSchedule(0.0, 1.0, -1.0), ValueError, "period must be > 0, got -1.0"),
        (lambda: CyclicSchedule(0.0, 1.0, 10, ramp=0.0), ValueError, "ramp must be > 0, got 0.0"),
        (lambda: CyclicSchedule(0.0, 1.0, 10, ramp=1.5), ValueError, r"ramp must lie in \(0, 1\], got 1.5"),
        (lambda: CyclicSchedule(0.0, 1.0, 10, cycles=0), ValueError, "cycles must be > 0, got 0"),
        (lambda: SigmoidSchedule(0.0, 1.0, 29, 0.0), ValueError, "slope must be > 0, got 0.0"),
        (lambda: SigmoidSchedule(0.0, 1.0, math.nan, 1.0), ValueError, "midpoint must be finite, got nan"),
        (lambda: SCHEDULES[0](-1), ValueError, "step must be >= 0, got -1"),
        (lambda: SCHEDULES[2](math.nan), ValueError, "step must be >= 0, got nan"),
        (lambda: SCHEDULES[4](-1), ValueError, "step must be >= 0, got -1"),
    ],
)
def test_bad_arguments(make, error, match):
    with pytest.raises(error, match=match):
        make()
