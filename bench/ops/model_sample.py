"""New images of whole models at random weights: from the prior to the pixels."""

from __future__ import annotations

from typing import Any

import torch

from .. import jobs
from ..task import Case, Function, Inputs, Shape, Task, Work

PIXELS = 784
# Rows are images, columns latent dimensions.
SHAPES = {"vae": Shape(1000, 32), "pixelvae": Shape(64, 16)}


def _model(case: Case, impl: str) -> Any:
    def build() -> Any:
        if case.variant == "vae":
            from fastvae.recipes.systems.vae.config import VAEConfig
            from fastvae.recipes.systems.vae.model import VAE

            return VAE(VAEConfig(latent_features=case.shape.columns, impl=impl))
        from fastvae.recipes.systems.pixelvae.config import PixelVAEConfig
        from fastvae.recipes.systems.pixelvae.model import PixelVAE

        return PixelVAE(PixelVAEConfig(latent_features=case.shape.columns, impl=impl))

    return jobs.build_with_seed(build).to(case.device, case.torch_dtype).eval()


def _fastvae(case: Case, impl: str) -> Function:
    model = _model(case, impl)
    return lambda _: model.sample(case.shape.rows)


def _compiled(case: Case, impl: str) -> Function:
    model = _model(case, impl)
    sample = torch.compile(model.sample, fullgraph=True, dynamic=False)
    return lambda _: sample(case.shape.rows)


def _work(case: Case) -> Work:
    """The products of one pass of the model's generative half; its weights once."""
    from torch.utils.flop_counter import FlopCounterMode

    model, rows = _model(case, "reference"), case.shape.rows
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        if case.variant == "vae":
            model.decode(torch.zeros(rows, case.shape.columns, device=case.device, dtype=case.torch_dtype))
        else:
            pixels = torch.zeros(rows, PIXELS, device=case.device, dtype=case.torch_dtype)
            model.log_likelihood(pixels, torch.zeros(rows, case.shape.columns, device=case.device, dtype=pixels.dtype))
    weights = sum(p.numel() for p in model.parameters())
    return Work(weights * case.itemsize, counter.get_total_flops())


def _check(case: Case, inputs: Inputs, outputs: Any) -> str | None:
    right = outputs.shape == (case.shape.rows, PIXELS) and bool(((outputs >= 0) & (outputs <= 1)).all())
    return None if right else "the result is no batch of images"


def _task(variant: str, **more: Any) -> Task:
    return Task(
        op="model_sample",
        entry="sample",
        variant=variant,
        modes=("fwd",),
        inputs=lambda case, generator: (torch.zeros((), device=case.device),),
        fastvae=_fastvae,
        reference=lambda case: _fastvae(case, "reference"),
        whole=True,
        work=_work,
        check=_check,
        shapes={"cpu": (SHAPES[variant],), "cuda": (SHAPES[variant],)},
        dtypes={"cpu": ("float32",), "cuda": ("float32",)},
        sampled=False,
        **more,
    )


# The loop over pixels is no graph that a compiler takes.
TASKS = (_task("vae", compiled=_compiled), _task("pixelvae", compiles=False))
