"""Single masked layers: degrees of every kind, and their products and norms as problems for the oracle."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

import fastvae.functional as F
from fastvae.ops.masked_linear import masked_norm
from tests.support.oracle import Problem

# Degrees of inputs and of outputs of a single layer, and why.
DEGREES: dict[str, Callable[[int, int], tuple[Tensor, Tensor]]] = {
    "staircase": lambda i, o: (spread(i, 6), spread(o, 6)),  # as in a network: ascending, repeated
    "unsorted": lambda i, o: (spread(i, 6)[torch.randperm(i)], spread(o, 6)[torch.randperm(o)]),
    "distinct": lambda i, o: (torch.randperm(i), torch.randperm(o)),
    "reversed": lambda i, o: (spread(i, 6).flip(0), spread(o, 6).flip(0)),
    "lonely rows": lambda i, o: (spread(i, 6) + 2, spread(o, 6)),  # outputs that no input reaches
    "all connected": lambda i, o: (torch.zeros(i, dtype=torch.int64), torch.full((o,), 3)),
    "none connected": lambda i, o: (torch.full((i,), 5), torch.zeros(o, dtype=torch.int64)),
    "below zero": lambda i, o: (spread(i, 6) - 4, spread(o, 6) - 4),
}


def spread(width: int, degrees: int) -> Tensor:
    return torch.arange(width) * degrees // width


def layer_inputs(
    batch: Sequence[int], in_features: int, out_features: int, *, bias: bool = True, weight_scale: bool = False
) -> list[Tensor]:
    """x, weight and, where wanted, bias and weight scale."""
    inputs = [torch.randn(*batch, in_features), torch.randn(out_features, in_features) / math.sqrt(in_features)]
    if bias:
        inputs.append(0.5 * torch.randn(out_features))
    if weight_scale:
        inputs.append(0.5 + torch.rand(out_features))
    return [t.requires_grad_() for t in inputs]


def layer_problem(
    inputs: list[Tensor],
    degrees: tuple[Tensor, Tensor],
    *,
    bias: bool = True,
    weight_scale: bool = False,
    activation: str | None = None,
) -> Problem:
    """``masked_linear`` as a function of the tensors of :func:`layer_inputs`."""

    def call(impl: str, p: list[Tensor]) -> tuple[Tensor, ...]:
        x, weight = p[:2]
        b = p[2] if bias else None
        scale = p[-1] if weight_scale else None
        ins, outs = (d.to(x.device) for d in degrees)
        options: dict[str, Any] = {"activation": activation, "weight_scale": scale, "impl": impl}
        return (F.masked_linear(x, weight, b, in_degrees=ins, out_degrees=outs, **options),)

    return Problem(call, inputs)


def norm_problem(weight: Tensor, degrees: tuple[Tensor, Tensor]) -> Problem:
    def call(impl: str, p: list[Tensor]) -> tuple[Tensor, ...]:
        ins, outs = (d.to(p[0].device) for d in degrees)
        return (masked_norm(p[0], in_degrees=ins, out_degrees=outs, impl=impl),)

    return Problem(call, [weight])
