"""Two diagonal Gaussians merged by their precisions, as a level of a ladder VAE merges them: sample and densities."""

from __future__ import annotations

from typing import Any

import torch

from .. import gaussian
from ..task import Case, Function, Inputs, Shape, Task, Work

# With samples the prior has a row for each of them, and the first Gaussian one for all.
_CPU_SHAPES = (Shape(256, 64), Shape(256, 64, samples=50), Shape(4096, 1024))


def _inputs(case: Case, generator: torch.Generator) -> Inputs:
    mu, log_sigma = gaussian.location_and_scale(case, generator)
    prior_mu, prior_log_sigma = gaussian.points(case, generator), gaussian.points(case, generator) * 0.1
    return mu, log_sigma, prior_mu, prior_log_sigma


def _fastvae(case: Case, impl: str) -> Function:
    from fastvae import functional

    return lambda *parameters: functional.gaussian_merge_rsample(*parameters, impl=impl)


# Called without the library's checks and dispatch, so that the times are those of plain PyTorch code.
def _reference(case: Case) -> Function:
    from fastvae.reference import gaussian_merge

    return lambda *parameters: gaussian_merge.rsample(*parameters, None, None, False)


def _check(case: Case, inputs: Inputs, outputs: Any) -> str | None:
    from fastvae.reference import diag_gaussian, gaussian_merge

    rows = slice(gaussian.CHECKED_ROWS)
    mu, log_sigma, *prior = (t[..., rows, :].detach().double() for t in inputs)
    z, log_q, log_p = outputs[0][..., rows, :].detach().double(), outputs[1], outputs[2]
    if case.itemsize < 4:
        # The densities belong to the sample before its rounding to a half type.
        return None if torch.isfinite(z).all() else "the sample is not finite"
    merged = gaussian_merge.merge(mu, log_sigma, *prior)
    for name, got, expected in (
        ("log_q", log_q, diag_gaussian.log_prob(z, *merged)),
        ("log_p", log_p, diag_gaussian.log_prob(z, *prior)),
        ("kl", outputs[3], diag_gaussian.kl(*merged, *prior)),
    ):
        wrong = gaussian.describe_difference(case, name, got[..., rows], expected)
        if wrong:
            return wrong
    return None


def _work(case: Case) -> Work:
    shape = case.shape
    first, points = shape.rows * shape.columns, shape.draws * shape.rows
    numbers = points * shape.columns
    # Four parameters -> z, log_q, log_p, kl
    if case.mode == "fwd":
        return Work((2 * first + 3 * numbers) * case.itemsize + 3 * points * case.density_itemsize, 30 * numbers)
    # Then the same, d_z and the densities' -> the gradients of all four
    elements = 6 * first + 8 * numbers
    return Work(elements * case.itemsize + 6 * points * case.density_itemsize, 70 * numbers)


TASKS = (
    Task(
        op="gaussian_merge",
        entry="rsample",
        inputs=_inputs,
        fastvae=_fastvae,
        reference=_reference,
        work=_work,
        check=_check,
        shapes={"cpu": _CPU_SHAPES, "cuda": (*_CPU_SHAPES, Shape(65536, 1024))},
    ),
)
