"""Settings of the system ``lvae``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from ...evaluation.config import EvaluationConfig
from ...settings import Implementation, check_choices, check_sizes, check_whole, option, to_plain
from ...training.config import WarmupConfig

__all__ = ["LVAEConfig", "LVAESettings", "LVAETrainConfig"]


@dataclass(frozen=True)
class LVAEConfig:
    """What defines the model, as plain data.

    Args:
        inference: ``"ladder"``: the posterior of a level merges what the image says with the prior given the level
            above; ``"bottom-up"``: it is a function of a sample of the level below, as in an ordinary hierarchy.
        latent_features: dimensions of each level's latents, from below.
        hidden_features: width of the two layers of each level's block, from below.
        mean_up: whether a level of the ladder passes its mean up; else its features.
        data_features: number of pixels.
        impl: implementation of the library's ops, see :mod:`fastvae.backend`.

    Raises:
        ValueError: a value is none of its choices, a size is below 1, or the numbers of levels differ.

    Example:
        >>> len(LVAEConfig().latent_features)
        5
    """

    inference: Literal["ladder", "bottom-up"] = "ladder"
    latent_features: tuple[int, ...] = option("latent", (64, 32, 16, 8, 4))
    hidden_features: tuple[int, ...] = option("hidden", (512, 256, 128, 64, 64))
    mean_up: bool = True
    data_features: int = 784
    impl: Implementation = "auto"

    def __post_init__(self) -> None:
        check_choices(self)
        check_whole(self, data_features=1)
        for name in ("latent_features", "hidden_features"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
            check_sizes(self, name)
        if len(self.hidden_features) != len(self.latent_features):
            raise ValueError(
                f"hidden_features must be one size for each of {len(self.latent_features)} levels, "
                f"got {self.hidden_features}"
            )

    def as_dict(self) -> dict[str, Any]:
        return to_plain(self)


@dataclass(frozen=True)
class LVAETrainConfig(WarmupConfig):
    """How to train it, as plain data.

    Args:
        batch_size: images in a batch; 2 or more, as batch norm takes statistics of it.
        learning_rate: of Adam, at the start.
        final_learning_rate: at the end of its half cosine.
    """

    epochs: int = 200
    batch_size: int = 256
    learning_rate: float = 1e-3
    final_learning_rate: float = 1e-4
    kl_warmup: float = 20.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole(self, batch_size=2)
        if not 0 <= self.final_learning_rate <= self.learning_rate:
            raise ValueError(
                f"final_learning_rate must be between 0 and learning_rate={self.learning_rate}, "
                f"got {self.final_learning_rate}"
            )


@dataclass(frozen=True)
class LVAESettings:
    """All settings of a run of ``lvae``."""

    model: LVAEConfig = field(default_factory=LVAEConfig)
    training: LVAETrainConfig = field(default_factory=LVAETrainConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
