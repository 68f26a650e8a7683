"""The system ``cvae``: a VAE that is given the class of every image."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from ...class_models.system import ClassSamples, draw_classes, draw_transfer
from ...class_models.with_labels import WithLabels, join_labels
from ...data.class_batches import ClassBatches
from ...data.labelled import LabelledParts, load_labelled
from ...evaluation.bounds import Figures, evaluate, spread
from ...evaluation.config import EvaluationConfig
from ...evaluation.job import ALONE, Job
from ...evaluation.wording import describe_figures
from ...pictures.grids import draw_grid
from ...system import System
from .config import CVAEConfig, CVAESettings, CVAETrainConfig
from .model import CVAE
from .task import CVAETask

__all__ = ["SYSTEM", "CVAESystem"]


class CVAESystem(ClassSamples, System):
    """A conditional VAE of binary images."""

    name = "cvae"
    settings = CVAESettings

    def make_model(self, config: CVAEConfig) -> CVAE:
        return CVAE(config)

    def make_task(self, model: CVAE, config: CVAETrainConfig, folder: Path) -> CVAETask:
        return CVAETask(self.name, model, config, folder)

    def load_images(self, config: CVAETrainConfig, *, progress: bool) -> LabelledParts:
        return load_labelled(config.data, progress=progress)

    def make_batches(self, config: CVAETrainConfig, images: Any = None) -> ClassBatches:
        return ClassBatches(config, lambda progress: self.load_images(config, progress=progress), images)

    def evaluate(
        self,
        model: CVAE,
        images: LabelledParts,
        config: EvaluationConfig,
        *,
        seed: int = 0,
        progress: bool = False,
        job: Job = ALONE,
    ) -> Figures:
        rows = join_labels(self.test_images(images, seed), torch.from_numpy(images.y_test))
        return evaluate(WithLabels(model), rows, **asdict(config), seed=seed, progress=progress, job=job)

    def describe(self, figures: Figures) -> list[str]:
        return [line.replace("log p(x)  ", "log p(x|y)") for line in describe_figures(figures)]

    def draw_run(self, model: CVAE, images: Any, folder: Path) -> None:
        x, labels = (spread(part, 10) for part in (self.test_images(images), torch.from_numpy(images.y_test)))
        draw_classes(model, images.classes, folder / "samples.png")
        found = model.reconstruct(x, labels, generator=torch.Generator().manual_seed(0))
        title = "Test images, and their reconstructions"
        draw_grid(torch.cat([x, found]), 2, len(x), title, folder / "reconstructions.png")
        draw_transfer(model, x, labels, folder / "analogies.png")


SYSTEM = CVAESystem()
