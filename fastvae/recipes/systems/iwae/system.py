"""The system ``iwae``: importance-weighted bounds, one or two layers of latents."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from ...latent_system import LatentSystem
from ...pictures.grids import draw_grid
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
        def generator() -> torch.Generator:
            return torch.Generator().manual_seed(0)

        name, shown = self.label(model.config), x[:12]
        draw_grid(model.sample(64, generator=generator()), 8, 8, f"Means of p(x | z): {name}", folder / "samples.png")
        pairs = torch.cat([shown, model.reconstruct(shown, generator=generator())])
        title = "Test images, and means of p(x | z), z ~ q(z | x)"
        draw_grid(pairs, 2, len(shown), title, folder / "reconstructions.png")


SYSTEM = IWAESystem()
