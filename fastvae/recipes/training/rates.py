"""Learning rates as functions of the step."""

from __future__ import annotations

import math

__all__ = ["half_cosine"]


def half_cosine(step: int, steps: int, last: float) -> float:
    """Share of the first learning rate: half a cosine from 1 to ``last`` over ``steps`` steps."""
    return last + (1.0 - last) * 0.5 * (1.0 + math.cos(math.pi * min(step / max(steps, 1), 1.0)))
