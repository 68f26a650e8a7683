"""A training step of density estimation by a masked autoregressive flow, beside zuko and nflows as their users run it.

All have five steps, with networks of two hidden layers of 512 units and ReLU.
"""

from __future__ import annotations

import importlib
import math
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .. import jobs
from ..task import Case, Function, Inputs, Peer, Shape, Task, Work

STEPS, WIDTH = 5, 512
SHAPES = (Shape(512, 64),)


def _points(case: Case, generator: torch.Generator) -> Inputs:
    size = (case.shape.rows, case.shape.columns)
    return (torch.randn(size, device=case.device, dtype=case.torch_dtype, generator=generator),)


def _fastvae(case: Case, impl: str) -> tuple[nn.Module, jobs.Loss]:
    from fastvae.nn import MaskedAutoregressiveFlow
    from fastvae.objectives import standard_normal_log_prob

    flow = MaskedAutoregressiveFlow(
        case.shape.columns, (WIDTH, WIDTH), steps=STEPS, kind="exp", activation="relu", impl=impl
    ).to(case.device, case.torch_dtype)

    def loss(x: Tensor) -> Tensor:
        z, log_det = flow.inverse(x)
        return -(standard_normal_log_prob(z) + log_det).mean()

    return flow, loss


def _zuko(case: Case) -> tuple[nn.Module, jobs.Loss]:
    flow = importlib.import_module("zuko").flows.MAF(
        case.shape.columns, transforms=STEPS, hidden_features=(WIDTH, WIDTH)
    )
    flow = flow.to(case.device, case.torch_dtype)
    return flow, lambda x: -flow().log_prob(x).mean()


def _nflows(case: Case) -> tuple[nn.Module, jobs.Loss]:
    transforms = importlib.import_module("nflows.transforms")
    distributions = importlib.import_module("nflows.distributions.normal")
    steps = []
    for _ in range(STEPS):
        # A block without residual is one layer, behind a first layer of the same width.
        network = {"num_blocks": 1, "use_residual_blocks": False}
        steps += [
            transforms.ReversePermutation(case.shape.columns),
            transforms.MaskedAffineAutoregressiveTransform(case.shape.columns, WIDTH, **network),
        ]
    flow = importlib.import_module("nflows.flows.base").Flow(
        transforms.CompositeTransform(steps), distributions.StandardNormal([case.shape.columns])
    )
    flow = flow.to(case.device, case.torch_dtype)
    return flow, lambda x: -flow.log_prob(x).mean()


def _step(case: Case, impl: str, *, compiled: bool = False) -> Function:
    model, loss = jobs.build_with_seed(partial(_fastvae, case, impl))
    return jobs.make_step(model, loss, compiled=compiled)


def _peer(build: Any, *, compiled: bool) -> Peer:
    def function(case: Case) -> Function:
        model, loss = jobs.build_with_seed(partial(build, case))
        # Their code may break a graph, which a user would not notice.
        return jobs.make_step(model, loss, compiled=compiled, fullgraph=False)

    # A fresh network of theirs is not near the identity.
    return Peer(function, comparable=False)


def _work(case: Case) -> Work:
    model, loss = jobs.build_with_seed(partial(_fastvae, case, "reference"))
    return jobs.count_step(case, model, loss, _points(case, torch.Generator(case.device).manual_seed(0))[0])


# About the entropy of a standard normal vector, as fresh flows are near the identity.
def _check(case: Case, inputs: Inputs, outputs: Any) -> str | None:
    entropy = 0.5 * case.shape.columns * (1.0 + math.log(2.0 * math.pi))
    return jobs.check_first_loss(case, inputs, outputs, low=0.7 * entropy, high=1.5 * entropy)


TASKS = (
    Task(
        op="density_step",
        entry="step",
        variant=f"maf-{STEPS}x{WIDTH}",
        modes=("step",),
        inputs=_points,
        fastvae=_step,
        reference=lambda case: _step(case, "reference"),
        compiled=lambda case, impl: _step(case, impl, compiled=True),
        whole=True,
        peers={
            "zuko": _peer(_zuko, compiled=False),
            "zuko_compile": _peer(_zuko, compiled=True),
            "nflows": _peer(_nflows, compiled=False),
            "nflows_compile": _peer(_nflows, compiled=True),
        },
        work=_work,
        check=_check,
        shapes={"cpu": SHAPES, "cuda": (*SHAPES, Shape(4096, 64))},
        dtypes={"cpu": ("float32",), "cuda": ("float32",)},
        sampled=False,
    ),
)
