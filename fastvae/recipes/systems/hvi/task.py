"""How ``hvi`` is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from ....nn import shared_first_batch
from ...training.rates import half_cosine
from ...training.task import EpochTask
from .config import HVITrainConfig
from .model import HVI

__all__ = ["HVITask"]


class HVITask(EpochTask):
    """Negative bound, Adamax, and a rate that falls by half a cosine."""

    config: HVITrainConfig
    model: HVI

    def __init__(self, name: str, model: HVI, config: HVITrainConfig, folder: Path) -> None:
        super().__init__(
            name,
            model,
            config,
            folder,
            latent_features=model.noise_features,
            terms=["train_elbo", "train_kl"],
            measured="test_elbo",
        )

    def setup(self, stage: str) -> None:
        super().setup(stage)
        # A checkpoint is restored later, so that a resumed run keeps its own.
        self.model.to(self.trainer.strategy.root_device)
        # All processes take the whole first batch and its noise.
        x, noise = self.first_batch()
        images = torch.from_numpy(cast(Any, self.trainer).datamodule.images.x_train)
        with shared_first_batch():
            self.model.initialize_from(x, images.flatten(1).mean(0, dtype=torch.float32).to(x) / 255.0, **noise)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adamax(self.parameters(), lr=self.config.learning_rate)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self.decay)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def decay(self, step: int) -> float:
        """Share of the first learning rate."""
        return half_cosine(step, self.steps, self.config.final_learning_rate / self.config.learning_rate)

    def training_step(self, x: Tensor, batch_index: int) -> Tensor:
        beta = self.config.kl_weight(self.global_step + 1, self.trainer.num_training_batches)
        log_p_x, kl = self.model.measure(x, **self.step_noise(x))
        with torch.no_grad():
            self.epoch_terms += torch.stack([(log_p_x - kl[:, 0]).mean(), kl.mean()])
        return self.record_loss(-(log_p_x - beta * kl[:, 0]).mean(), x)

    def validation_step(self, batch: tuple[Tensor, int, int], batch_index: int) -> None:
        x, first, rows = batch
        self.record_bound(*self.model.measure(x, **self.test_noise(x, first, rows)), x)
