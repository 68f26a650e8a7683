"""The system ``lvae``: a ladder variational auto-encoder, or an ordinary hierarchy of the same sizes."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from ...latent_system import LatentSystem
from ...pictures.grids import draw_means
from .config import LVAEConfig, LVAESettings, LVAETrainConfig
from .model import LVAE
from .task import LVAETask

__all__ = ["SYSTEM", "LVAESystem"]


class LVAESystem(LatentSystem):
    """Levels of Gaussian latents on dynamically binarised MNIST."""

    name = "lvae"
    settings = LVAESettings

    def make_model(self, config: LVAEConfig) -> LVAE:
        return LVAE(config)

    def make_task(self, model: LVAE, config: LVAETrainConfig, folder: Path) -> LVAETask:
        return LVAETask(self.name, model, config, folder)

    def label(self, config: LVAEConfig) -> str:
        return f"{'LVAE' if config.inference == 'ladder' else 'VAE'}, {len(config.latent_features)} levels"

    def draw(self, model: LVAE, x: Tensor, folder: Path) -> None:
        draw_means(self.label(model.config), model, x[:12], folder)


SYSTEM = LVAESystem()
