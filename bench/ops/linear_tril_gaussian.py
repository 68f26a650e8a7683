"""The last layer of an encoder with a sample of its full-covariance Gaussian, its log-density and its divergence."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from .. import gaussian
from ..task import Case, Function, Inputs, Shape, Task, Work

# Rows, features of the encoder and dimensions of the latent.
CPU_SHAPES = (Shape(400, 128, 256), Shape(400, 64, 512), Shape(400, 32, 128))
SHAPES = {"cpu": CPU_SHAPES, "cuda": (*CPU_SHAPES, Shape(400, 128, 4096))}
BOUNDS = (-7.0, 7.0)


def _outputs(case: Case) -> int:
    return case.shape.columns * (case.shape.columns + 3) // 2


def _inputs(case: Case, generator: torch.Generator) -> Inputs:
    """Log-sigma is near -1 and the factor small, so that solves in the check are well conditioned."""
    options, width, latents = gaussian.options(case, generator), case.shape.rows, case.shape.columns
    h = torch.randn(case.shape.draws, width, **options).relu()
    weight = torch.randn(_outputs(case), width, **options) * (0.1 / math.sqrt(width * latents))
    bias = torch.zeros(_outputs(case), dtype=case.torch_dtype, device=case.device)
    bias[latents : 2 * latents] = -1.0
    return h, weight, bias


def _fastvae(case: Case, impl: str) -> Function:
    from fastvae import functional as ours

    return lambda h, weight, bias: ours.linear_tril_gaussian_rsample_with_kl(
        h, weight, bias, log_sigma_bounds=BOUNDS, impl=impl
    )


def _parameters(case: Case, h: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    latents = case.shape.columns
    mu, log_sigma, tril = functional.linear(h, weight, bias).split([latents, latents, latents * (latents - 1) // 2], -1)
    return mu, log_sigma.clamp(*BOUNDS), tril


def _reference(case: Case) -> Function:
    from fastvae.reference import tril_gaussian

    return lambda *inputs: tril_gaussian.rsample_with_kl(*_parameters(case, *inputs), True, (), None, None, False)


def _check(case: Case, inputs: Inputs, outputs: Any) -> str | None:
    from fastvae.reference import tril_gaussian

    h, *layer = (t.detach().double() for t in inputs)
    rows = slice(gaussian.CHECKED_ROWS)
    found = _parameters(case, h[rows], *layer)
    z, log_q, kl = (t[rows] for t in outputs)
    wrong = gaussian.describe_difference(case, "kl", kl, tril_gaussian.kl(*found, True))
    if case.itemsize < 4:
        # The density belongs to the sample before its rounding to a half type.
        return wrong
    expected = tril_gaussian.log_prob(z.double(), *found, True)
    return wrong or gaussian.describe_difference(case, "log_q", log_q, expected)


def _work(case: Case) -> Work:
    """One product forward, and two backward; the factor need not pass through memory."""
    rows, width, latents, outputs = case.shape.draws, case.shape.rows, case.shape.columns, _outputs(case)
    triangles = rows * latents * (latents - 1) // 2
    # h, weight, bias -> z, log_q, kl
    elements, densities = rows * width + outputs * width + outputs + rows * latents, 2 * rows
    product = 2 * rows * outputs * width
    flops = product + 4 * triangles + 12 * rows * latents
    if case.mode == "fwd":
        return Work(elements * case.itemsize + densities * case.density_itemsize, flops)
    # Then h, weight, d_z, d_log_q, d_kl -> d_h, d_weight, d_bias
    elements += 2 * rows * width + 2 * outputs * width + outputs + rows * latents
    flops += 2 * product + 3 * triangles + 10 * rows * latents
    return Work(elements * case.itemsize + 2 * densities * case.density_itemsize, flops)


TASKS = (
    Task(
        op="linear_tril_gaussian",
        entry="rsample_with_kl",
        inputs=_inputs,
        fastvae=_fastvae,
        reference=_reference,
        work=_work,
        check=_check,
        shapes=SHAPES,
    ),
)
