"""How ``cvae`` is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from ....nn import shared_first_batch
from ...data.semi_supervised import check_pixels
from ...training.task import EpochTask
from .config import CVAETrainConfig
from .model import CVAE

__all__ = ["CVAETask"]


class CVAETask(EpochTask):
    """Negative bound of log p(x | y), optimiser and schedule."""

    config: CVAETrainConfig
    model: CVAE

    def __init__(self, name: str, model: CVAE, config: CVAETrainConfig, folder: Path) -> None:
        latents: dict[str, Any] = {"latent_features": model.config.latent_features}
        super().__init__(name, model, config, folder, terms=["train_elbo"], measured="test_elbo", **latents)

    def setup(self, stage: str) -> None:
        super().setup(stage)
        images = cast(Any, self.trainer).datamodule.images
        check_pixels(self.model.config.data_features, images)
        # A checkpoint is restored later, so that a resumed run keeps its own.
        self.model.start_at(torch.from_numpy(images.x_train).flatten(1).mean(0, dtype=torch.float32) / 255.0)
        self.model.to(self.trainer.strategy.root_device)
        # All processes take the whole first batch and its noise.
        x, noise = self.first_batch()
        with shared_first_batch():
            self.model.initialize_from(x, self.first_labels(), **noise)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), lr=self.config.learning_rate, fused=True)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self.one_cycle)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def training_step(self, batch: tuple[Tensor, Tensor], batch_index: int) -> Tensor:
        x, labels = batch
        beta = self.config.kl_weight(self.global_step + 1, self.trainer.num_training_batches)
        log_p_x, kl = self.model.measure(x, labels=labels, **self.step_noise(x))
        self.epoch_terms += (log_p_x - kl[:, 0]).detach().mean()
        return self.record_loss(-(log_p_x - beta * kl[:, 0]).mean(), x)

    def validation_step(self, batch: tuple[Tensor, Tensor, int, int], batch_index: int) -> None:
        x, labels, first, rows = batch
        self.record_bound(*self.model.measure(x, labels=labels, **self.test_noise(x, first, rows)), x)
