"""What systems that learn classes from few labels share."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from .data.labelled import LabelledParts, load_labelled
from .data.semi_supervised import SemiSupervisedBatches, prepare_test_images
from .evaluation.classification import ClassFigures, describe_classes, measure_classes
from .evaluation.job import ALONE, Job
from .system import System

__all__ = ["LabelledSystem"]


class LabelledSystem(System):
    """A system that is trained on :class:`~fastvae.recipes.data.semi_supervised.SemiSupervisedBatch`.

    Its model has ``class_logits`` or ``predict``, as of
    :func:`~fastvae.recipes.evaluation.classification.predict_classes`; its training is a
    :class:`~fastvae.recipes.training.labelled_config.LabelledTrainConfig`, and its task has
    :class:`~fastvae.recipes.training.labelled_task.ClassErrors` among its bases.
    """

    # Whether it is trained and tested on binary images; otherwise on intensities.
    binarize: ClassVar[bool] = True

    def load_images(self, config: Any, *, progress: bool) -> LabelledParts:
        return load_labelled(config.data, progress=progress)

    def make_batches(self, config: Any, images: Any = None) -> SemiSupervisedBatches:
        return SemiSupervisedBatches(
            config, lambda progress: self.load_images(config, progress=progress), images, binarize=self.binarize
        )

    def evaluate(
        self, model: Any, images: Any, config: Any, *, seed: int = 0, progress: bool = False, job: Job = ALONE
    ) -> ClassFigures:
        x, chunk = self.test_images(images, seed), config.image_chunk
        labels, classes = images.y_test, images.classes
        return measure_classes(model, x, labels, classes, image_chunk=chunk, seed=seed, progress=progress, job=job)

    def test_images(self, images: Any, seed: int = 0) -> Tensor:
        return prepare_test_images(images.x_test, self.binarize, seed)

    def describe(self, figures: Any) -> list[str]:
        return describe_classes(figures)
