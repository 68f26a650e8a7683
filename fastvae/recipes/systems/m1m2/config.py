"""Settings of the system ``m1m2``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ...class_models.config import Activation, SemiSupervisedTrainConfig
from ...class_models.figures import SemiSupervisedConfig
from ...settings import Implementation, check_choices, check_sizes, check_whole, option, to_plain

__all__ = ["M1M2Config", "M1M2Settings", "M1M2TrainConfig"]


@dataclass(frozen=True)
class M1M2Config:
    """What defines the model, as plain data.

    Args:
        latent_features: dimensions of z2.
        hidden_features: widths of the hidden layers of q(z2 | z1, y) and q(y | z1); those of p(z1 | y, z2) mirror them.
            The paper has 300 for 100 labels, and 500 for more.
        activation: between these layers.
        classes: how many there are.
        data_features: number of pixels.
        m1_latent: dimensions of z1, M1's latents.
        m1_hidden: widths of the hidden layers of M1's encoder; its decoder mirrors them.
        impl: implementation of the library's ops, see :mod:`fastvae.backend`.

    Raises:
        ValueError: a value is not one of its choices, or a size is below 1.

    Example:
        >>> M1M2Config().as_dict()["m1_hidden"]
        [500, 500]
    """

    latent_features: int = option("latent", 50)
    hidden_features: tuple[int, ...] = option("hidden", (300,))
    activation: Activation = "softplus"
    classes: int = 10
    data_features: int = 784
    m1_latent: int = 50
    m1_hidden: tuple[int, ...] = (500, 500)
    impl: Implementation = "auto"

    def __post_init__(self) -> None:
        check_choices(self)
        check_whole(self, latent_features=1, classes=2, data_features=1, m1_latent=1)
        check_sizes(self, "hidden_features")
        check_sizes(self, "m1_hidden")

    def as_dict(self) -> dict[str, Any]:
        return to_plain(self)


@dataclass(frozen=True)
class M1M2TrainConfig(SemiSupervisedTrainConfig):
    """How to train it, as plain data.

    Args:
        m1: the trained M1: a checkpoint of fastvae train m1, or the npz file of the authors' weights; if empty, the
            file nips14_ssl_m1.npz in $FASTVAE_DATA or in the user's cache.
    """

    m1: str = ""
    epochs: int = 300


@dataclass(frozen=True)
class M1M2Settings:
    """All settings of a run of ``m1m2``."""

    model: M1M2Config = field(default_factory=M1M2Config)
    training: M1M2TrainConfig = field(default_factory=M1M2TrainConfig)
    evaluation: SemiSupervisedConfig = field(default_factory=SemiSupervisedConfig)
