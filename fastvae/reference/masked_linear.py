r"""Masked linear layer in plain PyTorch.

.. math::
    y = \operatorname{act}\left(s \odot (W \circ M)\, x + b\right), \qquad M_{oi} = [\,d^{in}_i \le d^{out}_o\,]
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "identity": lambda x: x,
    "relu": functional.relu,
    "elu": functional.elu,
    "tanh": torch.tanh,
    "softplus": functional.softplus,
    "gelu": functional.gelu,
    "silu": functional.silu,
}


def mask_of(in_degrees: Tensor, out_degrees: Tensor) -> Tensor:
    """The mask ``(out, in)``, bool: which weights count."""
    return in_degrees <= out_degrees.unsqueeze(-1)


def masked_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    in_degrees: Tensor,
    out_degrees: Tensor,
    activation: str = "identity",
    weight_scale: Tensor | None = None,
) -> Tensor:
    # Not a product with the mask: what is masked may be anything, NaN as well.
    weight = torch.where(mask_of(in_degrees, out_degrees), weight, 0.0)
    if weight_scale is not None:
        weight = weight * weight_scale.unsqueeze(-1)
    return ACTIVATIONS[activation](functional.linear(x, weight, bias))


def masked_norm(weight: Tensor, in_degrees: Tensor, out_degrees: Tensor) -> Tensor:
    """Euclidean norm of every row of ``weight`` ``(out, in)`` over the weights that count, ``(out,)``."""
    kept = torch.where(mask_of(in_degrees, out_degrees), weight, 0.0)
    # A row of zeros has no second derivative; its norm is a constant 0.
    has_norm = (kept != 0).any(-1)
    return torch.where(has_norm, torch.where(has_norm.unsqueeze(-1), kept, 1.0).norm(dim=-1), 0.0)


def row_factors(gain: Tensor, norm: Tensor) -> Tensor:
    """The factors gain / norm of normalised rows; 0 for a row without connections."""
    connected = norm > 0
    return torch.where(connected, gain / torch.where(connected, norm, 1.0), 0.0)
