"""How ``iaf_vae`` is trained."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from ....nn import shared_first_batch
from ...training.task import AveragedTask
from .config import IAFTrainConfig
from .model import IAFVAE

__all__ = ["IAFTask"]


class IAFTask(AveragedTask):
    """Loss with free bits, Adamax, and a moving average of the weights, on which the tests run."""

    config: IAFTrainConfig
    model: IAFVAE
    averaged: IAFVAE

    def __init__(self, name: str, model: IAFVAE, config: IAFTrainConfig, folder: Path) -> None:
        super().__init__(
            name,
            model,
            config,
            folder,
            latent_features=model.config.latent_features,
            terms=["train_elbo", "train_kl"],
            measured="test_elbo",
        )

    def setup(self, stage: str) -> None:
        # A checkpoint is restored later, so that a resumed run keeps its own weights.
        super().setup(stage)
        # On the device of the training: an implementation may run on no other one.
        self.model.to(self.trainer.strategy.root_device)
        # All processes take the whole first batch and its noise.
        x, noise = self.first_batch()
        with shared_first_batch():
            self.model.initialize_from(x, **noise)
        self.averaged.load_state_dict(self.model.state_dict())
        if self.config.compile:
            self.model.encoder.compile()
            self.model.decoder.compile()

    def optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.Adamax(self.model.parameters(), lr=self.config.learning_rate)

    def training_step(self, x: Tensor, batch_index: int) -> Tensor:
        config, several = self.config, self.trainer.world_size > 1
        loss, bound, kl = self.model.loss(
            x,
            config.free_bits,
            num_groups=config.free_bits_groups,
            beta=config.kl_weight(self.global_step + 1, self.trainer.num_training_batches),
            all_processes=several,
            **self.step_noise(x),
        )
        self.epoch_terms += torch.stack([bound, kl])
        return self.record_loss(loss, x)

    def validation_step(self, batch: tuple[Tensor, int, int], batch_index: int) -> None:
        x, first, rows = batch
        self.record_bound(*self.averaged.measure(x, **self.test_noise(x, first, rows)), x)
