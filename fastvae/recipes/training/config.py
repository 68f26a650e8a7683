"""Settings that trainings share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ...objectives import CyclicSchedule, LinearSchedule, SigmoidSchedule
from ..settings import check_choices, check_positive, check_share, check_whole

__all__ = ["AveragedTrainConfig", "Precision", "TrainConfig", "WarmupConfig", "check_groups"]

Precision = Literal["32-true", "64-true", "bf16-mixed", "16-mixed"]


@dataclass(frozen=True)
class TrainConfig:
    """How to train, as plain data.

    Args:
        epochs: passes over the training images.
        batch_size: images in the joint batch of all processes.
        learning_rate: of the optimiser, at its highest.
        seed: of initial weights, order, binarisation and noise.
        precision: Lightning's name of it.
        check_every: epochs from one measurement and checkpoint to the next.

    Raises:
        ValueError: a value is none of its choices, or a number is out of its range.
    """

    epochs: int = 100
    batch_size: int = 100
    learning_rate: float = 1e-3
    seed: int = 0
    precision: Precision = "32-true"
    check_every: int = 1

    def __post_init__(self) -> None:
        check_choices(self)
        check_whole(self, epochs=1, batch_size=1, seed=0, check_every=1)
        check_positive(self, "learning_rate")

    @property
    def measured_part(self) -> str:
        """Which images are measured during training: ``"valid"`` or ``"test"``."""
        return "test"


@dataclass(frozen=True)
class WarmupConfig(TrainConfig):
    """As :class:`TrainConfig`, with a weight of the KL term that rises at first.

    Args:
        kl_warmup: epochs until the KL term has weight 1; 0: it has from the start.
        schedule: the way there: ``"linear"``; ``"cyclic"``, a linear rise and a plateau as long, again and again; or
            ``"sigmoid"``, a logistic curve from 0.0025 to 0.9975.
        kl_cycles: cycles of ``"cyclic"``, after which the weight stays 1; 0: they never end.
    """

    kl_warmup: float = 0.0
    schedule: Literal["linear", "cyclic", "sigmoid"] = "linear"
    kl_cycles: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole(self, kl_warmup=0, kl_cycles=0)
        if self.schedule != "linear" and self.kl_warmup == 0:
            raise ValueError(f"kl_warmup must be > 0 for schedule={self.schedule!r}, got {self.kl_warmup}")

    def kl_weight(self, step: float, unit: float = 1.0) -> float:
        """The weight of the KL term in the ``step``-th step, from 1; ``unit`` is the number of steps that
        ``kl_warmup`` counts in.
        """
        length = self.kl_warmup * unit
        if length <= 0:
            return 1.0
        if self.schedule == "cyclic":
            return CyclicSchedule(0.0, 1.0, 2.0 * length, cycles=self.kl_cycles or None)(step)
        if self.schedule == "sigmoid":
            return SigmoidSchedule(0.0, 1.0, midpoint=0.5 * length, slope=12.0 / length)(step)
        return LinearSchedule(0.0, 1.0, length)(step)


def check_groups(groups: int, latent_features: int) -> None:
    """Checks the number of groups that share free bits.

    Raises:
        ValueError: they do not divide the dimensions.
    """
    if groups and latent_features % groups:
        raise ValueError(f"free_bits_groups must divide latent_features, {latent_features}, got {groups}")


@dataclass(frozen=True)
class AveragedTrainConfig(TrainConfig):
    """As :class:`TrainConfig`, with a rate that decays and weights that are averaged.

    Args:
        final_learning_rate: at the end of the decay, which is geometric.
        decay_from: share of all steps after which the decay begins.
        average_decay: decay of the moving average of the weights, which evaluation uses; 0 for no average. The first
            steps have a smaller one, so that short runs forget the weights of the start.
    """

    final_learning_rate: float = 1e-4
    decay_from: float = 0.5
    average_decay: float = 0.999

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self, "final_learning_rate")
        check_share(self, "decay_from")
        check_share(self, "average_decay", one=False)
