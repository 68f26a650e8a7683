"""What ops on single layers share: numbers of activations and of affine maps, and checks of degrees."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ..reference.affine_flow import KINDS
from ..structure import ACTIVATION_NAMES
from ..structure.integers import integer
from ..structure.kept_activations import NEED_PRE

__all__ = [
    "ACTIVATION_IDS",
    "KIND_IDS",
    "NEED_PRE",
    "activation_of",
    "check_degrees",
    "check_kind",
    "degrees_of",
]

# The extension's numbers (csrc/base/codes.h).
ACTIVATION_IDS = {name: index for index, name in enumerate(ACTIVATION_NAMES)}
KIND_IDS = {None: 0} | {name: index for index, name in enumerate(KINDS, 1)}


def activation_of(activation: str | None) -> str:
    if activation is None:
        return "identity"
    if activation not in ACTIVATION_IDS:
        raise ValueError(f"activation must be None or one of {', '.join(ACTIVATION_NAMES)}, got {activation!r}")
    return activation


def check_kind(kind: str) -> None:
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")


def check_degrees(name: str, degrees: Tensor, count: int, like: Tensor) -> Tensor:
    """``degrees`` as int64, checked to be ``count`` integers on the device of ``like``."""
    if not isinstance(degrees, Tensor):
        raise TypeError(f"{name} must be a tensor of integers, got {type(degrees).__name__}")
    if degrees.is_floating_point() or degrees.is_complex():
        raise TypeError(f"{name} must be a tensor of integers, got {degrees.dtype}")
    if degrees.shape != (count,):
        raise ValueError(f"{name} must have shape ({count},), got {tuple(degrees.shape)}")
    if degrees.device != like.device:
        raise ValueError(f"{name} must be on the device of x, {like.device}; it is on {degrees.device}")
    return degrees.long().contiguous()


def degrees_of(name: str, degrees: Sequence[int] | Tensor, count: int) -> tuple[int, ...]:
    """``degrees`` as Python integers, for a layer that keeps them.

    Raises:
        TypeError: one is no integer.
        ValueError: there are not ``count``.
    """
    given = degrees.tolist() if isinstance(degrees, Tensor) else list(degrees)
    if len(given) != count:
        raise ValueError(f"{name} must be {count} integers, got {len(given)}")
    return tuple(integer(f"{name}[{i}]", degree) for i, degree in enumerate(given))
