"""Settings of the system ``vae``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from ...evaluation.config import EvaluationConfig
from ...settings import (
    Implementation,
    check_choices,
    check_positive,
    check_sizes,
    check_whole,
    option,
    to_plain,
)
from ...training.config import TrainConfig

__all__ = ["POSTERIORS", "VAEConfig", "VAESettings", "VAETrainConfig"]

POSTERIORS = ("diagonal", "triangular", "iaf")


@dataclass(frozen=True)
class VAEConfig:
    """What defines the model, as plain data.

    Args:
        posterior: q(z | x): a Gaussian with ``"diagonal"`` or ``"triangular"`` covariance, which is full, or
            ``"iaf"``: an inverse autoregressive flow of a diagonal one.
        latent_features: dimensions of z.
        hidden_features: widths of the hidden layers of the encoder; the decoder mirrors them.
        data_features: number of pixels.
        tril_scale: factor on the entries below the diagonal. Under Adam it acts as a learning rate of their own:
            there are many of them, and their gradients are mostly noise.
        depth: flow steps of ``"iaf"``.
        width: width of the two hidden layers of each flow step.
        kl: the KL term to train with: ``"analytic"`` or ``"monte-carlo"``, which a flow always has.
        impl: implementation of the posterior's ops, see :mod:`fastvae.backend`.

    Raises:
        ValueError: a value is not one of its choices, or a size is below 1.

    Example:
        >>> VAEConfig("triangular", latent_features=16).as_dict()["hidden_features"]
        [400, 400]
    """

    posterior: Literal["diagonal", "triangular", "iaf"] = "diagonal"
    latent_features: int = option("latent", 32)
    hidden_features: tuple[int, ...] = option("hidden", (400, 400))
    data_features: int = 784
    tril_scale: float = 0.1
    depth: int = 2
    width: int = 320
    kl: Literal["analytic", "monte-carlo"] = "analytic"
    impl: Implementation = "auto"

    def __post_init__(self) -> None:
        check_choices(self)
        check_whole(self, latent_features=1, data_features=1, depth=1, width=1)
        check_positive(self, "tril_scale")
        check_sizes(self, "hidden_features")

    def as_dict(self) -> dict[str, Any]:
        return to_plain(self)


@dataclass(frozen=True)
class VAETrainConfig(TrainConfig):
    """How to train it, as plain data.

    Args:
        learning_rate: peak of the one-cycle schedule of Adam.
        kl_warmup: epochs until the KL term has weight 1.
    """

    epochs: int = 25
    learning_rate: float = 2e-3
    kl_warmup: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole(self, kl_warmup=0)


@dataclass(frozen=True)
class VAESettings:
    """All settings of a run of ``vae``."""

    model: VAEConfig = field(default_factory=VAEConfig)
    training: VAETrainConfig = field(default_factory=VAETrainConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
