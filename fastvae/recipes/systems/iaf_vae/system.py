"""The system ``iaf_vae``: residual convolutions, and a posterior that may be an inverse autoregressive flow."""

from __future__ import annotations

from pathlib import Path

from ...latent_system import LatentSystem
from .config import IAFTrainConfig, IAFVAEConfig, IAFVAESettings
from .model import IAFVAE
from .task import IAFTask

__all__ = ["SYSTEM", "IAFVAESystem"]


class IAFVAESystem(LatentSystem):
    """A convolutional VAE with a diagonal, a full-covariance or a flow posterior."""

    name = "iaf_vae"
    settings = IAFVAESettings

    def make_model(self, config: IAFVAEConfig) -> IAFVAE:
        return IAFVAE(config)

    def make_task(self, model: IAFVAE, config: IAFTrainConfig, folder: Path) -> IAFTask:
        return IAFTask(self.name, model, config, folder)


SYSTEM = IAFVAESystem()
