"""Settings of trainings with few labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..settings import check_whole
from .config import AveragedTrainConfig, TrainConfig

__all__ = ["LabelledAveragedTrainConfig", "LabelledTrainConfig"]


@dataclass(frozen=True)
class LabelledTrainConfig(TrainConfig):
    """As :class:`~fastvae.recipes.training.config.TrainConfig`, with labels for some of the training images.

    Args:
        batch_size: unlabelled images in the joint batch of all processes.
        data: the images: mnist, or digits, the 1797 of scikit-learn.
        labels: how many labels the training sees, equally many of each class.
        label_seed: of the choice of the labelled images.
        labelled_batch_size: labelled images in the joint batch; all in every batch if it is at least their number.

    Raises:
        ValueError: a value is none of its choices, or a number is out of its range.
    """

    data: Literal["mnist", "digits"] = "mnist"
    labels: int = 100
    label_seed: int = 0
    labelled_batch_size: int = 100

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole(self, labels=1, label_seed=0, labelled_batch_size=1)


@dataclass(frozen=True)
class LabelledAveragedTrainConfig(LabelledTrainConfig, AveragedTrainConfig):
    """As :class:`LabelledTrainConfig`, with a rate that decays and weights that are averaged."""
