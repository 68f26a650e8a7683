"""The system ``m2``: a VAE of images with a class that is known of few of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...class_models.figures import SemiSupervisedFigures, evaluate_semi_supervised
from ...class_models.system import SemiSupervisedSystem
from ...data.published_weights import read_m2_weights
from ...data.semi_supervised import prepare_test_images
from ...evaluation.job import ALONE, Job
from .config import M2Config, M2EvaluationConfig, M2Settings, M2TrainConfig
from .model import M2
from .task import M2Task

__all__ = ["SYSTEM", "M2System"]


class M2System(SemiSupervisedSystem):
    """The model M2 on pixels."""

    name = "m2"
    settings = M2Settings

    def make_model(self, config: M2Config) -> M2:
        return M2(config)

    def import_weights(self, path: Path) -> tuple[M2Config, dict[str, Tensor]]:
        """As of :class:`~fastvae.recipes.system.System`. The file has no q(y | x): zeros say so."""
        weights = read_m2_weights(path)
        hidden, pixels = weights["encoder_in.weights.0"].shape
        widths = (hidden, len(weights["encoder.0.weight"]))
        classes, latents = weights["encoder_in.class_weight"].shape[1], weights["decoder_in.weights.0"].shape[1]
        config = M2Config(latents, widths, classes=classes, data_features=pixels)
        classifier = M2(config).classifier.state_dict(prefix="classifier.")
        return config, weights | {name: torch.zeros_like(value) for name, value in classifier.items()}

    def evaluate(
        self,
        model: M2,
        images: Any,
        config: M2EvaluationConfig,
        *,
        seed: int = 0,
        progress: bool = False,
        job: Job = ALONE,
    ) -> SemiSupervisedFigures:
        x = self.test_images(images, seed)
        of_classes = prepare_test_images(images.x_test, False) if config.posterior_of == "intensities" else None
        how: dict[str, Any] = {"intensities": of_classes, "seed": seed, "progress": progress, "job": job}
        return evaluate_semi_supervised(model, x, images.y_test, config, **how)

    def make_task(self, model: M2, config: M2TrainConfig, folder: Path) -> M2Task:
        return M2Task(self.name, model, config, folder)


SYSTEM = M2System()
