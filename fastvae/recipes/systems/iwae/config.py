"""Settings of the system ``iwae``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from ...evaluation.config import EvaluationConfig
from ...settings import Implementation, check_choices, check_sizes, check_whole, option, to_plain
from ...training.config import WarmupConfig

__all__ = ["IWAEConfig", "IWAESettings", "IWAETrainConfig"]

# Latent and hidden features of each stochastic layer, from below, as in the paper.
SIZES = {1: ((50,), (200,)), 2: ((100, 50), (200, 100))}


@dataclass(frozen=True)
class IWAEConfig:
    """What defines the model, as plain data.

    Args:
        layers: stochastic layers.
        latent_features: dimensions of each layer's latents, from below; by default 50, of two layers 100 and 50.
        hidden_features: width of the two deterministic layers below each layer of latents, in both directions; by
            default 200, of two layers 200 and 100.
        data_features: number of pixels.
        impl: implementation of the library's ops, see :mod:`fastvae.backend`.

    Raises:
        ValueError: a value is none of its choices, or a size is below 1.

    Example:
        >>> IWAEConfig(2).latent_features
        (100, 50)
    """

    layers: Literal[1, 2] = 1
    latent_features: tuple[int, ...] = option("latent", ())
    hidden_features: tuple[int, ...] = option("hidden", ())
    data_features: int = 784
    impl: Implementation = "auto"

    def __post_init__(self) -> None:
        check_choices(self)
        check_whole(self, data_features=1)
        for name, default in zip(("latent_features", "hidden_features"), SIZES[self.layers], strict=True):
            sizes = tuple(getattr(self, name)) or default
            if len(sizes) != self.layers:
                raise ValueError(f"{name} must be one size for each of {self.layers} stochastic layers, got {sizes}")
            object.__setattr__(self, name, sizes)
            check_sizes(self, name)

    def as_dict(self) -> dict[str, Any]:
        return to_plain(self)


@dataclass(frozen=True)
class IWAETrainConfig(WarmupConfig):
    """How to train it, as plain data.

    A warm-up weights log p(z) - log q(z | x) in every sample's log-weight.

    Args:
        importance_samples: samples K of each image in the bound.
        objective: ``"iwae"``, the importance-weighted bound; ``"dreg"``, the same with doubly reparameterised gradients
            of the encoder; ``"vae"``, the mean bound of the samples.
        learning_rate: of Adam, at the start.
        final_learning_rate: at the end of its half cosine.
    """

    epochs: int = 300
    learning_rate: float = 1e-3
    importance_samples: int = option("k", 1)
    objective: Literal["iwae", "dreg", "vae"] = "iwae"
    final_learning_rate: float = 1e-4

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole(self, importance_samples=1)
        if not 0 <= self.final_learning_rate <= self.learning_rate:
            raise ValueError(
                f"final_learning_rate must be between 0 and learning_rate={self.learning_rate}, "
                f"got {self.final_learning_rate}"
            )


@dataclass(frozen=True)
class IWAESettings:
    """All settings of a run of ``iwae``."""

    model: IWAEConfig = field(default_factory=IWAEConfig)
    training: IWAETrainConfig = field(default_factory=IWAETrainConfig)
    evaluation: EvaluationConfig = field(default_factory=lambda: EvaluationConfig(samples=5000))
