"""What systems of one latent vector on dynamically binarised MNIST share."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from .data.mnist import Mnist, load_mnist
from .evaluation.bounds import Figures, evaluate
from .evaluation.config import EvaluationConfig
from .evaluation.job import ALONE, Job
from .evaluation.wording import describe_figures
from .pictures.grids import draw_reconstructions, draw_samples
from .system import System

__all__ = ["LatentSystem"]


class LatentSystem(System):
    """A system whose model is a :class:`~fastvae.recipes.evaluation.latents.OneLatent`; its settings have posterior."""

    def load_images(self, config: Any, *, progress: bool) -> Mnist:
        return load_mnist(progress=progress)

    def evaluate(
        self,
        model: Any,
        images: Mnist,
        config: EvaluationConfig,
        *,
        seed: int = 0,
        progress: bool = False,
        job: Job = ALONE,
    ) -> Figures:
        x = self.test_images(images, seed)
        return evaluate(model, x, **asdict(config), seed=seed, progress=progress, job=job)

    def describe(self, figures: Figures) -> list[str]:
        return describe_figures(figures)

    def label(self, config: Any) -> str:
        return str(config.posterior)

    def draw(self, model: Any, x: Tensor, folder: Path) -> None:
        named = {self.label(model.config): model}
        draw_samples(named, folder / "samples.png")
        draw_reconstructions(named, x[:12], folder / "reconstructions.png")
