"""Equally spaced levels of pixels, as integers and as numbers: which dtypes tell the numbers apart."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["check_dtype", "is_integral", "tells_apart"]


def is_integral(x: Tensor) -> bool:
    """Whether ``x`` holds integers, or truth values."""
    return not (x.is_floating_point() or x.is_complex())


def tells_apart(dtype: torch.dtype, levels: int, *, symmetric: bool) -> bool:
    """Whether every level, rounded to ``dtype``, is still nearest to itself.

    Args:
        dtype: a floating-point dtype.
        levels: number of levels, equally spaced.
        symmetric: whether they fill [-1, 1] rather than [0, 1].

    Note:
        Numbers in [1/2, 1] are eps / 2 apart, levels 1 / (levels - 1), or twice as far where they are symmetric.

    Example:
        >>> [tells_apart(torch.bfloat16, levels, symmetric=False) for levels in (256, 257, 258)]
        [True, True, False]
    """
    eps = torch.finfo(dtype).eps
    return levels <= (4 / eps + 3 if symmetric else 2 / eps + 1)


def check_dtype(name: str, dtype: torch.dtype, levels: int, *, symmetric: bool) -> None:
    """Raises a ValueError, which calls the pixels by ``name``, where ``dtype`` does not tell the levels apart."""
    if dtype.is_floating_point and not tells_apart(dtype, levels, symmetric=symmetric):
        form = f"2k / {levels - 1} - 1" if symmetric else f"k / {levels - 1}"
        raise ValueError(
            f"{name} must have a dtype that tells levels={levels} values {form} apart, got {dtype}, which rounds some "
            "to their neighbours. Pass the integers k, or float32"
        )
