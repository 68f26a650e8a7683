"""Importance-sampled log p(x) of the demonstration's VAE, in chunks of images and samples as ``fastvae evaluate``."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .. import jobs
from ..task import Case, Function, Inputs, Shape, Task, Work

PIXELS, WIDTH = 784, 400
IMAGE_CHUNK, SAMPLE_CHUNK, CHECKED = 100, 32, 20
# Samples, images and latent dimensions.
SHAPES = (Shape(1000, 32, samples=128), Shape(100, 32, samples=5000))


def _images(case: Case, generator: torch.Generator) -> Inputs:
    uniform = torch.rand((case.shape.rows, PIXELS), device=case.device, generator=generator)
    return ((uniform < 0.13).to(case.torch_dtype),)


def _model(case: Case, impl: str) -> Any:
    from fastvae.recipes.systems.vae.config import VAEConfig
    from fastvae.recipes.systems.vae.model import VAE

    config = VAEConfig("diagonal", latent_features=case.shape.columns, hidden_features=(WIDTH, WIDTH), impl=impl)
    model = jobs.build_with_seed(partial(VAE, config)).to(case.device, case.torch_dtype).eval()
    with torch.no_grad():
        # The posterior is the prior and the images hardly depend on z, so that a few samples can be checked.
        model.head.linear.weight.zero_()
        model.head.linear.bias.zero_()
        model.decoder[0].weight *= 1e-3
    return model


def _evaluation(case: Case, impl: str, wrap: Callable[..., Any] = lambda function: function) -> Function:
    from fastvae.objectives import importance_log_prob

    model = _model(case, impl)

    def draw(rows: Tensor, samples: int) -> Tensor:
        log_w: Tensor = model.log_weights(rows, model.encode(rows), samples)
        return log_w

    draw = wrap(draw)

    def run(x: Tensor) -> Tensor:
        found = [
            importance_log_prob(partial(draw, rows), case.shape.draws, SAMPLE_CHUNK) for rows in x.split(IMAGE_CHUNK)
        ]
        return torch.cat(found)

    return run


def _compiled(case: Case, impl: str) -> Function:
    return _evaluation(case, impl, partial(torch.compile, fullgraph=True, dynamic=False))


def _work(case: Case) -> Work:
    """The decoder's products; its weights and the images once for every chunk."""
    weights = case.shape.columns * WIDTH + WIDTH * WIDTH + WIDTH * PIXELS
    rows, chunks = case.shape.draws * case.shape.rows, math.ceil(case.shape.rows / IMAGE_CHUNK)
    chunks *= math.ceil(case.shape.draws / SAMPLE_CHUNK)
    return Work((chunks * weights + case.shape.rows * PIXELS) * case.itemsize, 2 * rows * weights)


def _check(case: Case, inputs: Inputs, outputs: Any) -> str | None:
    """Whether the mean of the first images is that of the reference in float64, whose noise is another."""
    with torch.no_grad():
        rows, model = inputs[0][:CHECKED].double(), _model(case, "reference").double()
        log_w = model.log_weights(rows, model.encode(rows), case.shape.draws)
        expected = (log_w.logsumexp(0) - math.log(case.shape.draws)).mean().item()
    mean = outputs[:CHECKED].double().mean().item()
    return None if abs(mean - expected) < 0.5 else f"mean log p(x) is {mean:.5g} nats, not {expected:.5g}"


TASKS = (
    Task(
        op="evaluation",
        entry="evaluate",
        inputs=_images,
        fastvae=_evaluation,
        reference=lambda case: _evaluation(case, "reference"),
        compiled=_compiled,
        whole=True,
        work=_work,
        check=_check,
        modes=("fwd",),
        shapes={"cpu": SHAPES, "cuda": SHAPES},
        dtypes={"cpu": ("float32",), "cuda": ("float32",)},
    ),
)
