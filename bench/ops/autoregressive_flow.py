"""One step of an inverse autoregressive flow: a whole masked network and the gated affine step on top of it."""

from __future__ import annotations

from torch import Tensor

from .. import networks
from ..task import Case, Function, Shape, Task

# By the widths of the hidden layers: rows are points, columns features.
SHAPES = {"320-320": (Shape(128, 32),), "1920-1920": (Shape(128, 32), Shape(1024, 64))}


def _fastvae(case: Case, impl: str) -> Function:
    from fastvae.ops.autoregressive_flow import autoregressive_flow

    structure = networks.find_structure(case)

    def run(z: Tensor, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        return autoregressive_flow(z, None, networks.parameters(tensors), structure, kind=networks.KIND, impl=impl)

    return run


TASKS = tuple(
    Task(
        op="autoregressive_flow",
        entry="flow",
        variant=variant,
        inputs=networks.inputs,
        fastvae=_fastvae,
        reference=networks.build_plain_flow,
        work=networks.work,
        check=networks.check_flow,
        shapes={"cpu": shapes, "cuda": shapes},
        dtypes={"cpu": ("float32",), "cuda": ("float32", "bfloat16")},
        sampled=False,
    )
    for variant, shapes in SHAPES.items()
)
