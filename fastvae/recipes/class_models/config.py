"""Settings that models with classes share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from ..settings import Implementation, check_choices, check_positive, check_sizes, check_whole, option, to_plain
from ..training.labelled_config import LabelledAveragedTrainConfig

__all__ = ["Activation", "ClassifierConfig", "ConditionalConfig", "SemiSupervisedTrainConfig"]

Activation = Literal["softplus", "relu", "elu", "tanh"]


@dataclass(frozen=True)
class ConditionalConfig:
    """What defines a :class:`~fastvae.recipes.class_models.conditional.ConditionalVAE`, as plain data.

    Args:
        latent_features: dimensions of z.
        hidden_features: widths of the hidden layers of q(z | x, y), and of q(y | x) where there is one; those of
            p(x | y, z) mirror them.
        activation: between layers.
        classes: how many there are.
        data_features: number of pixels.
        impl: implementation of the library's ops, see :mod:`fastvae.backend`.

    Raises:
        ValueError: a value is not one of its choices, or a size is below 1.
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
class ClassifierConfig:
    """What defines a classifier of fully connected layers, as plain data.

    Args:
        hidden_features: widths of the hidden layers.
        data_features: number of pixels.
        classes: how many there are.
        impl: the model uses no op that has implementations.

    Raises:
        ValueError: a value is out of its range.
    """

    hidden_features: tuple[int, ...] = option("hidden", (1200, 1200))
    data_features: int = 784
    classes: int = 10
    impl: Implementation = "auto"

    def __post_init__(self) -> None:
        check_choices(self)
        check_sizes(self, "hidden_features")
        check_whole(self, data_features=1, classes=2)

    def as_dict(self) -> dict[str, Any]:
        return to_plain(self)


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
