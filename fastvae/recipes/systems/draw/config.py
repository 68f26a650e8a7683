"""Settings of the system ``draw``."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

from ...evaluation.config import EvaluationConfig
from ...settings import Implementation, check_choices, check_positive, check_whole, option, to_plain
from ...training.config import WarmupConfig

__all__ = ["DRAWConfig", "DRAWSettings", "DRAWTrainConfig"]


@dataclass(frozen=True)
class DRAWConfig:
    """What defines the model, as plain data.

    Args:
        glimpses: steps T; the paper has 64.
        attention: ``"window"``: an image is read and written through windows of Gaussian filters; ``"none"``: it is
            read and written whole.
        latent_features: dimensions of the latents of each glimpse.
        hidden_features: units of the LSTM on either side.
        read_points: points of the reading window on each side.
        write_points: points of the writing window on each side.
        data_features: number of pixels of a square image.
        impl: implementation of the library's ops, see :mod:`fastvae.backend`.

    Raises:
        ValueError: a value is none of its choices, a size is below 1, or the number of pixels is no square.

    Example:
        >>> DRAWConfig(glimpses=64).side
        28
    """

    glimpses: int = 16
    attention: Literal["window", "none"] = "window"
    latent_features: int = option("latent", 100)
    hidden_features: int = option("hidden", 256)
    read_points: int = option("read", 2)
    write_points: int = option("write", 5)
    data_features: int = 784
    impl: Implementation = "auto"

    def __post_init__(self) -> None:
        check_choices(self)
        check_whole(
            self, glimpses=1, latent_features=1, hidden_features=1, read_points=1, write_points=1, data_features=1
        )
        if self.side**2 != self.data_features:
            raise ValueError(f"data_features must be those of a square image, such as 784, got {self.data_features}")

    @property
    def side(self) -> int:
        """Pixels of an image's side."""
        return math.isqrt(self.data_features)

    def as_dict(self) -> dict[str, Any]:
        return to_plain(self)


@dataclass(frozen=True)
class DRAWTrainConfig(WarmupConfig):
    """How to train it, as plain data.

    Args:
        data: the images: ``"dynamic"``, MNIST binarised for every batch; ``"static"``, static binarised MNIST; or
            ``"digits"``, the 1797 of scikit-learn, for a model with --data-features 64.
        kl_warmup: epochs until the KL term has weight 1. Without them the decoder learns to do without latents.
        learning_rate: of Adam, at the start.
        final_learning_rate: at the end of its half cosine.
        free_bits: free nats of every glimpse; the mean of its KL term over the batch has this floor.
    """

    data: Literal["dynamic", "static", "digits"] = "dynamic"
    epochs: int = 35
    kl_warmup: float = 2.0
    learning_rate: float = 1e-3
    final_learning_rate: float = 3e-4
    free_bits: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self, "free_bits", zero=True)
        if not 0 <= self.final_learning_rate <= self.learning_rate:
            raise ValueError(
                f"final_learning_rate must be between 0 and learning_rate={self.learning_rate}, "
                f"got {self.final_learning_rate}"
            )

    @property
    def measured_part(self) -> str:
        return "valid" if self.data == "static" else "test"


@dataclass(frozen=True)
class DRAWSettings:
    """All settings of a run of ``draw``."""

    model: DRAWConfig = field(default_factory=DRAWConfig)
    training: DRAWTrainConfig = field(default_factory=DRAWTrainConfig)
    evaluation: EvaluationConfig = field(default_factory=lambda: EvaluationConfig(samples=64, log_p_images=1000))

    def __post_init__(self) -> None:
        pixels = 64 if self.training.data == "digits" else 784
        if self.model.data_features != pixels:
            raise ValueError(
                f"data_features must be {pixels} for data={self.training.data!r}, got {self.model.data_features}"
            )
