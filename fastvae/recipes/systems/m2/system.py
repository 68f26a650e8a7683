"""The system ``m2``: a VAE of images with a class that is known of few of them."""

from __future__ import annotations

from pathlib import Path

from ...class_models.system import SemiSupervisedSystem
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

    def make_task(self, model: M2, config: M2TrainConfig, folder: Path) -> M2Task:
        return M2Task(self.name, model, config, folder)


SYSTEM = M2System()
