"""What the dataclasses of settings share: names of options, and checks of their values."""

from __future__ import annotations

import math
from dataclasses import asdict, field
from typing import Any, Literal, get_args, get_origin, get_type_hints

__all__ = [
    "MOST_SEED",
    "MOST_WHOLE",
    "Implementation",
    "check_choices",
    "check_odd",
    "check_positive",
    "check_share",
    "check_sizes",
    "check_whole",
    "option",
    "to_plain",
]

# The largest seed of numpy's frozen stream, and the largest size or count.
MOST_SEED, MOST_WHOLE = 2**32 - 1, 2**31 - 1

Implementation = Literal["auto", "triton", "cpp", "reference"]


def option(name: str, default: Any) -> Any:
    """A field of settings whose option has another name on the command line: ``--name``."""
    return field(default=default, metadata={"option": name})


def check_whole(settings: Any, **least: int) -> None:
    """Checks sizes, counts and the seed.

    Args:
        settings: the settings.
        least: the least value of each field by its name; the most is :data:`MOST_WHOLE`, of ``seed``
            :data:`MOST_SEED`.

    Raises:
        ValueError: one is out of its range.
    """
    for name, low in least.items():
        value, high = getattr(settings, name), MOST_SEED if name == "seed" else MOST_WHOLE
        if not value >= low:
            raise ValueError(f"{name} must be >= {low}, got {value}")
        if value > high:
            raise ValueError(f"{name} must be <= {high}, got {value}")


def check_choices(settings: Any) -> None:
    """Checks every field whose type is a ``Literal``, and makes a tuple of every list.

    Raises:
        ValueError: a value is none of the choices.
    """
    for name, kind in get_type_hints(type(settings)).items():
        values = (getattr(settings, name),)
        if get_origin(kind) is tuple:
            values, kind = tuple(values[0]), get_args(kind)[0]
            object.__setattr__(settings, name, values)
        if get_origin(kind) is not Literal:
            continue
        allowed = get_args(kind)
        for value in values:
            if value not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(map(str, allowed))}, got {value!r}")


def check_positive(settings: Any, *names: str, zero: bool = False) -> None:
    """Checks that fields are finite and above 0, or with ``zero`` not below it.

    Raises:
        ValueError: one is not.
    """
    for name in names:
        value = getattr(settings, name)
        if not (0 < value or (zero and value == 0)) or value == math.inf:
            raise ValueError(f"{name} must be {'>=' if zero else '>'} 0 and finite, got {value}")


def check_share(settings: Any, name: str, *, one: bool = True) -> None:
    """Checks that a field is at least 0 and below 1, or at most 1 if ``one`` is true.

    Raises:
        ValueError: it does not.
    """
    value = getattr(settings, name)
    if not (0 <= value < 1 or (one and value == 1)):
        raise ValueError(f"{name} must lie in [0, 1{']' if one else ')'}, got {value}")


def check_odd(settings: Any, *names: str) -> None:
    """Checks the sizes of kernels.

    Raises:
        ValueError: one is not odd, or below 1.
    """
    for name in names:
        size = getattr(settings, name)
        if size < 1 or size % 2 == 0:
            raise ValueError(f"{name} must be odd, got {size}")


def check_sizes(settings: Any, name: str) -> None:
    """Checks a tuple of one or more sizes.

    Raises:
        ValueError: it is empty, or one is below 1.
    """
    sizes = getattr(settings, name)
    if not sizes or min(sizes) < 1:
        raise ValueError(f"{name} must be one or more sizes >= 1, got {sizes}")
    if max(sizes) > MOST_WHOLE:
        raise ValueError(f"{name} must be sizes <= {MOST_WHOLE}, got {sizes}")


def to_plain(settings: Any) -> dict[str, Any]:
    """Settings as plain data, with lists in place of tuples."""
    return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(settings).items()}
