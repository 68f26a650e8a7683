"""The system ``m2``: a VAE of images with a class that is known of few of them."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from ...class_models.system import SemiSupervisedSystem
from ...data.published_weights import read_m2_weights
from .config import M2Config, M2Settings, M2TrainConfig
from .model import M2
from .task import M2Task

__all__ = ["SYSTEM", "M2System"]


class M2System(SemiSupervisedSystem):
    """The model M2 on pixels."""

    name = "m2"
    settings = M2Settings

    def make_model(self, config: M2Config) -> M2:
        return M2(config)

    def import_weights(self, path: Path) -> tuple[M2Config, dict[str, Tensor]]:
        """As of :class:`~fastvae.recipes.system.System`. The file has no q(y | x), which becomes uniform."""
        weights = read_m2_weights(path)
        hidden, pixels = weights["encoder_in.weights.0"].shape
        widths = (hidden, len(weights["encoder.0.weight"]))
        classes, latents = weights["encoder_in.class_weight"].shape[1], weights["decoder_in.weights.0"].shape[1]
        config = M2Config(latents, widths, classes=classes, data_features=pixels)
        classifier = M2(config).classifier.state_dict(prefix="classifier.")
        return config, weights | {name: torch.zeros_like(value) for name, value in classifier.items()}

    def make_task(self, model: M2, config: M2TrainConfig, folder: Path) -> M2Task:
        return M2Task(self.name, model, config, folder)


SYSTEM = M2System()
