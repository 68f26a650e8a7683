"""A whole training step of the recipes' models: forward, ELBO of one sample, backward, optimiser."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .. import jobs
from ..task import Case, Function, Inputs, Shape, Task, Work

PIXELS = 784


@dataclass(frozen=True)
class Trained:
    """A model to train: ``build(case, impl)`` makes it with its loss.

    Rows of ``shapes`` are images, columns latent dimensions. The first loss lies between ``low`` and ``high``.
    """

    variant: str
    build: Callable[[Case, str], tuple[nn.Module, jobs.Loss]]
    shapes: dict[str, tuple[Shape, ...]]
    adamax: bool = False
    low: float = 400.0
    high: float = 700.0

    def step(self, case: Case, impl: str, *, compiled: bool = False) -> Function:
        model, loss = jobs.build_with_seed(partial(self.build, case, impl))
        return jobs.make_step(model, loss, compiled=compiled, adamax=self.adamax)

    def work(self, case: Case) -> Work:
        model, loss = jobs.build_with_seed(partial(self.build, case, "reference"))
        generator = torch.Generator(case.device).manual_seed(0)
        return jobs.count_step(case, model, loss, _images(case, generator)[0])

    def task(self) -> Task:
        return Task(
            op="training_step",
            entry="step",
            variant=self.variant,
            modes=("step",),
            inputs=_images,
            fastvae=self.step,
            reference=lambda case: self.step(case, "reference"),
            compiled=lambda case, impl: self.step(case, impl, compiled=True),
            whole=True,
            work=self.work,
            check=partial(jobs.check_first_loss, low=self.low, high=self.high),
            shapes=self.shapes,
            dtypes={"cpu": ("float32",), "cuda": ("float32",)},
            sampled=False,
        )


def _images(case: Case, generator: torch.Generator) -> Inputs:
    uniform = torch.rand((case.shape.rows, PIXELS), device=case.device, generator=generator)
    return ((uniform < 0.13).to(case.torch_dtype),)


def _vae(case: Case, impl: str, *, posterior: Any) -> tuple[nn.Module, jobs.Loss]:
    from fastvae.recipes.systems.vae.config import VAEConfig
    from fastvae.recipes.systems.vae.model import VAE

    model = VAE(VAEConfig(posterior, latent_features=case.shape.columns, impl=impl)).to(case.device, case.torch_dtype)
    return model, lambda x: -model.bound(x).mean()


def _iaf(case: Case, impl: str, *, depth: int, width: int) -> tuple[nn.Module, jobs.Loss]:
    from fastvae.recipes.systems.iaf_vae.config import IAFVAEConfig
    from fastvae.recipes.systems.iaf_vae.model import IAFVAE

    config = IAFVAEConfig("iaf", latent_features=case.shape.columns, depth=depth, width=width, impl=impl)
    model = IAFVAE(config).to(case.device, case.torch_dtype)
    model.initialize_from(_images(case, torch.Generator(case.device).manual_seed(0))[0])

    def loss(x: Tensor) -> Tensor:
        return model.loss(x, 0.01)[0]

    return model, loss


def _pixelvae(case: Case, impl: str) -> tuple[nn.Module, jobs.Loss]:
    from fastvae.recipes.systems.pixelvae.config import PixelVAEConfig
    from fastvae.recipes.systems.pixelvae.model import PixelVAE

    model = PixelVAE(PixelVAEConfig(latent_features=case.shape.columns, impl=impl)).to(case.device, case.torch_dtype)
    return model, lambda x: -model.bound(x).mean()


def _iwae(case: Case, impl: str, *, samples: int) -> tuple[nn.Module, jobs.Loss]:
    from fastvae.recipes.systems.iwae.config import IWAEConfig
    from fastvae.recipes.systems.iwae.model import IWAE
    from fastvae.recipes.systems.iwae.task import training_bounds

    model = IWAE(IWAEConfig(latent_features=(case.shape.columns,), impl=impl)).to(case.device, case.torch_dtype)
    return model, lambda x: -training_bounds(model, x, samples, "iwae")[0].mean()


_VAE_SHAPES = (Shape(128, 32), Shape(256, 128), Shape(512, 64))
_LARGER_VAE_SHAPES = (*_VAE_SHAPES, Shape(4096, 64))
_IAF_SHAPES = {"cpu": (Shape(128, 32),), "cuda": (Shape(128, 32), Shape(512, 32))}
_DEEP_IAF_SHAPES = {"cpu": (), "cuda": (Shape(512, 32),)}
_TRAINED = (
    *(
        Trained(
            posterior, partial(_vae, posterior=posterior), {"cpu": _VAE_SHAPES, "cuda": (*_VAE_SHAPES, Shape(4096, 64))}
        )
        for posterior in ("diagonal", "triangular")
    ),
    *(
        Trained(
            f"iaf-{depth}x{width}",
            partial(_iaf, depth=depth, width=width),
            shapes,
            adamax=True,
            high=2000.0,
        )
        for depth, width, shapes in ((2, 320, _IAF_SHAPES), (4, 1920, _IAF_SHAPES), (8, 1920, _DEEP_IAF_SHAPES))
    ),
    Trained("iwae-k50", partial(_iwae, samples=50), {"cpu": (Shape(100, 50),), "cuda": (Shape(100, 50),)}),
    Trained("pixelvae", _pixelvae, {"cpu": (Shape(64, 16),), "cuda": (Shape(64, 16), Shape(256, 16))}),
)
TASKS = tuple(trained.task() for trained in _TRAINED)
