"""Training steps on images, of our models and of the same models as people write them, with the same first weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import nn

from . import jobs
from .task import Case, Function, Inputs, Peer, Shape, Task, Work

__all__ = ["CLASSES", "PIXELS", "Built", "make_task", "take_step"]

PIXELS, CLASSES = 784, 10

Built = tuple[nn.Module, jobs.Loss]


def make_task(
    op: str,
    variant: str,
    latents: int,
    *,
    fastvae: Callable[[Case, str], Built],
    usual: Callable[[Case], Built],
    usual_compiled: Callable[[Case], Built] | None = None,
    rows: tuple[int, int] = (100, 500),
    adamax: bool = False,
    most: float,
    peers: Mapping[str, Peer] | None = None,
) -> Task:
    """A step with our model, and with the same written the usual way.

    Args:
        op: name of the benchmark.
        variant: of the model.
        latents: dimensions of its latent vectors.
        fastvae: our model, by case and implementation, and its loss.
        usual: the usual way.
        usual_compiled: the usual way that a compiler takes, where it is another.
        rows: images in a step; a GPU has the larger batch, too.
        adamax: Adamax in place of Adam.
        most: nats that the first loss is below.
        peers: of the task.
    """
    few, many = (Shape(count, latents) for count in rows)
    take = partial(take_step, adamax=adamax)

    def compiled(case: Case, impl: str) -> Function:
        of_usual = partial(usual_compiled or usual, case)
        return take(of_usual if impl == "reference" else partial(fastvae, case, impl), compiled=True)

    def count(case: Case) -> Work:
        model, loss = jobs.build_with_seed(partial(fastvae, case, "reference"))
        (x,) = draw_images(case, torch.Generator(case.device).manual_seed(0))
        return jobs.count_step(case, model, loss, x)

    return Task(
        op=op,
        entry="step",
        variant=variant,
        modes=("step",),
        inputs=draw_images,
        fastvae=lambda case, impl: take(partial(fastvae, case, impl)),
        reference=lambda case: take(partial(usual, case)),
        compiled=compiled,
        whole=True,
        peers=dict(peers or {}),
        work=count,
        check=partial(jobs.check_first_loss, low=400.0, high=most),
        shapes={"cpu": (few,), "cuda": (few, many)},
        dtypes={"cpu": ("float32",), "cuda": ("float32",)},
        sampled=False,
    )


def draw_images(case: Case, generator: torch.Generator) -> Inputs:
    uniform = torch.rand((case.shape.rows, PIXELS), device=case.device, generator=generator)
    return ((uniform < 0.13).to(case.torch_dtype),)


def take_step(build: Callable[[], Any], *, compiled: bool = False, adamax: bool = False) -> Function:
    """A training step of a model that ``build()`` makes with its loss."""
    model, loss = jobs.build_with_seed(build)
    return jobs.make_step(model, loss, compiled=compiled, adamax=adamax)
