"""How ``m2`` is trained."""

from __future__ import annotations

from typing import Any, cast

import torch

from ...class_models.task import SemiSupervisedTask
from .model import M2

__all__ = ["M2Task"]


class M2Task(SemiSupervisedTask):
    """The loss of the model M2, which starts from a first batch, and its decoder at the means of the pixels."""

    model: M2

    def setup(self, stage: str) -> None:
        super().setup(stage)
        # A checkpoint is restored later, so that a resumed run keeps its own.
        images = torch.from_numpy(cast(Any, self.trainer).datamodule.images.x_train)
        self.model.start_at(images.flatten(1).mean(0, dtype=torch.float32) / 255.0)
        self.model.to(self.trainer.strategy.root_device)
        self.start_from(self.first_batch()[0])
