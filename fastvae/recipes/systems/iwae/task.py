"""How ``iwae`` is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from ....objectives import dreg_bound, iwae_bound, monte_carlo_elbo
from ...training.rates import half_cosine
from ...training.task import EpochTask
from .config import IWAETrainConfig
from .model import IWAE

__all__ = ["IWAETask", "training_bounds"]


def training_bounds(
    model: IWAE, x: Tensor, samples: int, objective: str, *, beta: float = 1.0, **noise: Any
) -> tuple[Tensor, Tensor]:
    """The bound of an objective for each of binary images ``(N, pixels)``, and the ELBO: ``(N,)`` each, nats.

    Args:
        model: the model.
        x: the images.
        samples: of each image.
        objective: ``"iwae"``, ``"dreg"`` or ``"vae"``.
        beta: weight of log p(z) - log q(z | x) in the bound; the ELBO has weight 1.
        noise: as of the model's ``log_weights``.
    """
    if objective == "dreg":
        terms, paths = model.weigh_by_path(x, model.encode(x), samples, **noise)
    else:
        terms, paths = model.weigh(x, model.encode(x), samples, **noise), []
    log_w = monte_carlo_elbo(*terms, beta=beta)
    with torch.no_grad():
        elbo = (log_w if beta == 1 else monte_carlo_elbo(*terms)).mean(0)
    if objective == "dreg":
        return dreg_bound(log_w, paths, beta=beta), elbo
    return (log_w.mean(0) if objective == "vae" else iwae_bound(log_w)), elbo


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
        noise["beta"] = config.kl_weight(self.global_step + 1, self.trainer.num_training_batches)
        bound, elbo = training_bounds(self.model, x, config.importance_samples, config.objective, **noise)
        loss = -bound.mean()
        self.epoch_terms += torch.stack([elbo.mean(), -loss.detach()])
        return self.record_loss(loss, x)

    def validation_step(self, batch: tuple[Tensor, int, int], batch_index: int) -> None:
        x, first, rows = batch
        noise = self.test_noise(x, first, rows)
        if "eps" in noise:
            noise["eps"] = noise["eps"][:, : sum(self.model.config.latent_features)]
        self.record_bound(*self.model.measure(x, **noise), x)
