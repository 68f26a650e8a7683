"""Bernoulli units: a sample with its log-probability, and the gradient of the logits."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..gaussian import CHECKED_ROWS, describe_difference, options
from ..task import Case, Function, Inputs, Peer, Shape, Task, Work

# The 200 units of a sigmoid belief network: batches of 50, 24 and 20 samples each, and 50 of 100 images.
CPU_SHAPES = (Shape(50, 200), Shape(480, 200), Shape(1000, 200), Shape(5000, 200), Shape(100, 200, samples=50))
SHAPES = {"cpu": CPU_SHAPES, "cuda": (*CPU_SHAPES, Shape(65536, 1024))}


def _inputs(case: Case, generator: torch.Generator) -> Inputs:
    return (torch.randn(case.shape.rows, case.shape.columns, **options(case, generator)),)


def _fastvae_sample(case: Case, impl: str) -> Function:
    from fastvae import functional

    shape = case.shape.sample_shape
    return lambda logits: functional.bernoulli_sample(logits, shape, impl=impl)


# Called without the library's checks and dispatch, so that the times are those of plain PyTorch code.
def _reference_sample(case: Case) -> Function:
    from fastvae.reference import bernoulli

    shape = case.shape.sample_shape
    return lambda logits: bernoulli.sample(logits, shape, False, None, None)


def _peer_sample(case: Case) -> Function:
    shape = torch.Size(case.shape.sample_shape)

    def run(logits: Tensor) -> tuple[Tensor, Tensor]:
        units = torch.distributions.Bernoulli(logits=logits, validate_args=False)
        q = torch.distributions.Independent(units, 1, validate_args=False)
        b = q.sample(shape)
        return b, q.log_prob(b)

    return run


def _work(case: Case) -> Work:
    logits = case.shape.rows * case.shape.columns
    units, densities = case.shape.draws * logits, case.shape.draws * case.shape.rows
    # logits -> b, log_q
    if case.mode == "fwd":
        return Work((logits + units) * case.itemsize + densities * case.density_itemsize, 4 * logits + 3 * units)
    # Then d_log_q, b, logits -> d_logits
    read = (3 * logits + 2 * units) * case.itemsize + 2 * densities * case.density_itemsize
    return Work(read, 8 * logits + 5 * units)


def _check(case: Case, inputs: Inputs, outputs: Any) -> str | None:
    """Units are 0 or 1, on as often as they should be, and have their log-probability."""
    from fastvae.reference import bernoulli

    logits = inputs[0].detach()[:CHECKED_ROWS].double()
    b, log_q = outputs[0][..., :CHECKED_ROWS, :].double(), outputs[1][..., :CHECKED_ROWS]
    if not ((b == 0) | (b == 1)).all():
        return "a unit is neither 0 nor 1"
    probability = torch.sigmoid(logits).expand_as(b)
    spread = (probability * (1 - probability)).sum().sqrt().item()
    if abs((b - probability).sum().item()) > 6 * spread + 1:
        return "units are on too often, or too rarely"
    return describe_difference(case, "log_q", log_q, bernoulli.log_prob(logits, b))


TASKS = (
    Task(
        op="bernoulli",
        entry="sample",
        inputs=_inputs,
        fastvae=_fastvae_sample,
        reference=_reference_sample,
        peers={"distributions": Peer(_peer_sample)},
        work=_work,
        check=_check,
        shapes=SHAPES,
    ),
)
