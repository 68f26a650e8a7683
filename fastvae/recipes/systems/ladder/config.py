"""Settings of the system ``ladder``."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from ...class_models.config import ClassifierConfig
from ...evaluation.classification import ClassConfig
from ...settings import check_positive, check_share, check_whole, option
from ...training.labelled_config import LabelledTrainConfig

__all__ = ["LadderConfig", "LadderSettings", "LadderTrainConfig"]


@dataclass(frozen=True)
class LadderConfig(ClassifierConfig):
    """What defines the network, as plain data.

    Args:
        noise: standard deviation of what is added to the input and to every normalised layer.
    """

    hidden_features: tuple[int, ...] = option("hidden", (1000, 500, 250, 250, 250))
    noise: float = 0.3

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self, "noise", zero=True)

    @property
    def widths(self) -> tuple[int, ...]:
        """Of all layers, from the input to the classes."""
        return (self.data_features, *self.hidden_features, self.classes)


@dataclass(frozen=True)
class LadderTrainConfig(LabelledTrainConfig):
    """How to train it, as plain data.

    Args:
        learning_rate: of Adam, until ``decay_from``.
        decay_from: share of all steps after which the rate falls linearly to 0.
        costs: weights of the squared errors of the layers, from the input up; the last is that of all layers above.

    Raises:
        ValueError: a weight is below 0 or not finite, or there is none.
    """

    epochs: int = 150
    learning_rate: float = 2e-3
    decay_from: float = 0.67
    costs: tuple[float, ...] = (1000.0, 10.0, 0.1)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole(self, batch_size=2, labelled_batch_size=2)
        check_share(self, "decay_from")
        object.__setattr__(self, "costs", tuple(self.costs))
        if not self.costs or not all(0 <= cost < math.inf for cost in self.costs):
            raise ValueError(f"costs must be one or more numbers >= 0 and finite, got {self.costs}")


@dataclass(frozen=True)
class LadderSettings:
    """All settings of a run of ``ladder``."""

    model: LadderConfig = field(default_factory=LadderConfig)
    training: LadderTrainConfig = field(default_factory=LadderTrainConfig)
    evaluation: ClassConfig = field(default_factory=ClassConfig)
