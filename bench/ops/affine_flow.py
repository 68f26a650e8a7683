"""The gated affine step with its log-determinant, and its inverse."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import gaussian
from ..task import Case, Function, Inputs, Shape, Task, Work

CPU_SHAPES = (Shape(4096, 32), Shape(65536, 64))
SHAPES = {"cpu": CPU_SHAPES, "cuda": (*CPU_SHAPES, Shape(65536, 1024))}


def _inputs(case: Case, generator: torch.Generator) -> Inputs:
    z, shift, scale_logit = (gaussian.points(case, generator) for _ in range(3))
    return z, shift, scale_logit


def _fastvae(case: Case, impl: str) -> Function:
    from fastvae import functional

    inverse = case.entry == "inverse"
    return lambda z, shift, scale: functional.affine_flow(z, shift, scale, inverse=inverse, impl=impl)


def _step(z: Tensor, shift: Tensor, scale_logit: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
    from fastvae.reference import affine_flow

    return affine_flow.affine_flow(z, shift, scale_logit, "gated", inverse)


def _reference(case: Case) -> Function:
    inverse = case.entry == "inverse"
    return lambda z, shift, scale_logit: _step(z, shift, scale_logit, inverse)


def _check(case: Case, inputs: Inputs, outputs: Any) -> str | None:
    rows = [t[: gaussian.CHECKED_ROWS].detach().double() for t in inputs]
    for name, got, expected in zip(("out", "log_det"), outputs, _reference(case)(*rows), strict=True):
        wrong = gaussian.describe_difference(case, name, got[: gaussian.CHECKED_ROWS], expected)
        if wrong:
            return wrong
    return None


def _work(case: Case) -> Work:
    elements, rows = case.shape.rows * case.shape.columns, case.shape.rows
    # z, shift, scale_logit -> out, log_det
    if case.mode == "fwd":
        return Work(4 * elements * case.itemsize + rows * case.density_itemsize, 8 * elements)
    # Then the same, d_out, d_log_det -> the gradients of all three
    return Work(11 * elements * case.itemsize + 2 * rows * case.density_itemsize, 20 * elements)


TASKS = tuple(
    Task(
        op="affine_flow",
        entry=entry,
        inputs=_inputs,
        fastvae=_fastvae,
        reference=_reference,
        work=_work,
        check=_check,
        shapes=SHAPES,
        sampled=False,
    )
    for entry in ("forward", "inverse")
)
