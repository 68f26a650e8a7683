"""A whole training step of the recipe's VAE: forward, ELBO of one sample, backward, Adam."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ..registry import Case, Function, Inputs, Shape, Task, Work

# Rows are images, columns latent dimensions; the first is the recipe's default.
SHAPES = {"cpu": (Shape(100, 32), Shape(512, 64)), "cuda": (Shape(100, 32), Shape(4096, 64))}


def _config(case: Case, impl: str = "auto") -> Any:
    from fastvae.recipes.config import VAEConfig

    return VAEConfig(posterior=case.variant, latent_features=case.shape.columns, impl=impl)


def _step(case: Case, impl: str, wrap: Callable[..., Any] = lambda function: function) -> Function:
    """A step on a batch; the parameters move from call to call, as in training."""
    from fastvae.recipes.vae import VAE

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = VAE(_config(case, impl)).to(case.device, case.torch_dtype)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4, fused=True, capturable=case.device == "cuda")
    bound = wrap(model.bound)

    def step(x: Tensor) -> Tensor:
        loss = -bound(x).mean()
        loss.backward()
        optimizer.step()
        # Last, so that a step frees what it allocates and its peak memory is its own.
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    return step


def _images(case: Case, generator: torch.Generator) -> Inputs:
    size = (case.shape.rows, _config(case).data_features)
    uniform = torch.rand(size, device=case.device, generator=generator)
    return ((uniform < 0.13).to(case.torch_dtype),)


def _work(case: Case) -> Work:
    """The matrix products, three per weight and image, and the optimiser's pass over the weights."""
    config = _config(case)
    latents, pixels, widths = case.shape.columns, config.data_features, config.hidden_features
    parameters = 2 * latents + (latents * (latents - 1) // 2 if case.variant == "triangular" else 0)
    encoder, decoder = [pixels, *widths, parameters], [latents, *reversed(widths), pixels]
    weights = sum(a * b for path in (encoder, decoder) for a, b in pairwise(path))
    # Nobody asks for the gradient of the images.
    flops = 2 * case.shape.rows * (3 * weights - pixels * widths[0])
    # Images; weights forward and backward, and gradients; Adam reads four and writes three of their size.
    elements = case.shape.rows * pixels + (2 + 1 + 7) * weights
    return Work(elements * case.itemsize, flops)


def _check(case: Case, inputs: Inputs, outputs: Any) -> str | None:
    # The first loss: about ln 2 per pixel, as the weights are fresh.
    loss = outputs.item()
    return None if 400.0 < loss < 700.0 else f"the first loss is {loss:.4g} nats, not about 784 ln 2"


TASKS = tuple(
    Task(
        op="training_step",
        entry="step",
        variant=variant,
        modes=("step",),
        inputs=_images,
        fastvae=_step,
        reference=lambda case: _step(case, "reference"),
        compiled=lambda case: _step(case, "reference", torch.compile),
        work=_work,
        check=_check,
        shapes=SHAPES,
        dtypes={"cpu": ("float32",), "cuda": ("float32",)},
        sampled=False,
    )
    for variant in ("diagonal", "triangular")
)
