"""Settings of the system ``adgm``."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

from ...settings import (
    Implementation,
    check_choices,
    check_positive,
    check_sizes,
    check_whole,
    option,
    to_plain,
)
from ...training.labelled_config import LabelledAveragedTrainConfig

__all__ = ["DATA", "ADGMConfig", "ADGMEvaluationConfig", "ADGMSettings", "ADGMTrainConfig"]

Likelihood = Literal["auto", "bernoulli", "gaussian"]


class Kind(NamedTuple):
    """What a model needs to know of its data."""

    data_features: int
    classes: int
    likelihood: Likelihood


# By the name of the data.
DATA = {
    "mnist": Kind(784, 10, "bernoulli"),
    "digits": Kind(64, 10, "bernoulli"),
    "moons": Kind(2, 2, "gaussian"),
}


@dataclass(frozen=True)
class ADGMConfig:
    """What defines the model, as plain data.

    Args:
        kind: ``"adgm"``: p(x | y, z) and p(a | x, y, z); ``"sdgm"``: p(x | a, y, z) and p(a | y, z).
        latent_features: dimensions of z.
        auxiliary_features: dimensions of a.
        hidden_features: widths of the hidden layers of every network.
        likelihood: of the data: ``"bernoulli"``, ``"gaussian"`` with a learned variance, or ``"auto"``: as the data
            need it.
        data_features: numbers of a data point; 0: those of the data.
        classes: how many there are; 0: those of the data.
        impl: implementation of the ops, see :mod:`fastvae.backend`.

    Raises:
        ValueError: a value is none of its choices, or a size is out of its range.

    Example:
        >>> ADGMConfig("sdgm", data_features=64, classes=10).as_dict()["hidden_features"]
        [500, 500]
    """

    kind: Literal["adgm", "sdgm"] = "adgm"
    latent_features: int = option("latent", 100)
    auxiliary_features: int = option("auxiliary", 100)
    hidden_features: tuple[int, ...] = option("hidden", (500, 500))
    likelihood: Likelihood = "auto"
    data_features: int = 0
    classes: int = 0
    impl: Implementation = "auto"

    def __post_init__(self) -> None:
        check_choices(self)
        check_whole(self, latent_features=1, auxiliary_features=1, data_features=0, classes=0)
        check_sizes(self, "hidden_features")

    def as_dict(self) -> dict[str, Any]:
        return to_plain(self)


@dataclass(frozen=True)
class ADGMTrainConfig(LabelledAveragedTrainConfig):
    """How to train it, as plain data.

    Args:
        data: the images: mnist, or digits, the 1797 of scikit-learn; or moons, points of two half moons in the
            plane, with labels near the ends and in the middle of both.
        auxiliary_samples: samples of a for each image.
        beta: weight of the classifier: that of log q(y | a, x) is beta N / N_l, for N images and N_l labels.
        weight_prior: precision of the Gaussian prior on the weights of the linear maps; 0 for no prior.
        most_norm: the norm of the gradient that a longer one is scaled to.
        kl_start: weight of the divergences of a and z in the beginning. Above 1 the class is a cheaper way to describe
            an image than z: the classes become those of the images. Otherwise z tells all, and images without a label
            confirm the mistakes of the labelled ones.
        kl_warmup: epochs until that weight is 1; 0: it always is.

    Raises:
        ValueError: a value is none of its choices, or a number is out of its range.
    """

    data: Literal["mnist", "digits", "moons"] = "mnist"  # type: ignore[assignment]
    epochs: int = 35
    auxiliary_samples: int = 1
    beta: float = 0.1
    weight_prior: float = 1.0
    most_norm: float = 5.0
    kl_start: float = 4.0
    kl_warmup: float = 2.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole(self, auxiliary_samples=1, kl_warmup=0)
        check_positive(self, "most_norm")
        check_positive(self, "beta", "weight_prior", "kl_start", zero=True)
        if self.batch_size < 2:
            raise ValueError(
                f"batch_size must be >= 2, since batch normalisation takes statistics of it, got {self.batch_size}"
            )


@dataclass(frozen=True)
class ADGMEvaluationConfig:
    """How a trained model is evaluated, as plain data.

    Args:
        samples: samples of a for each image, over which q(y | a, x) and the bound are averaged.
        image_chunk: images at a time.

    Raises:
        ValueError: a number is below 1.
    """

    samples: int = 10
    image_chunk: int = 200

    def __post_init__(self) -> None:
        check_whole(self, samples=1, image_chunk=1)


@dataclass(frozen=True)
class ADGMSettings:
    """All settings of a run of ``adgm``. What the model leaves to the data is filled in.

    Raises:
        ValueError: the model is for other data.
    """

    model: ADGMConfig = field(default_factory=ADGMConfig)
    training: ADGMTrainConfig = field(default_factory=ADGMTrainConfig)
    evaluation: ADGMEvaluationConfig = field(default_factory=ADGMEvaluationConfig)

    def __post_init__(self) -> None:
        data, found = DATA[self.training.data], {}
        for name, needed in data._asdict().items():
            given = getattr(self.model, name)
            # The number of classes is that of the caller's own images, where there are such.
            if given not in (0, "auto", needed) and name != "classes":
                raise ValueError(f"{name} must be {needed} for the data {self.training.data}, got {given}")
            found[name] = needed if given in (0, "auto") else given
        object.__setattr__(self, "model", replace(self.model, **found))
