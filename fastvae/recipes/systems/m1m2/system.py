"""The system ``m1m2``: the model M2 on the latents of a trained M1."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...class_models.figures import SemiSupervisedConfig, SemiSupervisedFigures, evaluate_semi_supervised
from ...class_models.system import SemiSupervisedSystem
from ...evaluation.job import ALONE, Job
from .config import M1M2Config, M1M2Settings, M1M2TrainConfig
from .model import M1M2
from .task import FeatureBatches, M1M2Task, encode_all

__all__ = ["SYSTEM", "M1M2System"]


class M1M2System(SemiSupervisedSystem):
    """M1 and M2, one on the other."""

    name = "m1m2"
    settings = M1M2Settings
    binarize = False

    def make_model(self, config: M1M2Config) -> M1M2:
        return M1M2(config)

    def make_task(self, model: M1M2, config: M1M2TrainConfig, folder: Path) -> M1M2Task:
        return M1M2Task(self.name, model, config, folder)

    def make_batches(self, config: M1M2TrainConfig, images: Any = None) -> FeatureBatches:
        return FeatureBatches(
            config, lambda progress: self.load_images(config, progress=progress), images, binarize=False
        )

    def evaluate(
        self,
        model: M1M2,
        images: Any,
        config: SemiSupervisedConfig,
        *,
        seed: int = 0,
        progress: bool = False,
        job: Job = ALONE,
    ) -> SemiSupervisedFigures:
        means = encode_all(model, self.test_images(images)).mean
        how: dict[str, Any] = {"kind": "features", "seed": seed, "progress": progress, "job": job}
        return evaluate_semi_supervised(model.second, means, images.y_test, config, **how)


SYSTEM = M1M2System()
