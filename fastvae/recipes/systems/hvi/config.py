"""Settings of the system ``hvi``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from ...evaluation.config import EvaluationConfig
from ...settings import Implementation, check_choices, check_sizes, check_whole, option, to_plain
from ...training.config import WarmupConfig

__all__ = ["HVIConfig", "HVISettings", "HVITrainConfig"]


@dataclass(frozen=True)
class HVIConfig:
    """What defines the model, as plain data.

    Args:
        network: ``"conv"``: convolutions of stride 2 and one dense layer, in both directions; ``"dense"``: dense
            layers, whose gradient to the latents is one call of :func:`fastvae.functional.latent_gradient`.
        leapfrog: steps T; 0 for a VAE with the same networks.
        latent_features: dimensions of z.
        maps: channels of the three convolutions of ``"conv"``.
        hidden_features: width of the dense layer of ``"conv"``; of each hidden layer of ``"dense"``.
        momentum_features: width of the networks of the momentum.
        impl: implementation of the library's ops, see :mod:`fastvae.backend`.

    Raises:
        ValueError: a value is none of its choices, or a size is out of its range.

    Example:
        >>> HVIConfig(leapfrog=4).hidden_features
        (450,)
    """

    network: Literal["conv", "dense"] = "conv"
    leapfrog: int = 4
    latent_features: int = option("latent", 32)
    maps: tuple[int, int, int] = (16, 32, 32)
    hidden_features: tuple[int, ...] = option("hidden", (450,))
    momentum_features: int = option("momentum", 300)
    impl: Implementation = "auto"

    def __post_init__(self) -> None:
        check_choices(self)
        check_whole(self, leapfrog=0, latent_features=1, momentum_features=1)
        object.__setattr__(self, "maps", tuple(self.maps))
        object.__setattr__(self, "hidden_features", tuple(self.hidden_features))
        check_sizes(self, "hidden_features")
        check_sizes(self, "maps")
        if len(self.maps) != 3:
            raise ValueError(f"maps must be three sizes, got {self.maps}")
        if self.network == "conv" and len(self.hidden_features) != 1:
            raise ValueError(f"hidden_features must be one size for network='conv', got {self.hidden_features}")

    def as_dict(self) -> dict[str, Any]:
        return to_plain(self)


@dataclass(frozen=True)
class HVITrainConfig(WarmupConfig):
    """How to train it, as plain data.

    Args:
        kl_warmup: epochs until the KL term has weight 1. Without them the decoder learns to do without latents.
        learning_rate: of Adamax, at the start.
        final_learning_rate: at the end of its half cosine.
    """

    epochs: int = 25
    batch_size: int = 128
    kl_warmup: float = 2.0
    learning_rate: float = 1e-3
    final_learning_rate: float = 1e-4

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.final_learning_rate <= self.learning_rate:
            raise ValueError(
                f"final_learning_rate must be between 0 and learning_rate={self.learning_rate}, "
                f"got {self.final_learning_rate}"
            )


@dataclass(frozen=True)
class HVISettings:
    """All settings of a run of ``hvi``."""

    model: HVIConfig = field(default_factory=HVIConfig)
    training: HVITrainConfig = field(default_factory=HVITrainConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
