"""Settings of the system ``m1m2``."""

from __future__ import annotations

from dataclasses import dataclass, field

from ...class_models.config import ConditionalConfig, SemiSupervisedTrainConfig
from ...class_models.figures import SemiSupervisedConfig
from ...settings import check_sizes, check_whole, option

__all__ = ["M1M2Config", "M1M2Settings", "M1M2TrainConfig"]


@dataclass(frozen=True)
class M1M2Config(ConditionalConfig):
    """What defines the model, as plain data: z is z2, and the data of M2 are z1, the latents of M1.

    Args:
        hidden_features: widths of the hidden layers of q(z2 | z1, y) and q(y | z1); those of p(z1 | y, z2) mirror them.
            The paper has 300 for 100 labels, and 500 for more.
        m1_latent: dimensions of z1.
        m1_hidden: widths of the hidden layers of M1's encoder; its decoder mirrors them.

    Example:
        >>> M1M2Config().as_dict()["m1_hidden"]
        [500, 500]
    """

    hidden_features: tuple[int, ...] = option("hidden", (300,))
    m1_latent: int = 50
    m1_hidden: tuple[int, ...] = (500, 500)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole(self, m1_latent=1)
        check_sizes(self, "m1_hidden")


@dataclass(frozen=True)
class M1M2TrainConfig(SemiSupervisedTrainConfig):
    """How to train it, as plain data.

    Args:
        m1: the trained M1: a checkpoint of fastvae train m1, or the npz file of the authors' weights; if empty, the
            file nips14_ssl_m1.npz in $FASTVAE_DATA or in the user's cache.
        alpha: weight of log q(y | z1) of the labelled images, as if all images had labels. The paper has 0.1, for many
            more steps: in few of them the images without labels keep the classifier from learning.
    """

    m1: str = ""
    epochs: int = 300
    alpha: float = 1.0


@dataclass(frozen=True)
class M1M2Settings:
    """All settings of a run of ``m1m2``."""

    model: M1M2Config = field(default_factory=M1M2Config)
    training: M1M2TrainConfig = field(default_factory=M1M2TrainConfig)
    evaluation: SemiSupervisedConfig = field(default_factory=SemiSupervisedConfig)
