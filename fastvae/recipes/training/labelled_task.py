"""What tasks with classes share: the errors of an epoch."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from ..data.semi_supervised import check_pixels
from ..evaluation.classification import predict_classes
from .task import EpochTask

__all__ = ["TERM", "TESTED", "ClassErrors"]

# The first of the terms of such a task, and what it measures.
TERM, TESTED = "train_error", "test_error"


class ClassErrors(EpochTask):
    """A base beside :class:`~fastvae.recipes.training.task.EpochTask` or its subclasses: errors in %.

    The first of a task's ``terms`` is :data:`TERM`, and ``measured`` is :data:`TESTED`.
    """

    def count_errors(self, logits: Tensor, y: Tensor) -> Tensor:
        """Share of the labelled images that ``logits`` ``(N, classes)`` classify wrongly, in %, without a gradient."""
        return 100.0 * (logits.detach().argmax(1) != y).double().mean()

    def validation_step(self, batch: tuple[Tensor, Tensor, int, int], batch_index: int) -> None:
        x, y, first, rows = batch
        # One draw for all test images, whose chunks differ with the number of processes.
        wrong = predict_classes(self.final_model, x, self.config.seed, first=first, rows=rows) != y
        error = 100.0 * wrong.to(torch.float64 if x.dtype == torch.float64 else torch.float32).mean()
        self.log(TESTED, error, prog_bar=True, sync_dist=True, batch_size=len(x))

    def setup(self, stage: str) -> None:
        super().setup(stage)
        model, trainer = cast(Any, self.final_model), cast(Any, self.trainer)
        check_pixels(model.config.data_features, trainer.datamodule.images)
