"""Settings of the system ``vat``."""

from __future__ import annotations

from dataclasses import dataclass, field

from ...class_models.config import ClassifierConfig
from ...evaluation.classification import ClassConfig
from ...settings import check_positive, check_share, check_whole
from ...training.labelled_config import LabelledTrainConfig

__all__ = ["VATConfig", "VATSettings", "VATTrainConfig"]


@dataclass(frozen=True)
class VATConfig(ClassifierConfig):
    """What defines the classifier and its smoothness, as plain data.

    Args:
        epsilon: length of the perturbation that a prediction shall withstand.
        xi: length of the step at which the power iteration takes its gradient. Rounding spoils a small one in
            float32.
        power_iterations: how often the direction of the perturbation is improved.
        norm_logits: whether logits have batch norm, as the layers below.
    """

    epsilon: float = 1.0
    xi: float = 1e-2
    power_iterations: int = 1
    norm_logits: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole(self, power_iterations=1)
        check_positive(self, "epsilon", "xi")


@dataclass(frozen=True)
class VATTrainConfig(LabelledTrainConfig):
    """How to train it, as plain data.

    Args:
        learning_rate: of Adam in the first steps.
        smoothness_weight: weight of the divergence beside the cross entropy.
        entropy_weight: weight of the entropy of p(y | x) of unlabelled images, nats; 0 for the loss of the first paper.
            Without it the predictions of unlabelled batches become smooth where they become uniform: each batch has
            statistics of its own, so that labelled images can still be told apart.
        decay: factor on the learning rate every ``decay_steps`` steps.
        decay_steps: steps from one decay to the next.
    """

    epochs: int = 200
    batch_size: int = 250
    learning_rate: float = 2e-3
    smoothness_weight: float = 1.0
    entropy_weight: float = 1.0
    decay: float = 0.9
    decay_steps: int = 500

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole(self, batch_size=2, labelled_batch_size=2, decay_steps=1)
        check_positive(self, "smoothness_weight", "entropy_weight", zero=True)
        check_positive(self, "decay")
        check_share(self, "decay")


@dataclass(frozen=True)
class VATSettings:
    """All settings of a run of ``vat``."""

    model: VATConfig = field(default_factory=VATConfig)
    training: VATTrainConfig = field(default_factory=VATTrainConfig)
    evaluation: ClassConfig = field(default_factory=ClassConfig)
