"""A decoder's log-likelihood and its gradient to the latents, and Hessian products: latent editing and inference."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .. import gaussian
from ..decoder import FEATURES, PIXELS, build_decoder, count_weights, log_prob, widths_of
from ..task import Case, Function, Inputs, Peer, Shape, Task, Work

# Rows, and units of each of the two hidden layers.
ROWS = (Shape(1, 400), Shape(16, 400), Shape(128, 400), Shape(4096, 400))
_CHECKED_ROWS = 16


def _points(case: Case, generator: torch.Generator) -> Inputs:
    return (torch.randn(case.shape.rows, FEATURES, **gaussian.options(case, generator)),)


def _points_and_vectors(case: Case, generator: torch.Generator) -> Inputs:
    return *_points(case, generator), *_points(case, generator)


def _fastvae(name: str) -> Callable[[Case, str], Function]:
    def build(case: Case, impl: str) -> Function:
        from fastvae import functional as ours

        decoder, function = build_decoder(case), getattr(ours, name)
        return lambda *points: function(*points, *decoder, activation="elu", impl=impl)

    return build


def _reference(name: str) -> Callable[[Case], Function]:
    def build(case: Case) -> Function:
        from fastvae.reference import latent_gradient

        decoder, function = build_decoder(case), getattr(latent_gradient, name)
        return lambda *points: function(*points, *decoder, 1, "elu", "bernoulli")

    return build


def _differentiate(z: Tensor, v: Tensor | None, decoder: tuple[Any, ...]) -> tuple[Tensor, ...]:
    with torch.enable_grad():
        z = z.detach().requires_grad_()
        log_p = log_prob(z, *decoder)
        (gradient,) = torch.autograd.grad(log_p.sum(), z, create_graph=v is not None)
        if v is None:
            return log_p.detach(), gradient
        (product,) = torch.autograd.grad(gradient, z, v)
    return log_p.detach(), gradient.detach(), product


def _autograd(case: Case) -> Function:
    decoder = build_decoder(case)
    return lambda z, v=None: _differentiate(z, v, decoder)


def _check(case: Case, inputs: Inputs, outputs: Any) -> str | None:
    weights, biases, x = build_decoder(case)
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
    weights, rows = count_weights(case), case.shape.rows
    # weights, biases, x, z (and v) -> log_p, gradient (and product)
    elements = weights + sum(widths_of(case)[1:]) + rows * (PIXELS + 2 * streams * FEATURES + 1)
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
