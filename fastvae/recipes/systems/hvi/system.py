"""The system ``hvi``: a VAE with Hamiltonian variational inference."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from ...latent_system import LatentSystem
from ...pictures.grids import draw_means
from .config import HVIConfig, HVISettings, HVITrainConfig
from .model import HVI
from .task import HVITask

__all__ = ["SYSTEM", "HVISystem"]


class HVISystem(LatentSystem):
    """A posterior that Hamiltonian dynamics move, on dynamically binarised MNIST."""

    name = "hvi"
    settings = HVISettings

    def make_model(self, config: HVIConfig) -> HVI:
        return HVI(config)

    def make_task(self, model: HVI, config: HVITrainConfig, folder: Path) -> HVITask:
        return HVITask(self.name, model, config, folder)

    def label(self, config: HVIConfig) -> str:
        return f"HVI, {config.leapfrog} leapfrog steps"

    def draw(self, model: HVI, x: Tensor, folder: Path) -> None:
        draw_means(self.label(model.config), model, x[:12], folder)


SYSTEM = HVISystem()
