"""The system ``vae``: fully connected layers and a Gaussian posterior."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from ...data.frey import FreyBatches, FreyFaces, load_frey
from ...data.loaders import ImageBatches
from ...data.semi_supervised import prepare_test_images
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

    def load_images(self, config: VAETrainConfig, *, progress: bool) -> Any:
        return load_frey() if config.data == "frey" else super().load_images(config, progress=progress)

    def make_batches(self, config: VAETrainConfig, images: Any = None) -> ImageBatches:
        kind = FreyBatches if config.data == "frey" else ImageBatches
        return kind(config, lambda progress: self.load_images(config, progress=progress), images)

    def test_images(self, images: Any, seed: int = 0) -> Tensor:
        if isinstance(images, FreyFaces):
            return prepare_test_images(images.x_test, binarize=False)
        return super().test_images(images, seed)

    def make_model(self, config: VAEConfig) -> VAE:
        return VAE(config)

    def make_task(self, model: VAE, config: VAETrainConfig, folder: Path) -> VAETask:
        return VAETask(self.name, model, config, folder)


SYSTEM = VAESystem()
