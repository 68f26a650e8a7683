"""The system ``m1``: features of images, learned without labels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from ...data.labelled import LabelledParts, load_labelled
from ...data.published_weights import read_m1_weights
from ...latent_system import LatentSystem
from .config import M1Config, M1Settings, M1TrainConfig
from .model import M1
from .task import M1Task

__all__ = ["SYSTEM", "M1System"]


class M1System(LatentSystem):
    """A VAE whose latents are features for a classifier."""

    name = "m1"
    settings = M1Settings

    def make_model(self, config: M1Config) -> M1:
        return M1(config)

    def make_task(self, model: M1, config: M1TrainConfig, folder: Path) -> M1Task:
        return M1Task(self.name, model, config, folder)

    def load_images(self, config: Any, *, progress: bool) -> LabelledParts:  # type: ignore[override]
        return load_labelled(config.data, progress=progress)

    def label(self, config: M1Config) -> str:
        return f"M1, {config.latent_features} latents"

    def import_weights(self, path: Path) -> tuple[M1Config, dict[str, Tensor]]:
        weights = read_m1_weights(path)
        hidden, pixels = weights["encoder.0.weight"].shape
        sizes = (hidden, len(weights["encoder.2.weight"]))
        return M1Config(weights["decoder.0.weight"].shape[1], sizes, pixels), weights


SYSTEM = M1System()
