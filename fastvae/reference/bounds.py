"""A clamp whose gradient leads back, in plain PyTorch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad


def bound(x: Tensor, lower: float, upper: float) -> Tensor:
    """``x`` clamped; beyond a bound a gradient passes where its descent step leads back, and is zero elsewhere.

    Forward-mode differentiation, and a traced module that is saved, have the gradient of a clamp.
    """
    records = torch.is_grad_enabled() and x.requires_grad
    if forward_ad._current_level >= 0 or (torch._C._get_tracing_state() is not None and not records):
        return x.clamp(lower, upper)
    if torch._C._are_functorch_transforms_active():
        return _TransformableBound.apply(x, lower, upper)
    return _Bound.apply(x, lower, upper)


class _Bound(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, lower: float, upper: float) -> Tensor:
        bounded = x.clamp(lower, upper)
        ctx.save_for_backward(x, bounded)
        return bounded

    @staticmethod
    def backward(ctx: Any, d_bounded: Tensor) -> Any:
        x, bounded = ctx.saved_tensors
        leads_away = (x - bounded) * d_bounded < 0
        return d_bounded.masked_fill(leads_away, 0.0), None, None


class _TransformableBound(torch.autograd.Function):
    """The same for torch.func. Its form of a Function costs more at each call."""

    generate_vmap_rule = True
    backward = _Bound.backward

    @staticmethod
    def forward(x: Tensor, lower: float, upper: float) -> Tensor:
        return x.clamp(lower, upper)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0], output)
