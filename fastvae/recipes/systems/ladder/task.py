"""How ``ladder`` is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...data.semi_supervised import SemiSupervisedBatch
from ...training.collected_task import CollectedTask
from ...training.labelled_task import TERM, TESTED
from .config import LadderTrainConfig
from .model import Ladder

__all__ = ["LadderTask", "name_costs"]


def name_costs(layers: int) -> list[str]:
    """The columns of ``metrics.csv`` with the costs of layers, from the input up."""
    return [f"train_cost_{layer}" for layer in range(layers)]


class LadderTask(CollectedTask):
    """Cross entropy of the labelled images, weighted costs at the unlabelled ones, and Adam with a rate that falls."""

    config: LadderTrainConfig
    model: Ladder

    def __init__(self, name: str, model: Ladder, config: LadderTrainConfig, folder: Path) -> None:
        layers = len(model.config.widths)
        super().__init__(
            name,
            model,
            config,
            folder,
            latent_features=model.noise_features,
            terms=[TERM, "train_cross_entropy", *name_costs(layers)],
            measured=TESTED,
        )
        given = config.costs[:layers]
        self.weights = given + given[-1:] * (layers - len(given))

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.model.parameters(), lr=self.config.learning_rate, fused=True)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self.decay)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def decay(self, step: int) -> float:
        """Share of the first learning rate: 1, then a line to 0 over the rest of the steps."""
        begin = self.config.decay_from * self.steps
        return min(1.0, max((self.steps - step) / (self.steps - begin), 0.0))

    def training_step(self, batch: SemiSupervisedBatch, batch_index: int) -> Tensor:
        x_l, y_l, x_u = batch
        logits, costs = self.model.denoise(x_l, x_u, self.draw_noise(len(x_l) + len(x_u)))
        cross_entropy = torch.nn.functional.cross_entropy(logits, y_l)
        with torch.no_grad():
            errors = self.count_errors(logits, y_l)
            self.epoch_terms += torch.cat([torch.stack([errors, cross_entropy]), costs])
        return self.record_loss(cross_entropy + costs @ costs.new_tensor(self.weights), x_u)
