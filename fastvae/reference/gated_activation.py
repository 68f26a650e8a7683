r"""Gated activation in plain PyTorch: :math:`y = \tanh(a) \odot \sigma(b)`, or :math:`y = a \odot \sigma(b)`.

a and b are the first and the second half of the channels of x + condition.
"""

from __future__ import annotations

import torch
from torch import Tensor

KINDS = ("tanh", "linear")


def gated_activation(x: Tensor, condition: Tensor | None, kind: str) -> Tensor:
    """x ``(N, 2F, H, W)`` and a condition that broadcasts to it, to ``(N, F, H, W)``."""
    a, b = (x if condition is None else x + condition).chunk(2, 1)
    return (torch.tanh(a) if kind == "tanh" else a) * torch.sigmoid(b)
