"""Log-likelihood of binary images under a whole decoder, for importance samples."""

from __future__ import annotations

from typing import Any

import torch

from .. import gaussian
from ..decoder import FEATURES, PIXELS, build_decoder, count_weights, log_prob
from ..task import Case, Function, Inputs, Shape, Task, Work

# Samples, images, and units of each of the two hidden layers.
CPU_SHAPES = (Shape(100, 400, 128), Shape(1000, 400, 1))
SHAPES = {"cpu": CPU_SHAPES, "cuda": (*CPU_SHAPES, Shape(512, 400, 128))}


def _points(case: Case, generator: torch.Generator) -> Inputs:
    options = gaussian.options(case, generator)
    return (torch.randn(case.shape.draws, case.shape.rows, FEATURES, **options),)


def _fastvae(case: Case, impl: str) -> Function:
    from fastvae import functional as ours

    weights, biases, x = build_decoder(case)
    return lambda z: ours.mlp_bernoulli_log_prob(z, weights, biases, x, activation="elu", impl=impl)


def _reference(case: Case) -> Function:
    decoder = build_decoder(case)
    return lambda z: log_prob(z, *decoder)


def _check(case: Case, inputs: Inputs, outputs: Any) -> str | None:
    weights, biases, x = build_decoder(case)
    expected = log_prob(inputs[0][0].double(), [w.double() for w in weights], [b.double() for b in biases], x.double())
    return gaussian.describe_difference(case, "log_p", outputs[0], expected)


def _work(case: Case) -> Work:
    """One product for each layer; the activations need not pass through memory."""
    rows, weights = case.shape.draws * case.shape.rows, count_weights(case)
    # weights, x, z -> log_p
    return Work((weights + case.shape.rows * PIXELS + rows * (FEATURES + 1)) * case.itemsize, 2 * rows * weights)


TASKS = (
    Task(
        op="mlp_bernoulli",
        entry="log_prob",
        inputs=_points,
        fastvae=_fastvae,
        reference=_reference,
        work=_work,
        check=_check,
        shapes=SHAPES,
        modes=("fwd",),
    ),
)
