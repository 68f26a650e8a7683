"""A whole training step of the recipes' models: forward, ELBO of one sample, backward, Adam (Adamax for IAF)."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ..task import Case, Function, Inputs, Shape, Task, Work

# Rows are images, columns latent dimensions; the first is the recipe's default.
SHAPES = {"cpu": (Shape(100, 32), Shape(512, 64)), "cuda": (Shape(100, 32), Shape(4096, 64))}


def _config(case: Case, impl: str = "auto") -> Any:
    from fastvae.recipes.systems.vae.config import VAEConfig

    return VAEConfig(posterior=case.variant, latent_features=case.shape.columns, impl=impl)


def _step(case: Case, impl: str, wrap: Callable[..., Any] = lambda function: function) -> Function:
    """A step on a batch; the parameters move from call to call, as in training."""
    from fastvae.recipes.systems.vae.model import VAE

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
    # Training needs no gradient of the images.
    flops = 2 * case.shape.rows * (3 * weights - pixels * widths[0])
    # Images; weights forward and backward, and gradients; Adam reads four and writes three of their size.
    elements = case.shape.rows * pixels + (2 + 1 + 7) * weights
    return Work(elements * case.itemsize, flops)


def _check(case: Case, inputs: Inputs, outputs: Any) -> str | None:
    # The first loss: about ln 2 per pixel, as the weights are fresh.
    loss = outputs.item()
    return None if 400.0 < loss < 700.0 else f"the first loss is {loss:.4g} nats, not about 784 ln 2"


# The IAF recipe's flow that is measured: four steps of two hidden layers of 1920.
IAF_DEPTH, IAF_WIDTH = 4, 1920


def _iaf_step(case: Case, impl: str, compiled: bool = False) -> Function:
    from fastvae.recipes.systems.iaf_vae.model import training_step

    step = training_step("iaf", IAF_DEPTH, IAF_WIDTH, impl, batch_size=case.shape.rows, device=case.device)
    step = torch.compile(step) if compiled else step
    return lambda _: step()


def _iaf_work(case: Case) -> Work:
    """Products of the eager model's step without the masked ones, and the optimiser's pass over the weights."""
    from torch.utils.flop_counter import FlopCounterMode

    from fastvae.recipes.systems.iaf_vae.config import IAFVAEConfig
    from fastvae.recipes.systems.iaf_vae.model import IAFVAE, training_step
    from fastvae.reference.masked_linear import mask_of

    rows = case.shape.rows
    step = training_step("iaf", IAF_DEPTH, IAF_WIDTH, "reference", batch_size=rows)
    with FlopCounterMode(display=False) as counter:
        step()
    model = IAFVAE(IAFVAEConfig("iaf", depth=IAF_DEPTH, width=IAF_WIDTH))
    layers = [m for m in model.modules() if hasattr(m, "in_degrees")]
    masked = sum(int((~mask_of(layer.in_degrees, layer.out_degrees)).sum()) for layer in layers)
    weights = sum(p.numel() for p in model.parameters())
    return Work((2 + 1 + 7) * weights * case.itemsize, counter.get_total_flops() - 6 * rows * masked)


_GAUSSIAN_TASKS = tuple(
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
TASKS = (
    *_GAUSSIAN_TASKS,
    Task(
        op="training_step",
        entry="step",
        variant=f"iaf-{IAF_DEPTH}x{IAF_WIDTH}",
        modes=("step",),
        inputs=lambda case, generator: (torch.zeros(()),),
        fastvae=_iaf_step,
        reference=lambda case: _iaf_step(case, "reference"),
        compiled=lambda case: _iaf_step(case, "reference", compiled=True),
        work=_iaf_work,
        check=lambda case, inputs, outputs: None if outputs.isfinite() else "the first loss is not finite",
        shapes={"cpu": (Shape(128, 32),), "cuda": (Shape(128, 32), Shape(512, 32))},
        dtypes={"cpu": ("float32",), "cuda": ("float32",)},
        sampled=False,
    ),
)
