"""The system ``adgm``: auxiliary and skip deep generative models, trained with few labels."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...data.labelled import LabelledParts
from ...data.moons import make_moons
from ...data.semi_supervised import SemiSupervisedBatches, prepare_test_images
from ...errors import RecipeError
from ...evaluation.bounds import spread
from ...evaluation.job import ALONE, Job
from ...labelled_system import LabelledSystem
from ...pictures.grids import draw_sampled_reconstructions
from ...training.run import Run
from .config import ADGMConfig, ADGMEvaluationConfig, ADGMSettings, ADGMTrainConfig
from .figures import ADGMFigures, describe_adgm, evaluate_adgm
from .model import ADGM
from .pictures import draw_auxiliary, draw_class_samples, draw_points, draw_regions
from .task import ADGMTask

__all__ = ["SYSTEM", "ADGMSystem"]

# Points in a picture, at most.
SCATTERED = 2000


class ADGMSystem(LabelledSystem):
    """A model of images, or points in the plane, with an auxiliary latent vector."""

    name = "adgm"
    settings = ADGMSettings

    def make_model(self, config: ADGMConfig) -> ADGM:
        return ADGM(config)

    def make_task(self, model: ADGM, config: ADGMTrainConfig, folder: Path) -> ADGMTask:
        return ADGMTask(self.name, model, config, folder)

    def load_images(self, config: ADGMTrainConfig, *, progress: bool) -> LabelledParts:
        return make_moons() if config.data == "moons" else super().load_images(config, progress=progress)

    def make_batches(self, config: ADGMTrainConfig, images: Any = None) -> SemiSupervisedBatches:
        def load(progress: bool) -> LabelledParts:
            return self.load_images(config, progress=progress)

        return SemiSupervisedBatches(config, load, images, binarize=config.data != "moons")

    def test_images(self, images: Any, seed: int = 0) -> Tensor:
        return prepare_test_images(images.x_test, images.x_test.dtype.kind == "u", seed)

    def evaluate(
        self,
        model: ADGM,
        images: LabelledParts,
        config: ADGMEvaluationConfig,
        *,
        seed: int = 0,
        progress: bool = False,
        job: Job = ALONE,
    ) -> ADGMFigures:
        x = self.test_images(images, seed)
        return evaluate_adgm(model, x, images.y_test, config, seed=seed, progress=progress, job=job)

    def describe(self, figures: ADGMFigures) -> list[str]:
        return describe_adgm(figures)

    def label(self, config: ADGMConfig) -> str:
        return str(config.kind)

    def run(self, settings: ADGMSettings, folder: Path, **options: Any) -> Run:
        found = super().run(settings, folder, **options)
        if found.figures is not None and settings.training.data == "moons":
            images = options.get("images") or self.load_images(settings.training, progress=False)
            drawn = self.make_model(replace(settings.model, impl="auto")).eval()
            drawn.load_state_dict(found.model.state_dict())
            train, training = images.train, settings.training
            rows = train.draw_labelled(training.labels, training.label_seed)
            draw_regions(drawn, train, rows, folder / "regions.png")
        return found

    def draw_run(self, model: ADGM, images: LabelledParts, folder: Path) -> None:
        x, labels = self.test_images(images), images.y_test
        shown = spread(torch.arange(len(x)), SCATTERED)
        draw_auxiliary(model, x[shown], labels[shown.numpy()], folder / "auxiliary.png")
        if model.config.likelihood == "gaussian":
            self.draw_samples(model, folder / "samples.png", count=SCATTERED)
            self.draw_reconstructions(model, None, folder / "reconstructions.png", count=SCATTERED, images=images)
        else:
            draw_class_samples(model, folder / "samples.png")
            draw_sampled_reconstructions(model.reconstruct, spread(x, 12), folder / "reconstructions.png")

    def sample(
        self, model: ADGM, n: int, *, labels: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        return model.sample(n, labels=check_classes(labels, n, model.config.classes), generator=generator)

    def draw_samples(self, model: ADGM, path: Path, *, count: int, labels: Tensor | None = None, seed: int = 0) -> None:
        if model.config.likelihood == "bernoulli":
            super().draw_samples(model, path, count=count, labels=labels, seed=seed)
            return
        labels = torch.arange(count) % model.config.classes if labels is None else labels
        points = self.sample(model, count, labels=labels, generator=torch.Generator().manual_seed(seed))
        draw_points({"Samples: means of p(x | ...)": (points, labels)}, path)

    def draw_reconstructions(
        self, model: ADGM, settings: Any, path: Path, *, count: int, seed: int = 0, images: Any = None
    ) -> None:
        if model.config.likelihood == "bernoulli":
            super().draw_reconstructions(model, settings, path, count=count, seed=seed, images=images)
            return
        images = self.load_images(settings.training, progress=True) if images is None else images
        rows = spread(torch.arange(len(images.test)), count)
        x, labels = self.test_images(images)[rows], torch.from_numpy(images.y_test)[rows]
        found = self.reconstruct(model, x, generator=torch.Generator().manual_seed(seed))
        draw_points({"Test points": (x, labels), "Reconstructions": (found, labels)}, path)


def check_classes(labels: Tensor | None, count: int, classes: int) -> Tensor | None:
    """The classes of images to draw.

    Raises:
        RecipeError: there is not one for each image, or one is outside 0 ... ``classes`` - 1.
    """
    if labels is None:
        return None
    if labels.shape != (count,):
        raise RecipeError(f"labels must be {count} classes, one for each image, got {labels.numel()}")
    for label in labels[(labels < 0) | (labels >= classes)][:1].tolist():
        raise RecipeError(f"labels must be 0 ... {classes - 1}, got {label}")
    return labels


SYSTEM = ADGMSystem()
