"""Checks that the objectives share."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from numbers import Integral

import torch
from torch import Tensor


def check_floating(**tensors: Tensor) -> None:
    for name, t in tensors.items():
        if not isinstance(t, Tensor):
            raise TypeError(f"{name} must be a tensor, got {type(t).__name__}")
        if not t.is_floating_point():
            raise TypeError(f"{name} must be floating point, got {t.dtype}")


def count_samples(log_w: Tensor, dim: int) -> int:
    """The number of samples along ``dim`` of log-weights."""
    check_floating(log_w=log_w)
    if log_w.dim() == 0:
        raise ValueError("log_w must have a dimension of samples, got shape ()")
    if not -log_w.dim() <= dim < log_w.dim():
        raise ValueError(f"dim must be a dimension of log_w {tuple(log_w.shape)}, got {dim}")
    return log_w.shape[dim]


def chunk_sizes(num_samples: int, chunk_size: int) -> Iterator[int]:
    """Sizes of at most ``chunk_size`` that add up to ``num_samples``."""
    for name, size in (("num_samples", num_samples), ("chunk_size", chunk_size)):
        if not isinstance(size, Integral):
            raise TypeError(f"{name} must be an int, got {type(size).__name__}")
        if size < 1:
            raise ValueError(f"{name} must be >= 1, got {size}")
    return (min(chunk_size, num_samples - done) for done in range(0, num_samples, chunk_size))


def draw_chunk(log_weights: Callable[[int], Tensor], size: int) -> Tensor:
    """``log_weights(size)`` once it is known to hold ``size`` samples."""
    log_w = log_weights(size)
    check_floating(log_weights=log_w)
    if log_w.dim() == 0 or log_w.shape[0] != size:
        raise ValueError(f"log_weights({size}) must return shape ({size}, *), got {tuple(log_w.shape)}")
    return log_w


def check_finite(**numbers: float) -> None:
    for name, number in numbers.items():
        if isinstance(number, torch.Tensor) or not isinstance(number, (int, float)):
            raise TypeError(f"{name} must be a number, got {type(number).__name__}")
        if not math.isfinite(number):
            raise ValueError(f"{name} must be finite, got {number}")


def check_positive(**numbers: float) -> None:
    check_finite(**numbers)
    for name, number in numbers.items():
        if number <= 0:
            raise ValueError(f"{name} must be > 0, got {number}")
