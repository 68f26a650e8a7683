"""Log-likelihood of binary images under a whole decoder: importance samples, and a training step's batch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import gaussian
from ..decoder import FEATURES, PIXELS, build_decoder, count_weights, log_prob, widths_of
from ..task import Case, Function, Inputs, Shape, Task, Work

# Samples, images, and units of each of the two hidden layers.
CPU_SHAPES = (Shape(128, 400), Shape(100, 400, 128), Shape(1000, 400, 1))
SHAPES = {"cpu": CPU_SHAPES, "cuda": (*CPU_SHAPES, Shape(512, 400, 128))}


def _inputs(case: Case, generator: torch.Generator) -> Inputs:
    options = gaussian.options(case, generator)
    points = torch.randn(*case.shape.sample_shape, case.shape.rows, FEATURES, **options)
    weights, biases, _ = build_decoder(case)
    return points, *weights, *biases


def _split(layers: tuple[Tensor, ...]) -> tuple[list[Tensor], list[Tensor]]:
    count = len(layers) // 2
    return list(layers[:count]), list(layers[count:])


def _fastvae(case: Case, impl: str) -> Function:
    from fastvae import functional as ours

    x = build_decoder(case)[2]
    return lambda z, *layers: ours.mlp_bernoulli_log_prob(z, *_split(layers), x, activation="elu", impl=impl)


def _reference(case: Case) -> Function:
    x = build_decoder(case)[2]
    return lambda z, *layers: log_prob(z, *_split(layers), x)


def _check(case: Case, inputs: Inputs, outputs: Any) -> str | None:
    z, *layers = (t.detach().double() for t in inputs)
    first = (0,) * len(case.shape.sample_shape)
    expected = log_prob(z[first], *_split(tuple(layers)), build_decoder(case)[2].double())
    return gaussian.describe_difference(case, "log_p", outputs[first], expected)


def _work(case: Case) -> Work:
    """A product for each layer forward, and two backward; the activations need not pass through memory."""
    rows, weights = case.shape.draws * case.shape.rows, count_weights(case)
    # layers, x, z -> log_p
    layers = weights + sum(widths_of(case)[1:])
    elements, flops = layers + case.shape.rows * PIXELS + rows * (FEATURES + 1), 2 * rows * weights
    if case.mode == "fwd":
        return Work(elements * case.itemsize, flops)
    # Then all of these and d_log_p -> d_z, d_layers
    return Work((2 * elements + rows * FEATURES + layers) * case.itemsize, 3 * flops)


TASKS = (
    Task(
        op="mlp_bernoulli",
        entry="log_prob",
        inputs=_inputs,
        fastvae=_fastvae,
        reference=_reference,
        work=_work,
        check=_check,
        shapes=SHAPES,
    ),
)
