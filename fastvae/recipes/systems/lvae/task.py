"""How ``lvae`` is trained."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from ...batch_statistics import check_one_process, collect_statistics
from ...data.batches import NOISE, BinarizedImages, JointBatches, stream_seed
from ...training.rates import half_cosine
from ...training.task import EpochTask
from .config import LVAETrainConfig
from .model import LVAE

__all__ = ["LVAETask"]

# The batches that averages of batch norm are taken over, and the limits of a gradient: its norm, then its numbers.
BATCHES, MOST_NORM, MOST_NUMBER = 100, 4.0, 0.9


class LVAETask(EpochTask):
    """Negative ELBO with a warm-up of its KL terms, Adam, and averages of batch norm collected after every epoch.

    The averages are those of the weights after the epoch. They are functions of weights, images and seed.
    """

    config: LVAETrainConfig
    model: LVAE

    def __init__(self, name: str, model: LVAE, config: LVAETrainConfig, folder: Path) -> None:
        super().__init__(
            name,
            model,
            config,
            folder,
            latent_features=sum(model.config.latent_features),
            terms=["train_elbo", *(f"train_{name}" for name in model.kl_names)],
            measured="test_elbo",
        )

    def setup(self, stage: str) -> None:
        check_one_process(self.hparams["recipe"])
        super().setup(stage)
        # A checkpoint is restored later, so that a resumed run keeps its own.
        images = torch.from_numpy(self.images)
        self.model.start_at(images.flatten(1).mean(0, dtype=torch.float32) / 255.0)

    @property
    def images(self) -> Any:
        return cast(Any, self.trainer).datamodule.images.x_train

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), lr=self.config.learning_rate, fused=True)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self.decay)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def decay(self, step: int) -> float:
        """Share of the first learning rate."""
        return half_cosine(step, self.steps, self.config.final_learning_rate / self.config.learning_rate)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        parameters = [p for p in self.model.parameters() if p.grad is not None]
        torch.nn.utils.clip_grad_norm_(parameters, MOST_NORM)
        torch.nn.utils.clip_grad_value_(parameters, MOST_NUMBER)

    def training_step(self, x: Tensor, batch_index: int) -> Tensor:
        beta = self.config.kl_weight(self.global_step + 1, self.trainer.num_training_batches)
        log_p_x, kl = self.model.measure(x, **self.step_noise(x))
        loss = -(log_p_x - beta * kl.sum(-1)).mean()
        with torch.no_grad():
            self.epoch_terms += torch.cat([(log_p_x - kl.sum(-1)).mean()[None], kl.mean(0)])
        return self.record_loss(loss, x)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        if not self.trainer.is_last_batch:
            return
        images, parameter = BinarizedImages(self.images), next(self.model.parameters())
        batches = JointBatches(len(self.images), self.config.batch_size, self.config.seed)
        # The latents of these passes are drawn, too, and leave torch's generator as it was.
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(stream_seed(self.config.seed, NOISE, self.global_step))
            collect_statistics(self.model, (images[rows].to(parameter) for rows in islice(batches, BATCHES)))

    def validation_step(self, batch: tuple[Tensor, int, int], batch_index: int) -> None:
        x, first, rows = batch
        self.record_bound(*self.model.measure(x, **self.test_noise(x, first, rows)), x)
