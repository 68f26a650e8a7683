"""What a recipe is told, as plain data: it goes into checkpoints and comes from the command line."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

from ..backend import IMPLEMENTATIONS

__all__ = [
    "KL_KINDS",
    "MOST_SEED",
    "MOST_WHOLE",
    "POSTERIORS",
    "PRECISIONS",
    "DemoConfig",
    "TrainConfig",
    "VAEConfig",
    "check_whole",
]

POSTERIORS = ("diagonal", "triangular")
KL_KINDS = ("analytic", "monte-carlo")
PRECISIONS = ("32-true", "64-true", "bf16-mixed", "16-mixed")
# What numpy's frozen stream takes as a seed, and what sizes and counts may be.
MOST_SEED, MOST_WHOLE = 2**32 - 1, 2**31 - 1


def check_whole(config: Any, **least: int) -> None:
    """Checks sizes, counts and the seed of a configuration.

    Args:
        config: the configuration.
        least: the least value of each field by its name; the most is :data:`MOST_WHOLE`, of ``seed``
            :data:`MOST_SEED`.

    Raises:
        ValueError: one is out of its range.
    """
    for name, low in least.items():
        value, high = getattr(config, name), MOST_SEED if name == "seed" else MOST_WHOLE
        if not value >= low:
            raise ValueError(f"{name} must be >= {low}, got {value}")
        if value > high:
            raise ValueError(f"{name} must be <= {high}, got {value}")


@dataclass(frozen=True)
class VAEConfig:
    """What defines a :class:`VAE`, as plain data.

    Args:
        posterior: ``"diagonal"`` or ``"triangular"`` (full covariance).
        latent_features: dimension D of z.
        hidden_features: widths of the encoder's hidden layers; the decoder mirrors them.
        data_features: number of pixels.
        tril_scale: factor on the predicted entries below the diagonal. Under Adam it acts as a learning rate of
            their own: there are many of them, and their gradients are mostly noise.
        kl: ``"analytic"`` or ``"monte-carlo"``, the KL term that training uses.
        impl: implementation of the posterior's ops, see :mod:`fastvae.backend`.

    Raises:
        ValueError: a value is none of those above, or a size is below 1.

    Example:
        >>> VAEConfig("triangular", latent_features=16).as_dict()["hidden_features"]
        [400, 400]
    """

    posterior: str = "diagonal"
    latent_features: int = 32
    hidden_features: tuple[int, ...] = (400, 400)
    data_features: int = 784
    tril_scale: float = 0.1
    kl: str = "analytic"
    impl: str = "auto"

    def __post_init__(self) -> None:
        object.__setattr__(self, "hidden_features", tuple(self.hidden_features))
        choices = {"posterior": POSTERIORS, "kl": KL_KINDS, "impl": IMPLEMENTATIONS}
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}")
        check_whole(self, latent_features=1, data_features=1)
        if not 0 < self.tril_scale < math.inf:
            raise ValueError(f"tril_scale must be > 0 and finite, got {self.tril_scale}")
        if not self.hidden_features or min(self.hidden_features) < 1:
            raise ValueError(f"hidden_features must be one or more sizes >= 1, got {self.hidden_features}")

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {"hidden_features": list(self.hidden_features)}


@dataclass(frozen=True)
class TrainConfig:
    """How to train, as plain data.

    Args:
        epochs: passes over the training images.
        batch_size: images in the joint batch of all processes.
        learning_rate: peak of the one-cycle schedule of Adam.
        kl_warmup: epochs over which the weight of the KL term rises from 0 to 1.
        seed: of initial weights, order, binarisation and noise.
        precision: Lightning's name: ``"32-true"``, ``"64-true"``, ``"bf16-mixed"`` or ``"16-mixed"``.

    Raises:
        ValueError: a number is out of its range.
    """

    epochs: int = 25
    batch_size: int = 100
    learning_rate: float = 2e-3
    kl_warmup: float = 0.0
    seed: int = 0
    precision: str = "32-true"

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {self.precision!r}")
        check_whole(self, epochs=1, batch_size=1, kl_warmup=0, seed=0)
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate must be > 0, got {self.learning_rate}")
        if self.learning_rate == math.inf:
            raise ValueError(f"learning_rate must be finite, got {self.learning_rate}")


@dataclass(frozen=True)
class DemoConfig:
    """What the demonstration does, as plain data.

    Args:
        model: of both posteriors but for its ``posterior``.
        training: of both posteriors.
        manifold_epochs: epochs of the model with two latent dimensions.
        samples: number K of importance samples.
        log_p_images: number of test images for log p(x).
        timed_steps: training steps timed for each implementation.

    Raises:
        ValueError: a number is below 1 or above :data:`MOST_WHOLE`.
    """

    model: VAEConfig = field(default_factory=VAEConfig)
    training: TrainConfig = field(default_factory=TrainConfig)
    manifold_epochs: int = 8
    samples: int = 128
    log_p_images: int = 10_000
    timed_steps: int = 150

    def __post_init__(self) -> None:
        check_whole(self, manifold_epochs=1, samples=1, log_p_images=1, timed_steps=1)
