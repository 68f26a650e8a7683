"""How fast a trained model draws."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

__all__ = ["SAMPLED", "measure_sampling"]

SAMPLED = 64


def measure_sampling(sample: Callable[[int], Any], device: torch.device) -> float:
    """Images drawn a second in the second of two batches of 64."""
    for _ in range(2):
        began = time.perf_counter()
        sample(SAMPLED)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    return SAMPLED / (time.perf_counter() - began)
