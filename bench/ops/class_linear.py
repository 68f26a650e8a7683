"""The first layer of q(z | x, y) for ten classes, of pixels alone and beside an auxiliary variable.

The provider ``repeated`` is the usual way: every input ten times, a one-hot class beside each, one product for all.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from .. import gaussian
from ..task import Case, Function, Inputs, Peer, Shape, Task, Work

CLASSES = 10
# Features of the inputs. Rows of the shapes are images, columns hidden units.
VARIANTS = {"784": (784,), "784-100": (784, 100)}
SHAPES = {"cpu": (Shape(100, 500), Shape(500, 500)), "cuda": (Shape(100, 500), Shape(500, 512), Shape(4096, 512))}


def _sizes(case: Case) -> tuple[int, ...]:
    return VARIANTS[case.variant]


def _inputs(case: Case, generator: torch.Generator) -> Inputs:
    options, sizes, width = gaussian.options(case, generator), _sizes(case), case.shape.columns
    inputs = [torch.randn(case.shape.rows, size, **options) for size in sizes]
    weights = [torch.randn(width, size, **options) / math.sqrt(size) for size in sizes]
    return *inputs, *weights, torch.randn(width, CLASSES, **options), torch.randn(width, **options)


def _layer(case: Case, function: Any, **options: Any) -> Function:
    count = len(_sizes(case))

    def run(*tensors: Tensor) -> Tensor:
        y: Tensor = function(
            tensors[:count], tensors[count : 2 * count], *tensors[2 * count :], activation="softplus", **options
        )
        return y

    return run


def _fastvae(case: Case, impl: str) -> Function:
    from fastvae.ops.class_linear import class_linear

    return _layer(case, class_linear, impl=impl)


def _reference(case: Case) -> Function:
    from fastvae.reference.class_linear import class_linear

    return _layer(case, class_linear, labels=None)


def _repeated(case: Case) -> Function:
    count = len(_sizes(case))

    def run(*tensors: Tensor) -> Tensor:
        inputs, (weight, bias) = tensors[:count], tensors[count:]
        codes = torch.eye(CLASSES, dtype=weight.dtype, device=weight.device).repeat(case.shape.rows, 1)
        joined = torch.cat([*(x.repeat_interleave(CLASSES, 0) for x in inputs), codes], 1)
        return functional.softplus(functional.linear(joined, weight, bias)).view(case.shape.rows, CLASSES, -1)

    return run


def _join(case: Case, inputs: Inputs) -> Inputs:
    """The weights of the inputs and the classes as one matrix."""
    count = len(_sizes(case))
    return *inputs[:count], torch.cat(inputs[count:-1], 1), inputs[-1]


def _compile(case: Case) -> Function:
    return torch.compile(_repeated(case), dynamic=False)


def _check(case: Case, inputs: Inputs, outputs: Any) -> str | None:
    rows, count = gaussian.CHECKED_ROWS, len(_sizes(case))
    wide = [t.detach().double() for t in inputs]
    expected = _reference(case)(*(t[:rows] for t in wide[:count]), *wide[count:])
    return gaussian.describe_difference(case, "y", outputs[:rows], expected)


def _work(case: Case) -> Work:
    """The products of the inputs once, 2 operations for each number of y; backward twice the products and 3 more."""
    rows, width, sizes = case.shape.rows, case.shape.columns, sum(_sizes(case))
    inputs, weights, outputs = rows * sizes, (sizes + CLASSES + 1) * width, rows * CLASSES * width
    products = 2 * inputs * width
    # Inputs and weights -> y
    elements = inputs + weights + outputs
    if case.mode == "fwd":
        return Work(elements * case.itemsize, products + 2 * outputs)
    # Then all of these and d_y -> the gradients of inputs and weights
    return Work((2 * elements + outputs + inputs + weights) * case.itemsize, 3 * products + 5 * outputs)


TASKS = tuple(
    Task(
        op="class_linear",
        entry="layer",
        variant=variant,
        inputs=_inputs,
        fastvae=_fastvae,
        reference=_reference,
        peers={"repeated": Peer(_repeated, _join), "repeated_compile": Peer(_compile, _join)},
        work=_work,
        check=_check,
        shapes=SHAPES,
        sampled=False,
    )
    for variant in VARIANTS
)
