"""Masked networks: their structure, inputs, least work, and the plain PyTorch that everybody writes for them."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from . import gaussian
from .task import Case, Function, Inputs, Work

KIND = "gated"


def find_hidden_features(case: Case) -> tuple[int, ...]:
    """The variant ``"512-512"`` names the widths of the hidden layers."""
    return tuple(map(int, case.variant.split("-")))


def find_structure(case: Case) -> Any:
    return _build_structure(case.shape.columns, find_hidden_features(case))


@functools.lru_cache(maxsize=8)
def _build_structure(features: int, widths: tuple[int, ...]) -> Any:
    from fastvae.structure import MadeStructure, hidden_degrees_of

    return MadeStructure(features, hidden_degrees_of(widths, features, False), tuple(range(features)))


def make_masks(case: Case) -> list[Tensor]:
    return [inputs <= outputs.unsqueeze(-1) for inputs, outputs in pairwise(find_structure(case).degree_tensors())]


def inputs(case: Case, generator: torch.Generator) -> Inputs:
    """z, weights and biases of all layers; the last layer is small, so that the step is well conditioned."""
    options = gaussian.options(case, generator)
    widths = [len(degrees) for degrees in find_structure(case).degrees]
    weights = [torch.randn(o, i, **options) / math.sqrt(i) for i, o in pairwise(widths)]
    weights[-1] *= 0.1
    biases = [0.1 * torch.randn(width, **options) for width in widths[1:]]
    return (gaussian.points(case, generator), *weights, *biases)


def parameters(tensors: Sequence[Tensor]) -> Any:
    """Weights and biases as the library takes them."""
    from fastvae.reference.made import MadeParameters

    layers = len(tensors) // 2
    return MadeParameters(tensors[:layers], tensors[layers:], [None] * layers)


def build_plain_flow(case: Case) -> Function:
    """The step in plain PyTorch with masks made once, as a module with a mask in a buffer runs it."""
    from torch.nn import functional

    from fastvae.reference.affine_flow import affine_flow

    kept = [mask.to(case.device, case.torch_dtype) for mask in make_masks(case)]
    layers = len(kept)

    def run(z: Tensor, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        h = z
        for i, (weight, mask, bias) in enumerate(zip(tensors[:layers], kept, tensors[layers:], strict=True)):
            h = functional.linear(h, weight * mask, bias)
            if i < layers - 1:
                h = functional.elu(h)
        shift, scale_logit = h.chunk(2, -1)
        return affine_flow(z, shift, scale_logit, KIND)

    return run


def run_reference_flow(z: Tensor, tensors: Sequence[Tensor], case: Case) -> tuple[Tensor, Tensor]:
    """The step of the first rows in float64, by the library's reference."""
    from fastvae.reference.made import autoregressive_flow

    exact = parameters([t.detach().double() for t in tensors])
    rows = z[: gaussian.CHECKED_ROWS].detach().double()
    return autoregressive_flow(rows, None, exact, find_structure(case), KIND)


def check_flow(case: Case, inputs: Inputs, outputs: Any) -> str | None:
    out, log_det = (t[: gaussian.CHECKED_ROWS] for t in outputs)
    expected, expected_log_det = run_reference_flow(inputs[0], inputs[1:], case)
    return gaussian.describe_difference(case, "out", out, expected) or gaussian.describe_difference(
        case, "log_det", log_det, expected_log_det
    )


def check_inverse(case: Case, inputs: Inputs, outputs: Any) -> str | None:
    """Checks that the reference's forward step takes the result back to z."""
    x, log_det = outputs
    z, minus_log_det = run_reference_flow(x, inputs[1:], case)
    return gaussian.describe_difference(case, "forward of the result", inputs[0][: gaussian.CHECKED_ROWS], z) or (
        gaussian.describe_difference(case, "log_det", log_det[: gaussian.CHECKED_ROWS], -minus_log_det)
    )


def work(case: Case) -> Work:
    """The work of a step in either direction: reads each weight that counts once a pass, multiplies it once a row.

    Masked weights add work only to the gradient of the weights, whose zeros must be written.
    """
    rows, features = case.shape.rows, case.shape.columns
    layers = make_masks(case)
    weights, whole = sum(int(mask.sum()) for mask in layers), sum(mask.numel() for mask in layers)
    units = sum(mask.shape[0] for mask in layers)
    # Products; an activation for each unit; the affine step.
    flops = rows * (2 * weights + 2 * units + 6 * features)
    elements = 2 * rows * features + weights + units
    if case.mode == "fwd":
        return Work(elements * case.itemsize + rows * case.density_itemsize, flops)
    # Then the same, the upstream gradients -> those of z, weights and biases; each product twice.
    elements += 3 * rows * features + weights + 2 * units + whole
    return Work(elements * case.itemsize + 2 * rows * case.density_itemsize, 3 * flops)
