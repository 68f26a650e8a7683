"""The system ``pixelcnn``: a network over pixels, without latents; and what systems over pixels share."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from ...class_models.system import check_labels, draw_classes
from ...class_models.with_labels import WithLabels, join_labels
from ...data.batches import binarize_fixed
from ...data.class_batches import ClassBatches
from ...data.loaders import ImageBatches
from ...data.static_mnist import BinaryImages, load_binary_images
from ...evaluation.bounds import Likelihoods, evaluate_exact, spread
from ...evaluation.job import ALONE, Job
from ...evaluation.speed import measure_sampling
from ...evaluation.wording import describe_likelihoods
from ...pictures.grids import draw_inpainting, draw_pixel_samples
from ...system import System
from .config import PixelCNNConfig, PixelCNNEvaluationConfig, PixelCNNSettings, PixelTrainConfig
from .model import CLASSES, BinaryPixelCNN
from .task import PixelTask

__all__ = ["SYSTEM", "PixelCNNSystem", "PixelSystem"]


class PixelSystem(System):
    """A system on binary images in three parts: training, validation and test."""

    def make_task(self, model: Any, config: PixelTrainConfig, folder: Path) -> PixelTask:
        return PixelTask(self.name, model, config, folder)

    def load_images(self, config: PixelTrainConfig, *, progress: bool) -> BinaryImages:
        images = load_binary_images(config.data, progress=progress)
        return images.with_validation() if config.add_validation else images

    def make_batches(self, config: PixelTrainConfig, images: Any = None) -> ImageBatches:
        if images is not None and config.add_validation:
            images = images.with_validation()
        return PixelBatches(config, lambda progress: self.load_images(config, progress=progress), images)


class PixelBatches(ClassBatches):
    """Images with labels for a conditional model, and without them for others."""

    @property
    def kind(self) -> type[ImageBatches]:
        config = cast(Any, self.trainer).lightning_module.model.config
        return ClassBatches if getattr(config, "conditional", False) else ImageBatches

    def train_dataloader(self) -> DataLoader[Any]:
        return self.kind.train_dataloader(self)

    def val_dataloader(self) -> DataLoader[Any]:
        return self.kind.val_dataloader(self)


class PixelCNNSystem(PixelSystem):
    """A PixelCNN or a gated PixelCNN."""

    name = "pixelcnn"
    settings = PixelCNNSettings

    def make_model(self, config: PixelCNNConfig) -> BinaryPixelCNN:
        return BinaryPixelCNN(config)

    def sample(
        self, model: Any, n: int, *, labels: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        if labels is None or not model.config.conditional:
            return super().sample(model, n, labels=labels, generator=generator)
        found: Tensor = model.sample(n, labels=check_labels(labels, n, CLASSES), generator=generator)
        return found

    def evaluate(
        self,
        model: BinaryPixelCNN,
        images: BinaryImages,
        config: PixelCNNEvaluationConfig,
        *,
        seed: int = 0,
        progress: bool = False,
        job: Job = ALONE,
    ) -> Likelihoods:
        x, valid = binarize_fixed(images.x_test, seed), binarize_fixed(images.x_valid, seed)
        how: dict[str, Any] = asdict(config) | {"progress": progress, "job": job}
        if model.config.conditional:
            x, valid = (
                join_labels(part, torch.from_numpy(labels))
                for part, labels in ((x, images.y_test), (valid, images.y_valid))
            )
            figures = evaluate_exact(WithLabels(model), x, valid=valid, **how)
        else:
            figures = evaluate_exact(model, x, valid=valid, **how)
        if not job.processes.leads:
            return figures
        speed = measure_sampling(model.sample, next(model.parameters()).device)
        return replace(figures, sampled_images_per_second=speed)

    def describe(self, figures: Likelihoods) -> list[str]:
        return describe_likelihoods(figures)

    def draw(self, model: BinaryPixelCNN, x: Tensor, folder: Path) -> None:
        if model.config.conditional:
            draw_classes(model, CLASSES, folder / "samples.png")
            return
        draw_pixel_samples(model.sample, folder / "samples.png")
        draw_inpainting(model, spread(x, 10), folder / "inpainting.png")


SYSTEM = PixelCNNSystem()
