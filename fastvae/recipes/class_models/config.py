"""Settings that models with classes share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..settings import check_positive
from ..training.labelled_config import LabelledAveragedTrainConfig

__all__ = ["Activation", "SemiSupervisedTrainConfig"]

Activation = Literal["softplus", "relu", "elu", "tanh"]


@dataclass(frozen=True)
class SemiSupervisedTrainConfig(LabelledAveragedTrainConfig):
    """How to train a model with q(y | x), as plain data.

    Args:
        alpha: weight of log q(y | x) of the labelled images, as if all images had labels.
        weight_prior: precision of the normal prior of the weights; 0 for none.
    """

    batch_size: int = 500
    alpha: float = 0.1
    weight_prior: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self, "alpha", "weight_prior", zero=True)
