"""The system ``draw``: images that are read and written in glimpses."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from ...data.labelled import load_labelled
from ...data.mnist import load_mnist
from ...data.static_mnist import load_static_mnist
from ...evaluation.bounds import Figures, evaluate, spread
from ...evaluation.config import EvaluationConfig
from ...evaluation.job import ALONE, Job
from ...evaluation.wording import describe_figures
from ...pictures.grids import draw_means
from ...system import System
from .config import DRAWConfig, DRAWSettings, DRAWTrainConfig
from .model import DRAW
from .pictures import draw_canvases, draw_divergences
from .task import DRAWTask

__all__ = ["SYSTEM", "DRAWSystem"]


class DRAWSystem(System):
    """A recurrent VAE, with or without attention, on binary images."""

    name, layer = "draw", "glimpse"
    settings = DRAWSettings

    def make_model(self, config: DRAWConfig) -> DRAW:
        return DRAW(config)

    def make_task(self, model: DRAW, config: DRAWTrainConfig, folder: Path) -> DRAWTask:
        return DRAWTask(self.name, model, config, folder)

    def load_images(self, config: DRAWTrainConfig, *, progress: bool) -> Any:
        if config.data == "static":
            return load_static_mnist()
        return load_mnist(progress=progress) if config.data == "dynamic" else load_labelled("digits", progress=progress)

    def evaluate(
        self,
        model: DRAW,
        images: Any,
        config: EvaluationConfig,
        *,
        seed: int = 0,
        progress: bool = False,
        job: Job = ALONE,
    ) -> Figures:
        x = self.test_images(images, seed)
        return evaluate(model, x, **asdict(config), seed=seed, progress=progress, job=job)

    def describe(self, figures: Figures) -> list[str]:
        return describe_figures(figures, images="test images")

    def label(self, config: DRAWConfig) -> str:
        glimpses = f"DRAW, {config.glimpses} glimpse{'s' if config.glimpses > 1 else ''}"
        return glimpses if config.attention == "window" else f"{glimpses} without attention"

    def draw(self, model: DRAW, x: Tensor, folder: Path) -> None:
        x = spread(x, 200)
        draw_means(self.label(model.config), model, spread(x, 12), folder)
        draw_canvases(model, spread(x, 4), folder / "canvases.png")
        draw_divergences(model, x, folder / "divergences.png")


SYSTEM = DRAWSystem()
