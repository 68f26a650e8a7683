"""Settings of the system ``cvae``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from ...class_models.config import Activation, ConditionalConfig
from ...evaluation.config import EvaluationConfig
from ...settings import option
from ...training.config import WarmupConfig

__all__ = ["CVAEConfig", "CVAESettings", "CVAETrainConfig"]


@dataclass(frozen=True)
class CVAEConfig(ConditionalConfig):
    """What defines the model, as plain data.

    Args:
        prior: of z: ``"normal"``, N(0, I), or ``"class"``, a diagonal Gaussian of each class that is learned.

    Example:
        >>> CVAEConfig(latent_features=16, prior="class").as_dict()["hidden_features"]
        [400, 400]
    """

    latent_features: int = option("latent", 32)
    hidden_features: tuple[int, ...] = option("hidden", (400, 400))
    activation: Activation = "elu"
    prior: Literal["normal", "class"] = "normal"


@dataclass(frozen=True)
class CVAETrainConfig(WarmupConfig):
    """How to train it, as plain data.

    Args:
        data: the images: mnist, or digits, the 1797 of scikit-learn.
        learning_rate: peak of the one-cycle schedule of Adam.
    """

    data: Literal["mnist", "digits"] = "mnist"
    epochs: int = 25
    learning_rate: float = 2e-3


@dataclass(frozen=True)
class CVAESettings:
    """All settings of a run of ``cvae``."""

    model: CVAEConfig = field(default_factory=CVAEConfig)
    training: CVAETrainConfig = field(default_factory=CVAETrainConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
