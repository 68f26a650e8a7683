"""How ``m1`` is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from ....nn import shared_first_batch
from ...data.semi_supervised import check_pixels
from ...training.task import AveragedTask
from .config import M1TrainConfig
from .model import M1

__all__ = ["M1Task"]


class M1Task(AveragedTask):
    """Negative ELBO, and a normal prior of the weights, of which every image has its share."""

    config: M1TrainConfig
    model: M1
    averaged: M1

    def __init__(self, name: str, model: M1, config: M1TrainConfig, folder: Path) -> None:
        features = model.config.latent_features
        super().__init__(
            name, model, config, folder, latent_features=features, terms=["train_elbo"], measured="test_elbo"
        )

    def setup(self, stage: str) -> None:
        super().setup(stage)
        images = cast(Any, self.trainer).datamodule.images
        check_pixels(self.model.config.data_features, images)
        self.images = len(images.x_train)
        # A checkpoint is restored later, so that a resumed run keeps its own.
        self.model.to(self.trainer.strategy.root_device)
        # All processes take the whole first batch and its noise.
        x, noise = self.first_batch()
        means = torch.from_numpy(images.x_train).flatten(1).mean(0, dtype=torch.float32) / 255.0
        with shared_first_batch():
            self.model.initialize_from(x, means.to(x), **noise)
        self.averaged.load_state_dict(self.model.state_dict())

    def optimizer(self) -> torch.optim.Optimizer:
        # Adam's decay is the gradient of the prior's logarithm, in nats of an image.
        decay = self.config.weight_prior / self.images
        return torch.optim.Adam(self.model.parameters(), lr=self.config.learning_rate, weight_decay=decay, fused=True)

    def training_step(self, x: Tensor, batch_index: int) -> Tensor:
        beta = self.config.kl_weight(self.global_step + 1, self.trainer.num_training_batches)
        log_p_x, kl = self.model.measure(x, **self.step_noise(x))
        self.epoch_terms += (log_p_x - kl[:, 0]).detach().mean()
        return self.record_loss(-(log_p_x - beta * kl[:, 0]).mean(), x)

    def validation_step(self, batch: tuple[Tensor, int, int], batch_index: int) -> None:
        x, first, rows = batch
        self.record_bound(*self.averaged.measure(x, **self.test_noise(x, first, rows)), x)
