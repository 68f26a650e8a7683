"""How ``iwae`` is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from ....objectives import dreg_bound, iwae_bound
from ...training.rates import half_cosine
from ...training.task import EpochTask
from .config import IWAETrainConfig
from .model import IWAE

__all__ = ["IWAETask", "training_bounds"]


def training_bounds(model: IWAE, x: Tensor, samples: int, objective: str, **noise: Any) -> tuple[Tensor, Tensor]:
    """The bound of an objective for each of binary images ``(N, pixels)``, and the ELBO: ``(N,)`` each, nats."""
    if objective == "dreg":
        log_w, paths = model.log_weights_by_path(x, model.encode(x), samples, **noise)
        return dreg_bound(log_w, paths), log_w.detach().mean(0)
    log_w = model.log_weights(x, model.encode(x), samples, **noise)
    elbo = log_w.mean(0)
    return (elbo if objective == "vae" else iwae_bound(log_w)), elbo.detach()


class IWAETask(EpochTask):
    """Negative bound of K samples, Adam, and a rate that falls by half a cosine."""

    config: IWAETrainConfig
    model: IWAE

    def __init__(self, name: str, model: IWAE, config: IWAETrainConfig, folder: Path) -> None:
        latent_features = config.importance_samples * sum(model.config.latent_features)
        super().__init__(
            name,
            model,
            config,
            folder,
            latent_features=latent_features,
            terms=["train_elbo", "train_bound"],
            measured="test_elbo",
        )

    def setup(self, stage: str) -> None:
        super().setup(stage)
        # A checkpoint is restored later, so that a resumed run keeps its own.
        images = torch.from_numpy(cast(Any, self.trainer).datamodule.images.x_train)
        self.model.start_at(images.flatten(1).mean(0, dtype=torch.float32) / 255.0)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), lr=self.config.learning_rate, fused=True)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self.decay)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def decay(self, step: int) -> float:
        """Share of the first learning rate."""
        return half_cosine(step, self.steps, self.config.final_learning_rate / self.config.learning_rate)

    def training_step(self, x: Tensor, batch_index: int) -> Tensor:
        noise = self.step_noise(x)
        if "eps" in noise:
            noise["eps"] = noise["eps"].unflatten(1, (self.config.importance_samples, -1)).transpose(0, 1)
        config = self.config
        bound, elbo = training_bounds(self.model, x, config.importance_samples, config.objective, **noise)
        loss = -bound.mean()
        self.epoch_terms += torch.stack([elbo.mean(), -loss.detach()])
        return self.record_loss(loss, x)

    def validation_step(self, batch: tuple[Tensor, int, int], batch_index: int) -> None:
        x, first, rows = batch
        noise = self.test_noise(x, first, rows)
        if "eps" in noise:
            noise["eps"] = noise["eps"][:, : sum(self.model.config.latent_features)]
        log_p_x, kl = self.model.measure(x, **noise)
        self.log("test_elbo", (log_p_x - kl.sum(-1)).mean(), prog_bar=True, sync_dist=True, batch_size=len(x))
