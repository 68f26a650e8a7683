"""Settings of the system ``m2``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from ...class_models.config import Activation, SemiSupervisedTrainConfig
from ...class_models.figures import SemiSupervisedConfig
from ...settings import Implementation, check_choices, check_sizes, check_whole, option, to_plain

__all__ = ["M2Config", "M2EvaluationConfig", "M2Settings", "M2TrainConfig"]


@dataclass(frozen=True)
class M2Config:
    """What defines the model, as plain data.

    Args:
        latent_features: dimensions of z.
        hidden_features: widths of the hidden layers of q(z | x, y) and q(y | x); those of p(x | y, z) mirror them.
        activation: between layers.
        classes: how many there are.
        data_features: number of pixels.
        impl: implementation of the library's ops, see :mod:`fastvae.backend`.

    Raises:
        ValueError: a value is not one of its choices, or a size is below 1.

    Example:
        >>> M2Config().as_dict()["hidden_features"]
        [500, 500]
    """

    latent_features: int = option("latent", 50)
    hidden_features: tuple[int, ...] = option("hidden", (500, 500))
    activation: Activation = "softplus"
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
class M2TrainConfig(SemiSupervisedTrainConfig):
    """How to train it, as plain data."""

    epochs: int = 60


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
