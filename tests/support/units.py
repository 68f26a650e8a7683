"""Calls of Bernoulli units on random inputs, noise given."""

from __future__ import annotations

import torch
from torch import Tensor

import fastvae.functional as F
from tests.support.oracle import Problem


def unit_inputs(batch: tuple[int, ...], features: int, sample_shape: tuple[int, ...] = ()) -> tuple[Tensor, Tensor]:
    """Logits, with their gradient, and uniform numbers."""
    logits = 2.0 * torch.randn(*batch, features)
    return logits.requires_grad_(), torch.rand(*sample_shape, *batch, features)


def unit_problem(
    batch: tuple[int, ...], features: int, sample_shape: tuple[int, ...] = (), antithetic: bool = False
) -> Problem:
    """The log-probability of the units, which have no gradient themselves.

    The numbers that draw them are far from thresholds: rounding the logits turns no unit.
    """
    logits, _ = unit_inputs(batch, features)
    on = torch.rand(*sample_shape, *batch, features) < torch.sigmoid(logits.detach())
    uniforms = torch.where(on, 1.0 - 1e-6, 1e-6)

    def call(impl: str, p: list[Tensor]) -> tuple[Tensor, ...]:
        made = F.bernoulli_sample(*p, sample_shape, antithetic=antithetic, uniforms=uniforms.to(p[0].device), impl=impl)
        return (made[1],)

    return Problem(call, [logits])
