"""Integers as users pass them: Python's, numpy's, or a tensor of one."""

from __future__ import annotations

import operator
from typing import Any

import torch

__all__ = ["integer", "integers"]


def integer(name: str, value: Any, least: int | None = None) -> int:
    """``value`` as a Python integer that is not below ``least``.

    Raises:
        TypeError: ``value`` is no integer, or a truth value.
        ValueError: it is below ``least``.

    Example:
        >>> import numpy as np
        >>> integer("levels", np.int64(256), 2)
        256
    """
    number = value
    # Compilers trace the comparison of types, but not the conversion, which would also fix a symbolic size.
    if type(value) is not int and not isinstance(value, torch.SymInt):
        if isinstance(value, bool) or str(getattr(value, "dtype", "")) in ("bool", "torch.bool"):
            raise TypeError(f"{name} must be an integer, got {value!r}")
        try:
            number = operator.index(value)
        except TypeError:
            raise TypeError(f"{name} must be an integer, got {value!r}") from None
    if least is not None and number < least:
        raise ValueError(f"{name} must be >= {least}, got {number}")
    result: int = number
    return result


def integers(least: int | None = None, /, **values: Any) -> tuple[int, ...]:
    """The arguments ``values`` as Python integers, none below ``least``.

    Raises:
        TypeError: one is no integer, or a truth value.
        ValueError: one is below ``least``.

    Example:
        >>> integers(1, height=4, width=5)
        (4, 5)
    """
    return tuple(integer(name, value, least) for name, value in values.items())
