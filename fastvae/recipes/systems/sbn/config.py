"""Settings of the system ``sbn``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from ...evaluation.config import EvaluationConfig
from ...settings import Implementation, check_choices, check_positive, check_share, check_whole, option, to_plain
from ...training.config import WarmupConfig

__all__ = ["ESTIMATORS", "OF_SEVERAL_SAMPLES", "SBNConfig", "SBNSettings", "SBNTrainConfig"]

ESTIMATORS = ("reinforce", "running", "nvil", "loo", "vimco", "arm", "disarm", "rebar", "concrete")
# Those that compare samples of one image.
OF_SEVERAL_SAMPLES = ("loo", "vimco")


@dataclass(frozen=True)
class SBNConfig:
    """What defines the model, as plain data.

    Args:
        layers: ``"linear"``, one layer of units between linear maps; ``"linear2"``, two layers of units; or
            ``"nonlinear"``, one layer with two hidden layers of tanh on either side.
        latent_features: units of a layer.
        hidden_features: width of the hidden layers.
        data_features: number of pixels.
        impl: implementation of the library's ops, see :mod:`fastvae.backend`.

    Raises:
        ValueError: a value is not one of its choices, or a size is below 1.

    Example:
        >>> SBNConfig("linear2").as_dict()["latent_features"]
        200
    """

    layers: Literal["linear", "linear2", "nonlinear"] = "linear"
    latent_features: int = option("latent", 200)
    hidden_features: int = option("hidden", 200)
    data_features: int = 784
    impl: Implementation = "auto"

    def __post_init__(self) -> None:
        check_choices(self)
        check_whole(self, latent_features=1, hidden_features=1, data_features=1)

    def as_dict(self) -> dict[str, Any]:
        return to_plain(self)


@dataclass(frozen=True)
class SBNTrainConfig(WarmupConfig):
    """How to train it, as plain data.

    A warm-up weights log p(b) - log q(b | x) in the signal of every estimator.

    Args:
        estimator: of the encoder's gradient: the score function alone (``"reinforce"``), less the running mean of
            earlier signals (``"running"``), less what a network predicts from the image (``"nvil"``), or less the mean
            of the other samples (``"loo"``); ``"vimco"``, of the importance-weighted bound; from antithetic pairs
            ``"arm"`` and ``"disarm"``; with a relaxed control variate ``"rebar"``; or, biased, of relaxed units,
            ``"concrete"``.
        k: samples of an image for ``"loo"`` and ``"vimco"``.
        temperature: of relaxed units.
        baseline_decay: share of the past that a batch leaves in a running mean.
        data: ``"static"``, static binarised MNIST, or ``"dynamic"``, MNIST binarised for every batch.
        learning_rate: of Adam; the papers take 1e-4 for estimators of one sample.
    """

    estimator: Literal["reinforce", "running", "nvil", "loo", "vimco", "arm", "disarm", "rebar", "concrete"] = "loo"
    k: int = 4
    temperature: float = 0.5
    baseline_decay: float = 0.9
    data: Literal["static", "dynamic"] = "static"
    epochs: int = 400
    batch_size: int = 50

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole(self, k=2 if self.estimator in OF_SEVERAL_SAMPLES else 1)
        check_positive(self, "temperature", "baseline_decay")
        check_share(self, "baseline_decay", one=False)

    @property
    def measured_part(self) -> str:
        return "valid"


@dataclass(frozen=True)
class SBNSettings:
    """All settings of a run of ``sbn``."""

    model: SBNConfig = field(default_factory=SBNConfig)
    training: SBNTrainConfig = field(default_factory=SBNTrainConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)

    def __post_init__(self) -> None:
        if self.training.estimator == "rebar" and self.model.layers == "linear2":
            raise ValueError("estimator must not be 'rebar' for layers='linear2': it relaxes one layer of units")
