"""A decoder's log-likelihood and its gradient to the latents, and Hessian products: latent editing and inference."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from .. import gaussian
from ..task import Case, Function, Inputs, Peer, Shape, Task, Work

# Rows, and units of each of the two hidden layers.
ROWS = (Shape(1, 400), Shape(16, 400), Shape(128, 400), Shape(4096, 400))
FEATURES, PIXELS = 32, 784
_CHECKED_ROWS = 16


def _widths(case: Case) -> tuple[int, ...]:
    return FEATURES, case.shape.columns, case.shape.columns, PIXELS


def _products(case: Case) -> int:
    widths = _widths(case)
    return sum(before * after for before, after in itertools.pairwise(widths))


def _points(case: Case, generator: torch.Generator) -> Inputs:
    return (torch.randn(case.shape.rows, FEATURES, **gaussian.options(case, generator)),)


def _points_and_vectors(case: Case, generator: torch.Generator) -> Inputs:
    return *_points(case, generator), *_points(case, generator)


def _decoder(case: Case) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """Weights, biases and images."""
    widths = _widths(case)
    generator = torch.Generator(case.device).manual_seed(1)
    options = {"device": case.device, "dtype": case.torch_dtype, "generator": generator}
    weights = [
        torch.randn(after, before, **options) / math.sqrt(before) for before, after in itertools.pairwise(widths)
    ]
    biases = [torch.randn(width, **options) for width in widths[1:]]
    x = torch.rand(case.shape.rows, PIXELS, device=case.device, generator=generator) < 0.13
    return weights, biases, x.to(case.torch_dtype)


def _fastvae(name: str) -> Callable[[Case, str], Function]:
    def build(case: Case, impl: str) -> Function:
        from fastvae import functional as ours

        decoder, function = _decoder(case), getattr(ours, name)
        return lambda *points: function(*points, *decoder, activation="elu", impl=impl)

    return build


def _reference(name: str) -> Callable[[Case], Function]:
    def build(case: Case) -> Function:
        from fastvae.reference import latent_gradient

        decoder, function = _decoder(case), getattr(latent_gradient, name)
        return lambda *points: function(*points, *decoder, 1, "elu", "bernoulli")

    return build


def _log_prob(z: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], x: Tensor) -> Tensor:
    h = z
    for weight, bias in zip(weights[:-1], biases, strict=False):
        h = functional.elu(functional.linear(h, weight, bias))
    logits = functional.linear(h, weights[-1], biases[-1])
    return -functional.binary_cross_entropy_with_logits(logits, x, reduction="none").sum(-1)


def _differentiate(z: Tensor, v: Tensor | None, decoder: tuple[Any, ...]) -> tuple[Tensor, ...]:
    with torch.enable_grad():
        z = z.detach().requires_grad_()
        log_p = _log_prob(z, *decoder)
        (gradient,) = torch.autograd.grad(log_p.sum(), z, create_graph=v is not None)
        if v is None:
            return log_p.detach(), gradient
        (product,) = torch.autograd.grad(gradient, z, v)
    return log_p.detach(), gradient.detach(), product


def _autograd(case: Case) -> Function:
    decoder = _decoder(case)
    return lambda z, v=None: _differentiate(z, v, decoder)


def _check(case: Case, inputs: Inputs, outputs: Any) -> str | None:
    weights, biases, x = _decoder(case)
    decoder = [w.double() for w in weights], [b.double() for b in biases], x[:_CHECKED_ROWS].double()
    z, v = (*(t[:_CHECKED_ROWS].detach().double() for t in inputs), None)[:2]
    for name, got, expected in zip(
        ("log_p", "gradient", "product"), outputs, _differentiate(z, v, decoder), strict=False
    ):
        if problem := gaussian.describe_difference(case, name, got[:_CHECKED_ROWS], expected):
            return problem
    return None


def _work(case: Case) -> Work:
    """A product forward and one back for each layer, of values and, beside them, of tangents."""
    streams = 2 if case.entry == "hessian_product" else 1
    weights, rows = _products(case), case.shape.rows
    # weights, biases, x, z (and v) -> log_p, gradient (and product)
    elements = weights + sum(_widths(case)[1:]) + rows * (PIXELS + 2 * streams * FEATURES + 1)
    return Work(elements * case.itemsize, 4 * streams * rows * weights)


TASKS = tuple(
    Task(
        op="latent_gradient",
        entry=entry,
        inputs=inputs,
        fastvae=_fastvae(name),
        reference=_reference(name),
        work=_work,
        check=_check,
        shapes={"cpu": ROWS, "cuda": ROWS},
        modes=("fwd",),
        sampled=False,
        peers={"naive": Peer(_autograd)},
    )
    for entry, name, inputs in (
        ("gradient", "latent_gradient", _points),
        ("hessian_product", "latent_hessian_product", _points_and_vectors),
    )
)
