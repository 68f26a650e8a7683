"""Settings of the system ``vae``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from ...data.frey import PIXELS as FREY_PIXELS
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
from ...training.config import WarmupConfig, check_groups

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
        activation: between layers.
        likelihood: p(x | z): ``"bernoulli"`` of binary images, or ``"gaussian"`` of intensities, with means in (0, 1)
            and variances that the decoder gives, too.
        tril_scale: factor on the entries below the diagonal. Under Adam it acts as a learning rate of their own:
            there are many of them, and their gradients are mostly noise.
        depth: flow steps of ``"iaf"``.
        width: width of the two hidden layers of each flow step.
        kl: the KL term to train with: ``"analytic"`` or ``"monte-carlo"``, which a flow always has.
        prior: p(z): ``"normal"``, N(0, I), or ``"maf"``, a masked autoregressive flow that is learned; the KL term is
            then estimated from the sample.
        prior_depth: flow steps of ``"maf"``.
        prior_width: width of the two hidden layers of each of these steps.
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
    activation: Literal["elu", "tanh", "softplus", "relu"] = "elu"
    likelihood: Literal["bernoulli", "gaussian"] = "bernoulli"
    tril_scale: float = 0.1
    depth: int = 2
    width: int = 320
    kl: Literal["analytic", "monte-carlo"] = "analytic"
    prior: Literal["normal", "maf"] = "normal"
    prior_depth: int = 2
    prior_width: int = 320
    impl: Implementation = "auto"

    def __post_init__(self) -> None:
        check_choices(self)
        check_whole(self, latent_features=1, data_features=1, depth=1, width=1, prior_depth=1, prior_width=1)
        check_positive(self, "tril_scale")
        check_sizes(self, "hidden_features")

    def as_dict(self) -> dict[str, Any]:
        return to_plain(self)


@dataclass(frozen=True)
class VAETrainConfig(WarmupConfig):
    """How to train it, as plain data.

    Args:
        data: the images: ``"dynamic"``, MNIST binarised for every batch, or ``"frey"``, intensities of the Frey faces,
            for a model with --likelihood gaussian --data-features 560.
        learning_rate: peak of the one-cycle schedule of Adam.
        free_bits: free nats in every latent dimension.
        free_bits_groups: groups of consecutive dimensions; the mean of a group's KL term over the batch has one floor,
            the free nats of its dimensions. 0: every dimension is a group.
    """

    data: Literal["dynamic", "frey"] = "dynamic"
    epochs: int = 25
    learning_rate: float = 2e-3
    free_bits: float = 0.0
    free_bits_groups: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self, "free_bits", zero=True)
        check_whole(self, free_bits_groups=0)


@dataclass(frozen=True)
class VAESettings:
    """All settings of a run of ``vae``."""

    model: VAEConfig = field(default_factory=VAEConfig)
    training: VAETrainConfig = field(default_factory=VAETrainConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)

    def __post_init__(self) -> None:
        check_groups(self.training.free_bits_groups, self.model.latent_features)
        likelihood = "gaussian" if self.training.data == "frey" else "bernoulli"
        if self.model.likelihood != likelihood:
            raise ValueError(
                f"likelihood must be {likelihood!r} for data={self.training.data!r}, got {self.model.likelihood!r}"
            )
        if self.training.data == "frey" and self.model.data_features != FREY_PIXELS:
            raise ValueError(f"data_features must be {FREY_PIXELS} for data='frey', got {self.model.data_features}")
