r"""First layer of a network that is given a class, in plain PyTorch.

.. math::
    y_{\dots c} = \operatorname{act}\Big(\sum_i W_i x_i + V_{:,c} + b\Big)
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

import torch
import torch.nn.functional as TF
from torch import Tensor

from .masked_linear import ACTIVATIONS


def terms_of_classes(class_weight: Tensor, bias: Tensor | None) -> Tensor:
    """What each class adds, ``(C, H)``."""
    terms = class_weight.t()
    return terms if bias is None else terms + bias


def activate_sum(rows: Tensor | None, cells: Tensor | None, classes: Tensor | None, activation: str) -> Tensor:
    """act(rows + cells + classes), ``(M, C, H)``, of terms ``(M, H)``, ``(M, C, H)`` and ``(C, H)`` that are there."""
    given = [t for t in (None if rows is None else rows.unsqueeze(-2), cells, classes) if t is not None]
    return ACTIVATIONS[activation](reduce(torch.add, given))


def class_linear(
    inputs: Sequence[Tensor],
    weights: Sequence[Tensor],
    class_weight: Tensor,
    bias: Tensor | None,
    labels: Tensor | None,
    activation: str,
) -> Tensor:
    """For all classes, in a dimension before the last, or for those of ``labels``, which broadcast to the inputs."""
    products = [TF.linear(x, weight) for x, weight in zip(inputs, weights, strict=True)]
    hidden = reduce(torch.add, products)
    terms = terms_of_classes(class_weight, bias)
    if labels is None:
        return ACTIVATIONS[activation](hidden.unsqueeze(-2) + terms)
    return ACTIVATIONS[activation](hidden + TF.embedding(labels, terms))
