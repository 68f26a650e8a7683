"""Settings of the system ``m2``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from ...class_models.config import ConditionalConfig, SemiSupervisedTrainConfig
from ...class_models.figures import SemiSupervisedConfig
from ...settings import check_choices

__all__ = ["M2Config", "M2EvaluationConfig", "M2Settings", "M2TrainConfig"]


@dataclass(frozen=True)
class M2Config(ConditionalConfig):
    """What defines the model, as plain data.

    Example:
        >>> M2Config().as_dict()["hidden_features"]
        [500, 500]
    """


@dataclass(frozen=True)
class M2TrainConfig(SemiSupervisedTrainConfig):
    """How to train it, as plain data.

    Args:
        alpha: weight of log q(y | x) of the labelled images, as if all images had labels. The paper has 0.1, for many
            more steps: in few of them the pixels of images without labels keep the classifier from learning.
    """

    epochs: int = 60
    alpha: float = 10.0


@dataclass(frozen=True)
class M2EvaluationConfig(SemiSupervisedConfig):
    """How a trained model is evaluated, as plain data.

    Args:
        posterior_of: what p(y | x) is given: ``"intensities"`` of the pixels, as in the authors' evaluation, or
            ``"binary"``, the binary images of the other figures.

    Raises:
        ValueError: a value is none of its choices, or a number is below 1.
    """

    posterior_of: Literal["intensities", "binary"] = "intensities"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choices(self)


@dataclass(frozen=True)
class M2Settings:
    """All settings of a run of ``m2``."""

    model: M2Config = field(default_factory=M2Config)
    training: M2TrainConfig = field(default_factory=M2TrainConfig)
    evaluation: M2EvaluationConfig = field(default_factory=M2EvaluationConfig)
