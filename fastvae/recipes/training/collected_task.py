"""What tasks share whose models take batch statistics."""

from __future__ import annotations

from itertools import islice
from typing import Any, cast

import torch
from torch import Tensor

from ..batch_statistics import check_one_process, collect_statistics
from ..data.batches import NOISE, JointBatches, stream_seed
from .labelled_task import ClassErrors

__all__ = ["CollectedTask"]

# The batches that averages are taken over.
BATCHES = 100


class CollectedTask(ClassErrors):
    """A task on intensities that collects the averages of batch norm at the end of every epoch.

    The averages are those of the weights after the epoch. They are functions of weights, images and seed.
    """

    def setup(self, stage: str) -> None:
        check_one_process(self.hparams["recipe"])
        super().setup(stage)

    def draw_noise(self, rows: int) -> Tensor:
        """Normals ``(rows, latent_features)`` of the present step."""
        generator = torch.Generator(self.device).manual_seed(stream_seed(self.config.seed, NOISE, self.global_step))
        shape, dtype = (rows, self.latent_features), next(self.model.parameters()).dtype
        return torch.randn(shape, dtype=dtype, device=self.device, generator=generator)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        if not self.trainer.is_last_batch:
            return
        images = torch.from_numpy(cast(Any, self.trainer).datamodule.images.x_train).flatten(1)
        batches = JointBatches(len(images), self.config.batch_size, self.config.seed)
        parameter = next(self.model.parameters())
        collect_statistics(self.model, (images[rows].to(parameter) / 255.0 for rows, _ in islice(batches, BATCHES)))
