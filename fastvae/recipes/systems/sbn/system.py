"""The system ``sbn``: Bernoulli units, and score functions to train them by."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from ...data.batches import binarize_fixed
from ...data.static_mnist import BinaryImages, load_binary_images
from ...evaluation.bounds import Figures, evaluate, spread
from ...evaluation.config import EvaluationConfig
from ...evaluation.job import ALONE, Job
from ...evaluation.wording import describe_figures
from ...pictures.grids import draw_grid, draw_sampled_reconstructions
from ...system import System
from .config import SBNConfig, SBNSettings, SBNTrainConfig
from .model import SBN
from .pictures import draw_filters, draw_variances, read_run
from .task import SBNTask

__all__ = ["SYSTEM", "SBNSystem"]


class SBNSystem(System):
    """A sigmoid belief network with one or two layers of units."""

    name = "sbn"
    settings = SBNSettings

    def make_model(self, config: SBNConfig) -> SBN:
        return SBN(config)

    def make_task(self, model: SBN, config: SBNTrainConfig, folder: Path) -> SBNTask:
        return SBNTask(self.name, model, config, folder)

    def load_images(self, config: SBNTrainConfig, *, progress: bool) -> BinaryImages:
        return load_binary_images(config.data, progress=progress)

    def evaluate(
        self,
        model: SBN,
        images: BinaryImages,
        config: EvaluationConfig,
        *,
        seed: int = 0,
        progress: bool = False,
        job: Job = ALONE,
    ) -> Figures:
        x, valid = binarize_fixed(images.x_test, seed), binarize_fixed(images.x_valid, seed)
        return evaluate(model, x, valid=valid, **asdict(config), seed=seed, progress=progress, job=job)

    def describe(self, figures: Figures) -> list[str]:
        return describe_figures(figures, images="test images")

    def label(self, config: Any) -> str:
        return f"sbn, {config.layers}"

    def draw(self, model: SBN, x: Tensor, folder: Path) -> None:
        images = model.sample(64, generator=torch.Generator().manual_seed(0))
        draw_grid(images, 8, 8, "Samples: mean of p(x | b), b from the prior", folder / "samples.png")
        draw_sampled_reconstructions(model.reconstruct, spread(x, 10), folder / "reconstructions.png")
        last = cast(nn.Linear, cast(nn.Sequential, model.decoders[0])[-1])
        draw_filters(last.weight, folder / "filters.png")
        name, rows = read_run(folder)
        draw_variances({name: rows}, folder / "gradient_variance.png")


SYSTEM = SBNSystem()
