"""How ``vae`` is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from ...training.task import EpochTask
from .config import VAETrainConfig
from .model import VAE

__all__ = ["VAETask"]


class VAETask(EpochTask):
    """Negative ELBO, optimiser and schedule."""

    config: VAETrainConfig
    model: VAE

    def __init__(self, name: str, model: VAE, config: VAETrainConfig, folder: Path) -> None:
        super().__init__(
            name,
            model,
            config,
            folder,
            latent_features=model.config.latent_features,
            terms=["train_elbo"],
            measured="test_elbo",
        )

    def setup(self, stage: str) -> None:
        super().setup(stage)
        # A checkpoint is restored later, so that a resumed run keeps its own.
        images = torch.from_numpy(cast(Any, self.trainer).datamodule.images.x_train)
        self.model.start_at(images.flatten(1).mean(0, dtype=torch.float32) / 255.0)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), lr=self.config.learning_rate, fused=True)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self.one_cycle)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def training_step(self, x: Tensor, batch_index: int) -> Tensor:
        config, noise = self.config, self.step_noise(x)
        beta = config.kl_weight(self.global_step + 1, self.trainer.num_training_batches)
        if config.free_bits > 0 or beta != 1.0:
            sampled, several = self.model.config.kl == "monte-carlo", self.trainer.world_size > 1
            groups: dict[str, Any] = {"num_groups": config.free_bits_groups, "all_processes": several}
            loss, bound, _ = self.model.loss(x, config.free_bits, beta=beta, sampled=sampled, **groups, **noise)
            self.epoch_terms += bound
        else:
            loss = -self.model.bound(x, **noise).mean()
            self.epoch_terms -= loss.detach()
        return self.record_loss(loss, x)

    def validation_step(self, batch: tuple[Tensor, int, int], batch_index: int) -> None:
        x, first, rows = batch
        self.record_bound(*self.model.measure(x, **self.test_noise(x, first, rows)), x)
