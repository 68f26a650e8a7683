"""How ``sbn`` is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from ...data.batches import EVALUATION, stream_seed
from ...training.task import EpochTask
from .config import SBNTrainConfig
from .estimators import Baselines, estimate
from .model import SBN

__all__ = ["SBNTask"]

# The variance of the encoder's gradient is that of so many estimates of one batch of so many images.
_ESTIMATES, _IMAGES = 10, 50


class SBNTask(EpochTask):
    """The estimate's objective under Adam; at the end of each epoch the variance of the encoder's gradient."""

    config: SBNTrainConfig
    model: SBN

    def __init__(self, name: str, model: SBN, config: SBNTrainConfig, folder: Path) -> None:
        super().__init__(
            name,
            model,
            config,
            folder,
            latent_features=model.config.latent_features,
            terms=["train_elbo", "gradient_variance"],
            measured="valid_elbo",
        )
        self.baselines = Baselines(config, model.config.data_features)

    def setup(self, stage: str) -> None:
        super().setup(stage)
        self.baselines.running.all_processes = self.trainer.world_size > 1
        images = torch.from_numpy(cast(Any, self.trainer).datamodule.images.x_train).flatten(1)
        self.fixed = (images[:_IMAGES] > 127).to(torch.get_default_dtype())
        # A checkpoint is restored later, so that a resumed run keeps its own.
        self.model.start_at(images.mean(0, dtype=torch.float32) / 255.0)

    @torch.no_grad()
    def on_train_start(self) -> None:
        # Without an earlier signal, the first steps of a running mean would be as noisy as without a baseline.
        if self.global_step == 0:
            x = self.fixed.to(self.model.prior_logits)
            noise = self.joint_noise(x, stream_seed(self.config.seed, EVALUATION, 2), 0, len(x))
            beta = self.config.kl_weight(1, self.trainer.num_training_batches)
            estimate(self.model, x, self.config, self.baselines, beta=beta, **noise)

    def joint_noise(self, x: Tensor, seed: int, first: int, rows: int) -> dict[str, Any]:
        return {"generator": torch.Generator(x.device).manual_seed(seed), "row_offset": first}

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=self.config.learning_rate, fused=True)

    def training_step(self, x: Tensor, batch_index: int) -> Tensor:
        beta = self.config.kl_weight(self.global_step + 1, self.trainer.num_training_batches)
        if batch_index == self.trainer.num_training_batches - 1:
            # The terms are means over the steps of an epoch.
            self.epoch_terms[1] += self.measure_variance(beta) * self.trainer.num_training_batches
        found = estimate(self.model, x, self.config, self.baselines, beta=beta, **self.step_noise(x))
        self.epoch_terms[0] += found.elbo.mean()
        return self.record_loss(found.baseline_loss - found.objective.mean(), x)

    def measure_variance(self, beta: float) -> Tensor:
        """The variance of the encoder's gradient, summed over its weights, for fixed images and the present weights."""
        x, weights = self.fixed.to(self.model.prior_logits), list(self.model.encoders.parameters())
        self.baselines.eval()
        gradients = []
        for i in range(_ESTIMATES):
            noise = self.joint_noise(x, stream_seed(self.config.seed, EVALUATION, 1, self.global_step, i), 0, len(x))
            with torch.enable_grad():
                made = estimate(self.model, x, self.config, self.baselines, beta=beta, **noise)
                found = torch.autograd.grad(made.objective.mean(), weights)
            gradients.append(torch.cat([g.flatten() for g in found]))
        self.baselines.train()
        return torch.stack(gradients).var(0).sum()

    def validation_step(self, batch: tuple[Tensor, int, int], batch_index: int) -> None:
        x, first, rows = batch
        self.record_bound(*self.model.measure(x, **self.test_noise(x, first, rows)), x)
