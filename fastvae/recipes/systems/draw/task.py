"""How ``draw`` is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from ....objectives import free_bits
from ...training.rates import half_cosine
from ...training.task import EpochTask
from .config import DRAWTrainConfig
from .model import DRAW

__all__ = ["DRAWTask"]

# Decay of Adam's mean of gradients, and the greatest norm of a gradient.
MOMENTUM, MOST_NORM = 0.5, 5.0


class DRAWTask(EpochTask):
    """Negative bound, Adam, and a rate that falls by half a cosine."""

    config: DRAWTrainConfig
    model: DRAW

    def __init__(self, name: str, model: DRAW, config: DRAWTrainConfig, folder: Path) -> None:
        super().__init__(
            name,
            model,
            config,
            folder,
            latent_features=model.noise_features,
            terms=["train_elbo", "train_kl"],
            measured=f"{config.measured_part}_elbo",
        )

    def setup(self, stage: str) -> None:
        super().setup(stage)
        # A checkpoint is restored later, so that a resumed run keeps its own.
        images = torch.from_numpy(cast(Any, self.trainer).datamodule.images.x_train)
        self.model.start_at(images.flatten(1).mean(0, dtype=torch.float32) / 255.0)

    def configure_optimizers(self) -> Any:
        parameters, rate = self.parameters(), self.config.learning_rate
        optimizer = torch.optim.Adam(parameters, lr=rate, betas=(MOMENTUM, 0.999), fused=True)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self.decay)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def decay(self, step: int) -> float:
        """Share of the first learning rate."""
        return half_cosine(step, self.steps, self.config.final_learning_rate / self.config.learning_rate)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), MOST_NORM)

    def training_step(self, x: Tensor, batch_index: int) -> Tensor:
        config = self.config
        beta = config.kl_weight(self.global_step + 1, self.trainer.num_training_batches)
        log_p_x, kl = self.model.measure(x, **self.step_noise(x))
        penalty = kl.sum(-1).mean()
        with torch.no_grad():
            self.epoch_terms += torch.stack([log_p_x.mean() - penalty, penalty])
        if config.free_bits > 0:
            penalty = free_bits(kl, config.free_bits, all_processes=self.trainer.world_size > 1)
        return self.record_loss(beta * penalty - log_p_x.mean(), x)

    def validation_step(self, batch: tuple[Tensor, int, int], batch_index: int) -> None:
        x, first, rows = batch
        self.record_bound(*self.model.measure(x, **self.test_noise(x, first, rows)), x)
