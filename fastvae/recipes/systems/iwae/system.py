"""The system ``iwae``: importance-weighted bounds, one or two layers of latents."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from ...evaluation.bounds import spread
from ...latent_system import LatentSystem
from ...pictures.grids import draw_means
from ...pictures.importance import draw_bounds_by_samples
from .config import IWAEConfig, IWAESettings, IWAETrainConfig
from .model import IWAE
from .task import IWAETask

__all__ = ["SYSTEM", "IWAESystem"]


# Test images whose bounds are drawn.
SHOWN = 100


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
        name = self.label(model.config)
        draw_means(name, model, x[:12], folder)
        draw_bounds_by_samples(name, model, spread(x, SHOWN), folder / "bounds_by_samples.png")


SYSTEM = IWAESystem()
