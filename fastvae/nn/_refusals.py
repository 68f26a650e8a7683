"""Checks of tensors for which PyTorch's own operators would return wrong numbers without an error."""

from __future__ import annotations

from torch import Tensor, nn

from ._hooks import has_hooks

__all__ = ["check_floating", "check_linear", "check_meta"]


def check_floating(name: str, t: Tensor) -> None:
    """Raises for integers, which results would be rounded to, and for complex numbers."""
    if not t.is_floating_point():
        raise TypeError(f"{name} must be a floating-point tensor, got {t.dtype}")


def check_meta(name: str, t: Tensor, weight: Tensor) -> None:
    """Raises if only one of the two is on ``meta``: products then return uninitialised memory."""
    if t.is_meta is not weight.is_meta:
        raise ValueError(f"{name} must be on the device of the weight, {weight.device}; it is on {t.device}")


def check_linear(name: str, t: Tensor, layer: nn.Module) -> None:
    """As :func:`check_meta`, for a linear layer; hooks, or another forward, may bring its weight in time."""
    if type(layer).forward is nn.Linear.forward and layer.weight.is_meta is not t.is_meta:
        if "forward" not in layer.__dict__ and not has_hooks(layer):
            check_meta(name, t, layer.weight)  # type: ignore[arg-type]
