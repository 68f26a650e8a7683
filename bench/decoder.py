"""A decoder of two hidden layers, as wide as a case has columns, and its data: what benchmarks of its ops share."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from .task import Case

FEATURES, PIXELS = 32, 784

Decoder = tuple[list[Tensor], list[Tensor], Tensor]


def widths_of(case: Case) -> tuple[int, ...]:
    """Units of the latents, the hidden layers and the data."""
    return FEATURES, case.shape.columns, case.shape.columns, PIXELS


def count_weights(case: Case) -> int:
    """Weights of all layers."""
    widths = widths_of(case)
    return sum(before * after for before, after in itertools.pairwise(widths))


def build_decoder(case: Case) -> Decoder:
    """Weights, biases and images."""
    widths = widths_of(case)
    generator = torch.Generator(case.device).manual_seed(1)
    options = {"device": case.device, "dtype": case.torch_dtype, "generator": generator}
    weights = [
        torch.randn(after, before, **options) / math.sqrt(before) for before, after in itertools.pairwise(widths)
    ]
    biases = [torch.randn(width, **options) for width in widths[1:]]
    x = torch.rand(case.shape.rows, PIXELS, device=case.device, generator=generator) < 0.13
    return weights, biases, x.to(case.torch_dtype)


def log_prob(z: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], x: Tensor) -> Tensor:
    """log p(x | z) as users of PyTorch write it."""
    h = z
    for weight, bias in zip(weights[:-1], biases, strict=False):
        h = functional.elu(functional.linear(h, weight, bias))
    logits = functional.linear(h, weights[-1], biases[-1])
    return -functional.binary_cross_entropy_with_logits(logits, x.expand_as(logits), reduction="none").sum(-1)
