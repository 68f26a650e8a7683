"""The dtype policy: what ops compute in, what autocast changes, and which dtypes tell levels of pixels apart."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

__all__ = [
    "DTYPES",
    "check_dtype",
    "compute_dtype",
    "is_autocasting",
    "is_integral",
    "keep_full_precision",
    "tells_apart",
    "to_autocast",
]

# The dtypes that ops take.
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which ops compute on tensors of ``dtype``: float64 for float64, float32 for all others.

    Example:
        >>> compute_dtype(torch.bfloat16)
        torch.float32
    """
    return torch.float64 if dtype == torch.float64 else torch.float32


def is_autocasting(device_type: str) -> bool:
    """Whether autocast is on for tensors on ``device_type``."""
    # Compilers do not all trace the first question. Of the devices that they see, only meta has no autocast.
    known = device_type != "meta" if torch.compiler.is_compiling() else torch.amp.is_autocast_available(device_type)
    return known and torch.is_autocast_enabled(device_type)


def keep_full_precision(device_type: str) -> AbstractContextManager[object]:
    """Keeps autocast from taking a matrix product to half precision."""
    return torch.autocast(device_type, enabled=False) if is_autocasting(device_type) else nullcontext()


def to_autocast(t: Any, dtype: torch.dtype) -> Any:
    """``t`` as autocast hands it to a product: float64 and integers stay what they are."""
    return t.to(dtype) if isinstance(t, Tensor) and t.dtype in DTYPES and t.dtype is not torch.float64 else t


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
