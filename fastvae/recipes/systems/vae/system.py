"""The system ``vae``: fully connected layers and a Gaussian posterior."""

from __future__ import annotations

from pathlib import Path

from ...latent_system import LatentSystem
from .config import VAEConfig, VAESettings, VAETrainConfig
from .model import VAE
from .task import VAETask

__all__ = ["SYSTEM", "VAESystem"]


class VAESystem(LatentSystem):
    """A VAE with a diagonal or a full-covariance Gaussian posterior."""

    name = "vae"
    settings = VAESettings
    has_unnamed_checkpoints = True

    def make_model(self, config: VAEConfig) -> VAE:
        return VAE(config)

    def make_task(self, model: VAE, config: VAETrainConfig, folder: Path) -> VAETask:
        return VAETask(self.name, model, config, folder)


SYSTEM = VAESystem()
