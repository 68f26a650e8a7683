"""Settings of the system ``vat``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ...evaluation.classification import ClassConfig
from ...settings import (
    Implementation,
    check_choices,
    check_positive,
    check_share,
    check_sizes,
    check_whole,
    option,
    to_plain,
)
from ...training.labelled_config import LabelledTrainConfig

__all__ = ["VATConfig", "VATSettings", "VATTrainConfig"]


@dataclass(frozen=True)
class VATConfig:
    """What defines the classifier and its smoothness, as plain data.

    Args:
        hidden_features: widths of the hidden layers.
        data_features: number of pixels.
        classes: how many there are.
        epsilon: length of the perturbation that a prediction shall withstand.
        xi: length of the step at which the power iteration takes its gradient. Rounding spoils a small one in
            float32.
        power_iterations: how often the direction of the perturbation is improved.
        impl: the model uses no op that has implementations.

    Raises:
        ValueError: a value is out of its range.
    """

    hidden_features: tuple[int, ...] = option("hidden", (1200, 1200))
    data_features: int = 784
    classes: int = 10
    epsilon: float = 0.3
    xi: float = 1e-2
    power_iterations: int = 1
    impl: Implementation = "auto"

    def __post_init__(self) -> None:
        check_choices(self)
        check_sizes(self, "hidden_features")
        check_whole(self, data_features=1, classes=2, power_iterations=1)
        check_positive(self, "epsilon", "xi")

    def as_dict(self) -> dict[str, Any]:
        return to_plain(self)


@dataclass(frozen=True)
class VATTrainConfig(LabelledTrainConfig):
    """How to train it, as plain data.

    Args:
        learning_rate: of Adam in the first steps.
        smoothness_weight: weight of the divergence beside the cross entropy.
        decay: factor on the learning rate every ``decay_steps`` steps.
        decay_steps: steps from one decay to the next.
    """

    epochs: int = 200
    batch_size: int = 250
    learning_rate: float = 2e-3
    smoothness_weight: float = 1.0
    decay: float = 0.9
    decay_steps: int = 500

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole(self, batch_size=2, labelled_batch_size=2, decay_steps=1)
        check_positive(self, "smoothness_weight", zero=True)
        check_positive(self, "decay")
        check_share(self, "decay")


@dataclass(frozen=True)
class VATSettings:
    """All settings of a run of ``vat``."""

    model: VATConfig = field(default_factory=VATConfig)
    training: VATTrainConfig = field(default_factory=VATTrainConfig)
    evaluation: ClassConfig = field(default_factory=ClassConfig)
