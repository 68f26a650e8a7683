"""One masked layer between two hidden layers of a network over 32 features.

The provider ``dense`` multiplies the whole weight, as a layer without a mask does.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from .. import gaussian
from ..task import Case, Function, Inputs, Peer, Shape, Task, Work

# Rows, and columns for both inputs and outputs.
CPU_SHAPES = (Shape(128, 320), Shape(128, 1920), Shape(1024, 1920))
SHAPES = {"cpu": CPU_SHAPES, "cuda": (*CPU_SHAPES, Shape(8192, 1920))}
_FEATURES = 32


def _degrees(case: Case) -> tuple[Tensor, Tensor]:
    from fastvae.structure import spread_degrees

    degrees = torch.tensor(spread_degrees(case.shape.columns, _FEATURES, False), device=case.device)
    return degrees, degrees.clone()


def _inputs(case: Case, generator: torch.Generator) -> Inputs:
    options, width = gaussian.options(case, generator), case.shape.columns
    weight = torch.randn(width, width, **options) / math.sqrt(width)
    return gaussian.points(case, generator), weight, torch.randn(width, **options)


def _fastvae(case: Case, impl: str) -> Function:
    from fastvae import functional as ours

    ins, outs = _degrees(case)
    return lambda x, weight, bias: ours.masked_linear(x, weight, bias, in_degrees=ins, out_degrees=outs, impl=impl)


def _reference(case: Case) -> Function:
    """With the mask made once, as a module keeps it in a buffer."""
    ins, outs = _degrees(case)
    mask = (ins <= outs.unsqueeze(-1)).to(case.torch_dtype)
    return lambda x, weight, bias: functional.linear(x, weight * mask, bias)


def _check(case: Case, inputs: Inputs, outputs: Any) -> str | None:
    x, weight, bias = (t.detach().double() for t in inputs)
    ins, outs = _degrees(case)
    expected = functional.linear(x[: gaussian.CHECKED_ROWS], weight * (ins <= outs.unsqueeze(-1)), bias)
    return gaussian.describe_difference(case, "y", outputs[: gaussian.CHECKED_ROWS], expected)


def _work(case: Case) -> Work:
    """Reads and multiplies only the weights that count; writes d_weight with its zeros."""
    rows, width = case.shape.rows, case.shape.columns
    ins, outs = _degrees(case)
    weights = int((ins <= outs.unsqueeze(-1)).sum())
    # x, weight, bias -> y
    elements, flops = 2 * rows * width + weights + width, rows * (2 * weights + width)
    if case.mode == "fwd":
        return Work(elements * case.itemsize, flops)
    # Then d_y, x, weight -> d_x, d_weight, d_bias
    elements += 3 * rows * width + weights + width * width + width
    return Work(elements * case.itemsize, rows * (6 * weights + 2 * width))


TASKS = (
    Task(
        op="masked_linear",
        entry="linear",
        inputs=_inputs,
        fastvae=_fastvae,
        reference=_reference,
        peers={"dense": Peer(lambda case: functional.linear, comparable=False)},
        work=_work,
        check=_check,
        shapes=SHAPES,
        sampled=False,
    ),
)
