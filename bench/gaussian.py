"""Inputs and checks that the Gaussian ops share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .task import Case, Inputs, Shape

CPU_SHAPES = (Shape(128, 32), Shape(1024, 64), Shape(4096, 1024), Shape(100, 50, samples=50))

CHECKED_ROWS = 32
# Relative, by bytes of an element: far above rounding at these sizes, far below what a wrong formula leaves.
_TOLERANCE = {2: 5e-2, 4: 1e-3, 8: 1e-3}

Check = Callable[[Case, Inputs, Any], str | None]


def options(case: Case, generator: torch.Generator) -> dict[str, Any]:
    return {"dtype": case.torch_dtype, "device": case.device, "generator": generator}


def location_and_scale(case: Case, generator: torch.Generator) -> Inputs:
    """mu ~ N(0, 1), log_sigma ~ N(-1, 0.01): scales near e^-1 keep triangular factors well conditioned."""
    size = (case.shape.rows, case.shape.columns)
    mu = torch.randn(size, **options(case, generator))
    return mu, torch.randn(size, **options(case, generator)) * 0.1 - 1.0


def points(case: Case, generator: torch.Generator) -> Tensor:
    shape = case.shape
    return torch.randn((*shape.sample_shape, shape.rows, shape.columns), **options(case, generator))


def check_rsample(log_prob: Callable[..., Tensor]) -> Check:
    """Checks that log q of the first rows is ``log_prob`` of their sample, in float64."""

    def check(case: Case, inputs: Inputs, outputs: Any) -> str | None:
        z, log_q = (outputs[0][..., :CHECKED_ROWS, :], outputs[1][..., :CHECKED_ROWS])
        if not (torch.isfinite(z).all() and torch.isfinite(log_q).all()):
            return "the sample or its log-density is not finite"
        if case.itemsize < 4:
            # The density belongs to the sample before its rounding to a half type.
            return None
        return describe_difference(case, "log_q", log_q, log_prob(z.double(), *_take_first_rows(inputs)))

    return check


def check_log_prob(log_prob: Callable[..., Tensor]) -> Check:
    def check(case: Case, inputs: Inputs, outputs: Any) -> str | None:
        z, *parameters = inputs
        expected = log_prob(z[..., :CHECKED_ROWS, :].double(), *_take_first_rows(parameters))
        return describe_difference(case, "log_q", outputs[..., :CHECKED_ROWS], expected)

    return check


def check_kl(kl: Callable[..., Tensor]) -> Check:
    def check(case: Case, inputs: Inputs, outputs: Any) -> str | None:
        return describe_difference(case, "kl", outputs[:CHECKED_ROWS], kl(*_take_first_rows(inputs)))

    return check


def check_rsample_with_kl(log_prob: Callable[..., Tensor], kl: Callable[..., Tensor]) -> Check:
    sample, divergence = check_rsample(log_prob), check_kl(kl)
    return lambda case, inputs, outputs: sample(case, inputs, outputs) or divergence(case, inputs, outputs[2])


def _take_first_rows(parameters: Any) -> list[Tensor]:
    return [t[:CHECKED_ROWS].detach().double() for t in parameters]


def describe_difference(case: Case, name: str, got: Tensor, expected: Tensor) -> str | None:
    error = (got.detach().double() - expected).abs().max().item()
    scale = expected.abs().max().item()
    # Written so that a NaN fails.
    return (
        None
        if error <= _TOLERANCE[case.itemsize] * max(scale, 1.0)
        else f"{name} is off by {error:.3g} at a scale of {scale:.3g}"
    )
