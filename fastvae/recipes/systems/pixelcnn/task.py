"""How models over pixels are trained, with latents or without."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from ....nn import initialize_from_data, shared_first_batch
from ....objectives import free_bits
from ...training.config import WarmupConfig
from ...training.task import AveragedTask
from .config import PixelTrainConfig

__all__ = ["PixelModel", "PixelTask"]


class PixelModel(Protocol):
    """The part of a model, a module, that the task uses.

    ``quantity`` is ``"log_p"`` or ``"elbo"``, ``kl_names`` names the KL terms, ``noise_features`` is the number of
    normals that one image takes; ``measure`` returns log p(x | z), ``(N,)``, and the KL terms, ``(N, len(kl_names))``.
    """

    config: Any
    quantity: str

    @property
    def kl_names(self) -> tuple[str, ...]: ...
    @property
    def noise_features(self) -> int: ...
    def measure(self, x: Tensor, posterior: Any = None, **noise: Any) -> tuple[Tensor, Tensor]: ...


class PixelTask(AveragedTask):
    r"""The loss :math:`-\log p(x \mid z) + \beta D_{KL}`, free bits, Adam, and a :math:`\beta` that rises at first."""

    def __init__(self, name: str, model: PixelModel, config: PixelTrainConfig, folder: Path) -> None:
        super().__init__(
            name,
            cast(nn.Module, model),
            config,
            folder,
            latent_features=model.noise_features,
            terms=[f"train_{term}" for term in (model.quantity, *model.kl_names)],
            measured=f"{config.measured_part}_{model.quantity}",
        )
        self.free_nats = getattr(config, "free_bits", 0.0)

    def setup(self, stage: str) -> None:
        # A checkpoint is restored later, so that a resumed run keeps its own weights.
        super().setup(stage)
        settings: Any = self.model.config
        if not settings.weight_norm:
            return
        self.model.to(self.trainer.strategy.root_device)
        # All processes take the whole first batch and its noise.
        x, given = self.first_batch()
        if getattr(settings, "conditional", False):
            given["labels"] = self.first_labels()
        with shared_first_batch():
            initialize_from_data(self.model, x, run=lambda x: cast(PixelModel, self.model).measure(x, **given))
        self.averaged.load_state_dict(self.model.state_dict())

    def training_step(self, batch: Tensor | tuple[Tensor, Tensor], batch_index: int) -> Tensor:
        x, labels = split_labels(batch)
        log_p_x, kl = cast(PixelModel, self.model).measure(x, **labels, **self.step_noise(x))
        penalty = kl.sum(-1).mean()
        beta = self.config.kl_weight(self.global_step + 1) if isinstance(self.config, WarmupConfig) else 1.0
        with torch.no_grad():
            self.epoch_terms += torch.cat([(log_p_x.mean() - penalty)[None], kl.mean(0)])
        # Without free bits no floor: estimates of a divergence may be negative.
        if self.free_nats:
            penalty = free_bits(kl, self.free_nats, all_processes=self.trainer.world_size > 1)
        return self.record_loss(beta * penalty - log_p_x.mean(), x)

    def validation_step(self, batch: tuple[Any, ...], batch_index: int) -> None:
        *images, first, rows = batch
        x, labels = split_labels(images)
        model = cast(PixelModel, self.averaged)
        self.record_bound(*model.measure(x, **labels, **self.test_noise(x, first, rows)), x)


def split_labels(batch: Tensor | Sequence[Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """The images of a batch, and the labels, if it has some, as an argument of a model."""
    x, *labels = [batch] if isinstance(batch, Tensor) else batch
    return x, {"labels": labels[0]} if labels else {}
