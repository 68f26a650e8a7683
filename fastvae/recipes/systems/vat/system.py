"""The system ``vat``: a classifier whose predictions withstand small perturbations of its inputs."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from ...evaluation.bounds import spread
from ...labelled_system import LabelledSystem
from .config import VATConfig, VATSettings, VATTrainConfig
from .model import VATClassifier
from .moons import fit_moons, label_moons
from .pictures import draw_adversarial, draw_moons
from .task import VATTask

__all__ = ["SYSTEM", "VATSystem"]


class VATSystem(LabelledSystem):
    """Virtual adversarial training of fully connected layers, on intensities."""

    name = "vat"
    settings = VATSettings
    binarize = False

    def make_model(self, config: VATConfig) -> VATClassifier:
        return VATClassifier(config)

    def make_task(self, model: VATClassifier, config: VATTrainConfig, folder: Path) -> VATTask:
        return VATTask(self.name, model, config, folder)

    def draw(self, model: VATClassifier, x: Tensor, folder: Path) -> None:
        draw_adversarial(model, spread(x, 12), folder / "adversarial.png")
        moons = label_moons()
        models = {"labels alone": fit_moons(moons, 0.0), "with smoothness": fit_moons(moons, 1.0)}
        draw_moons(models, moons, folder / "moons.png")


SYSTEM = VATSystem()
