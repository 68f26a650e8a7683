"""Settings of the system ``m1``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from ...evaluation.config import EvaluationConfig
from ...settings import Implementation, check_choices, check_positive, check_sizes, check_whole, option, to_plain
from ...training.config import AveragedTrainConfig, WarmupConfig

__all__ = ["M1Config", "M1Settings", "M1TrainConfig"]


@dataclass(frozen=True)
class M1Config:
    """What defines the model, as plain data.

    Args:
        latent_features: dimensions of z.
        hidden_features: widths of the hidden layers of the encoder; the decoder mirrors them.
        data_features: number of pixels.
        impl: implementation of the posterior's ops, see :mod:`fastvae.backend`.

    Raises:
        ValueError: a value is not one of its choices, or a size is below 1.

    Example:
        >>> M1Config(latent_features=16).as_dict()["hidden_features"]
        [500, 500]
    """

    latent_features: int = option("latent", 50)
    hidden_features: tuple[int, ...] = option("hidden", (500, 500))
    data_features: int = 784
    impl: Implementation = "auto"

    def __post_init__(self) -> None:
        check_choices(self)
        check_whole(self, latent_features=1, data_features=1)
        check_sizes(self, "hidden_features")

    def as_dict(self) -> dict[str, Any]:
        return to_plain(self)


@dataclass(frozen=True)
class M1TrainConfig(AveragedTrainConfig, WarmupConfig):
    """How to train it, as plain data.

    Args:
        data: the images: mnist, or digits, the 1797 of scikit-learn. Their labels are not used.
        weight_prior: precision of the normal prior of weights and biases; 0 for none.
    """

    epochs: int = 50
    data: Literal["mnist", "digits"] = "mnist"
    weight_prior: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self, "weight_prior", zero=True)


@dataclass(frozen=True)
class M1Settings:
    """All settings of a run of ``m1``."""

    model: M1Config = field(default_factory=M1Config)
    training: M1TrainConfig = field(default_factory=M1TrainConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
