"""How ``vat`` is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...data.semi_supervised import SemiSupervisedBatch
from ...training.collected_task import CollectedTask
from ...training.labelled_task import TERM, TESTED
from .config import VATTrainConfig
from .model import VATClassifier
from .perturbation import prediction_entropy

__all__ = ["VATTask"]


class VATTask(CollectedTask):
    """Cross entropy of labelled images, smoothness and entropy at unlabelled ones, and Adam with a rate that decays."""

    config: VATTrainConfig
    model: VATClassifier

    def __init__(self, name: str, model: VATClassifier, config: VATTrainConfig, folder: Path) -> None:
        super().__init__(
            name,
            model,
            config,
            folder,
            latent_features=model.config.data_features,
            terms=[TERM, "train_cross_entropy", "train_smoothness", "train_entropy"],
            measured=TESTED,
        )

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.model.parameters(), lr=self.config.learning_rate, fused=True)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self.decay)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def decay(self, step: int) -> float:
        """Share of the first learning rate, in stairs."""
        return self.config.decay ** (step // self.config.decay_steps)

    def training_step(self, batch: SemiSupervisedBatch, batch_index: int) -> Tensor:
        x_l, y_l, x_u = batch
        logits = self.model(x_l)
        cross_entropy = torch.nn.functional.cross_entropy(logits, y_l)
        # Without a weight no gradient goes through the predictions of the unlabelled images.
        with torch.set_grad_enabled(self.config.entropy_weight > 0):
            logits_u = self.model(x_u)
            entropy = prediction_entropy(logits_u).mean()
        smoothness = self.model.smoothness(x_u, self.draw_noise(len(x_u)), logits_u).mean()
        with torch.no_grad():
            self.epoch_terms += torch.stack([self.count_errors(logits, y_l), cross_entropy, smoothness, entropy])
        regularized = self.config.smoothness_weight * smoothness + self.config.entropy_weight * entropy
        return self.record_loss(cross_entropy + regularized, x_u)
