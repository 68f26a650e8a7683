"""The system ``ladder``: a classifier whose layers are denoised from above."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from ...evaluation.bounds import spread
from ...labelled_system import LabelledSystem
from .config import LadderConfig, LadderSettings, LadderTrainConfig
from .model import Ladder
from .pictures import draw_costs, draw_denoised
from .task import LadderTask

__all__ = ["SYSTEM", "LadderSystem"]


class LadderSystem(LabelledSystem):
    """The ladder network of fully connected layers, on intensities."""

    name = "ladder"
    settings = LadderSettings
    binarize = False

    def make_model(self, config: LadderConfig) -> Ladder:
        return Ladder(config)

    def make_task(self, model: Ladder, config: LadderTrainConfig, folder: Path) -> LadderTask:
        return LadderTask(self.name, model, config, folder)

    def draw(self, model: Ladder, x: Tensor, folder: Path) -> None:
        draw_costs(folder / "metrics.csv", model.config.widths, folder / "costs.png")
        draw_denoised(model, spread(x, 12), folder / "denoised.png")


SYSTEM = LadderSystem()
