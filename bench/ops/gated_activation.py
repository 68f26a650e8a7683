"""The gate of a PixelCNN's layer, conditioned on a vector, at the sizes of three published networks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import gaussian
from ..task import Case, Function, Inputs, Shape, Task, Work

# Variants are the channels of the input; rows are images, columns the pixels of each side.
SHAPES = {"64": (Shape(100, 28),), "320": (Shape(16, 32),), "768": (Shape(48, 64),)}
_LAST = "_channels_last"
_CHECKED_IMAGES = 2


def _channels(case: Case) -> int:
    return int(case.variant.removesuffix(_LAST))


def _inputs(case: Case, generator: torch.Generator) -> Inputs:
    options, side, channels = gaussian.options(case, generator), case.shape.columns, _channels(case)
    x = torch.randn((case.shape.rows, channels, side, side), **options)
    if case.variant.endswith(_LAST):
        x = x.contiguous(memory_format=torch.channels_last)
    return x, torch.randn((case.shape.rows, channels), **options)


def _fastvae(case: Case, impl: str) -> Function:
    from fastvae.ops.gated_activation import gated_activation

    return lambda x, condition: gated_activation(x, condition, impl=impl)


def _gate(x: Tensor, condition: Tensor) -> Tensor:
    from fastvae.reference.gated_activation import gated_activation

    return gated_activation(x, condition[:, :, None, None], "tanh")


def _reference(case: Case) -> Function:
    return _gate


def _check(case: Case, inputs: Inputs, outputs: Any) -> str | None:
    expected = _gate(*(t[:_CHECKED_IMAGES].detach().double() for t in inputs))
    return gaussian.describe_difference(case, "y", outputs[:_CHECKED_IMAGES], expected)


def _work(case: Case) -> Work:
    """For each number of y two sums, two transcendental functions and one product; 8 more for the gradients."""
    vectors = case.shape.rows * _channels(case)
    x = vectors * case.shape.columns**2
    # x and the condition -> y
    if case.mode == "fwd":
        return Work((x + x // 2 + vectors) * case.itemsize, 5 * x // 2)
    # Then the same and d_y -> d_x and d_condition, which sums it up
    return Work((4 * x + 3 * vectors) * case.itemsize, 18 * x // 2 + x)


TASKS = tuple(
    Task(
        op="gated_activation",
        entry="gate",
        variant=channels + layout,
        inputs=_inputs,
        fastvae=_fastvae,
        reference=_reference,
        work=_work,
        check=_check,
        shapes={"cpu": shapes, "cuda": shapes},
        sampled=False,
    )
    for channels, shapes in SHAPES.items()
    for layout in ("", _LAST)
)
