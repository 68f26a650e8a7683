"""Weights of the KL divergence as pure functions of the training step."""

from __future__ import annotations

import math
from dataclasses import dataclass

from . import _checks

__all__ = ["CyclicSchedule", "LinearSchedule", "SigmoidSchedule"]


@dataclass(frozen=True)
class LinearSchedule:
    r"""Moves linearly from ``start`` to ``end`` within ``steps`` steps, and stays there.

    .. math::
        \beta(t) = \text{start} + (\text{end} - \text{start}) \min(t / \text{steps}, 1)

    Args:
        start: value at step 0.
        end: value from step ``steps`` on.
        steps: length of the ramp, > 0, in whatever unit the schedule is called with: steps or epochs.

    Raises:
        TypeError: an argument is no number.
        ValueError: an argument is not finite, or ``steps`` is not positive.

    Note:
        Like all schedules here, it has no state, can be compared and pickled, and raises for a step below 0.

    Reference:
        *Ladder Variational Autoencoders* (Sønderby, Raiko, Maaløe, Sønderby, Winther, 2016), under the name
        warm-up.

    Example:
        >>> beta = LinearSchedule(0.0, 1.0, steps=200)
        >>> beta(0), beta(50), beta(1000)
        (0.0, 0.25, 1.0)
    """

    start: float
    end: float
    steps: float

    def __post_init__(self) -> None:
        _checks.check_finite(start=self.start, end=self.end)
        _checks.check_positive(steps=self.steps)

    def __call__(self, step: float) -> float:
        return _between(self.start, self.end, min(_step(step) / self.steps, 1.0))


@dataclass(frozen=True)
class CyclicSchedule:
    r"""Repeats a linear ramp from ``start`` to ``end`` followed by a plateau.

    .. math::
        \beta(t) = \text{start} + (\text{end} - \text{start})
        \min\left(\frac{t \bmod \text{period}}{\text{ramp} \cdot \text{period}}, 1\right)

    Args:
        start: value at the beginning of every cycle.
        end: value on the plateau.
        period: length of a cycle, > 0.
        ramp: share of the cycle that the ramp takes, in (0, 1].
        cycles: number of cycles, after which the value stays at ``end``; None for no end.

    Raises:
        TypeError: an argument is no number.
        ValueError: an argument is out of its range.

    Reference:
        *Cyclical Annealing Schedule: A Simple Approach to Mitigating KL Vanishing* (Fu, Li, Liu, Gao,
        Celikyilmaz, Carin, 2019).

    Example:
        >>> beta = CyclicSchedule(0.0, 1.0, period=100, ramp=0.5, cycles=4)
        >>> [beta(step) for step in (0, 25, 50, 99, 100, 400)]
        [0.0, 0.5, 1.0, 1.0, 0.0, 1.0]
    """

    start: float
    end: float
    period: float
    ramp: float = 0.5
    cycles: int | None = None

    def __post_init__(self) -> None:
        _checks.check_finite(start=self.start, end=self.end)
        _checks.check_positive(period=self.period, ramp=self.ramp)
        if self.ramp > 1:
            raise ValueError(f"ramp must lie in (0, 1], got {self.ramp}")
        if self.cycles is not None:
            _checks.check_positive(cycles=self.cycles)

    def __call__(self, step: float) -> float:
        step = _step(step)
        if self.cycles is not None and step >= self.cycles * self.period:
            return self.end
        return _between(self.start, self.end, min(step % self.period / (self.ramp * self.period), 1.0))


@dataclass(frozen=True)
class SigmoidSchedule:
    r"""Moves from ``start`` to ``end`` along a logistic curve.

    .. math::
        \beta(t) = \text{start} +
        \frac{\text{end} - \text{start}}{1 + e^{-\text{slope} (t - \text{midpoint})}}

    Args:
        start: value far before ``midpoint``.
        end: value far after it.
        midpoint: the step at which half of the way is done.
        slope: steepness, per step, > 0.

    Raises:
        TypeError: an argument is no number.
        ValueError: an argument is not finite, or ``slope`` is not positive.

    Reference:
        *Generating Sentences from a Continuous Space* (Bowman, Vilnis, Vinyals, Dai, Jozefowicz, Bengio,
        2015).

    Example:
        >>> beta = SigmoidSchedule(0.0, 1.0, midpoint=29, slope=0.51)
        >>> beta(29), round(beta(40), 3)
        (0.5, 0.996)
    """

    start: float
    end: float
    midpoint: float
    slope: float

    def __post_init__(self) -> None:
        _checks.check_finite(start=self.start, end=self.end, midpoint=self.midpoint)
        _checks.check_positive(slope=self.slope)

    def __call__(self, step: float) -> float:
        # tanh saturates where exp would overflow.
        share = 0.5 * (1.0 + math.tanh(0.5 * self.slope * (_step(step) - self.midpoint)))
        return _between(self.start, self.end, share)


def _between(start: float, end: float, share: float) -> float:
    # Exact at both ends, unlike start + share * (end - start).
    return (1.0 - share) * start + share * end


def _step(step: float) -> float:
    if not step >= 0:
        raise ValueError(f"step must be >= 0, got {step}")
    return step
