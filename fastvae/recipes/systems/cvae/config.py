"""Settings of the system ``cvae``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from ...class_models.config import Activation
from ...evaluation.config import EvaluationConfig
from ...settings import Implementation, check_choices, check_sizes, check_whole, option, to_plain
from ...training.config import WarmupConfig

__all__ = ["CVAEConfig", "CVAESettings", "CVAETrainConfig"]


@dataclass(frozen=True)
class CVAEConfig:
    """What defines the model, as plain data.

    Args:
        prior: of z: ``"normal"``, N(0, I), or ``"class"``, a diagonal Gaussian of each class that is learned.
        latent_features: dimensions of z.
        hidden_features: widths of the hidden layers of q(z | x, y); those of p(x | y, z) mirror them.
        activation: between layers.
        classes: how many there are.
        data_features: number of pixels.
        impl: implementation of the library's ops, see :mod:`fastvae.backend`.

    Raises:
        ValueError: a value is not one of its choices, or a size is below 1.

    Example:
        >>> CVAEConfig("class", latent_features=16).as_dict()["hidden_features"]
        [400, 400]
    """

    prior: Literal["normal", "class"] = "normal"
    latent_features: int = option("latent", 32)
    hidden_features: tuple[int, ...] = option("hidden", (400, 400))
    activation: Activation = "elu"
    classes: int = 10
    data_features: int = 784
    impl: Implementation = "auto"

    def __post_init__(self) -> None:
        check_choices(self)
        check_whole(self, latent_features=1, classes=2, data_features=1)
        check_sizes(self, "hidden_features")

    def as_dict(self) -> dict[str, Any]:
        return to_plain(self)


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
