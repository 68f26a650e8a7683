"""The system ``iwae``: importance-weighted bounds, one or two layers of latents."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from ...latent_system import LatentSystem
from ...pictures.grids import draw_means
from .config import IWAEConfig, IWAESettings, IWAETrainConfig
from .model import IWAE
from .task import IWAETask

__all__ = ["SYSTEM", "IWAESystem"]


class IWAESystem(LatentSystem):
    """Importance-weighted auto-encoders on dynamically binarised MNIST."""

    name = "iwae"
    settings = IWAESettings

    def make_model(self, config: IWAEConfig) -> IWAE:
        return IWAE(config)

    def make_task(self, model: IWAE, config: IWAETrainConfig, folder: Path) -> IWAETask:
        return IWAETask(self.name, model, config, folder)

    def label(self, config: IWAEConfig) -> str:
        return f"IWAE, {config.layers} stochastic layer{'s' if config.layers > 1 else ''}"

    def draw(self, model: IWAE, x: Tensor, folder: Path) -> None:
        draw_means(self.label(model.config), model, x[:12], folder)


SYSTEM = IWAESystem()
