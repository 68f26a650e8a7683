"""The last layer of a decoder with the likelihood of binary images: importance samples, and a training step of many."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from .. import gaussian
from ..task import Case, Function, Inputs, Shape, Task, Work

# Samples, images and hidden units.
CPU_SHAPES = (Shape(100, 400, 128), Shape(100, 200, 50))
SHAPES = {"cpu": CPU_SHAPES, "cuda": (*CPU_SHAPES, Shape(512, 400, 128))}
PIXELS = 784


def _inputs(case: Case, generator: torch.Generator) -> Inputs:
    options, width = gaussian.options(case, generator), case.shape.columns
    h = torch.randn(case.shape.draws, case.shape.rows, width, **options).relu()
    weight = torch.randn(PIXELS, width, **options) / math.sqrt(width)
    return h, weight, torch.randn(PIXELS, **options)


def _images(case: Case) -> Tensor:
    generator = torch.Generator(case.device).manual_seed(1)
    return torch.rand(case.shape.rows, PIXELS, device=case.device, generator=generator) < 0.13


def _fastvae(case: Case, impl: str) -> Function:
    from fastvae import functional as ours

    x = _images(case).to(case.torch_dtype)
    return lambda h, weight, bias: ours.linear_bernoulli_log_prob(h, weight, bias, x, impl=impl)


def _reference(case: Case) -> Function:
    from fastvae.likelihoods import bernoulli_log_prob

    x = _images(case).to(case.torch_dtype)
    return lambda h, weight, bias: bernoulli_log_prob(x, functional.linear(h, weight, bias))


def _check(case: Case, inputs: Inputs, outputs: Any) -> str | None:
    h, weight, bias = (t.detach().double() for t in inputs)
    logits = functional.linear(h[0], weight, bias)
    expected = (_images(case) * logits - functional.softplus(logits, threshold=40.0)).sum(-1)
    return gaussian.describe_difference(case, "log_p", outputs[0], expected)


def _work(case: Case) -> Work:
    """One product forward, and two backward; the logits need not pass through memory."""
    rows, width = case.shape.draws * case.shape.rows, case.shape.columns
    weights = PIXELS * width
    # h, weight, bias, x -> log_p
    elements, flops = rows * width + weights + PIXELS + case.shape.rows * PIXELS + rows, 2 * rows * weights
    if case.mode == "fwd":
        return Work(elements * case.itemsize, flops)
    # Then all of these and d_log_p -> d_h, d_weight, d_bias
    elements = 2 * elements + rows * width + weights + PIXELS
    return Work(elements * case.itemsize, 3 * flops)


TASKS = (
    Task(
        op="linear_bernoulli",
        entry="log_prob",
        inputs=_inputs,
        fastvae=_fastvae,
        reference=_reference,
        work=_work,
        check=_check,
        shapes=SHAPES,
    ),
)
