"""Settings of the system ``pixelcnn``, and those of a network over pixels and of its training."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from ...settings import Implementation, check_choices, check_odd, check_whole, option, to_plain
from ...training.config import AveragedTrainConfig

__all__ = [
    "NETWORKS",
    "PixelCNNConfig",
    "PixelCNNEvaluationConfig",
    "PixelCNNSettings",
    "PixelTrainConfig",
    "check_network",
]

NETWORKS = ("gated", "plain")


@dataclass(frozen=True)
class PixelCNNConfig:
    """What defines the model, a network over pixels, as plain data.

    Args:
        network: kind of PixelCNN over the image: ``"gated"``, :class:`~fastvae.nn.gated_pixelcnn.GatedPixelCNN`, or
            ``"plain"``, :class:`~fastvae.nn.pixelcnn.PixelCNN`.
        layers: its layers, the first one included.
        filter_size: kernel of its layers but the first, odd.
        first_filter_size: kernel of its first layer, odd.
        maps: feature maps of its layers.
        head_maps: feature maps between its last two layers; 0: as its layers.
        conditional: whether it is given the class of every image, an embedding of as many numbers as it has maps;
            needs --data dynamic.
        weight_norm: whether weights of masked convolutions are normalised, with a start from the first batch.
        impl: implementation of the library's ops, and of the sampler, see :mod:`fastvae.backend`.

    Raises:
        ValueError: a value is not one of its choices, or a size is out of its range.

    Example:
        >>> PixelCNNConfig(layers=7).as_dict()["first_filter_size"]
        7
    """

    network: Literal["gated", "plain"] = "gated"
    layers: int = 12
    filter_size: int = option("filter", 5)
    first_filter_size: int = option("first-filter", 7)
    maps: int = 32
    head_maps: int = 0
    conditional: bool = False
    weight_norm: bool = False
    impl: Implementation = "auto"

    def __post_init__(self) -> None:
        check_choices(self)
        check_network(self)

    def as_dict(self) -> dict[str, Any]:
        return to_plain(self)


def check_network(settings: Any) -> None:
    """Checks the sizes of a network over pixels.

    Raises:
        ValueError: one is out of its range.
    """
    check_whole(settings, layers=1, maps=1, head_maps=0)
    check_odd(settings, "filter_size", "first_filter_size")


@dataclass(frozen=True)
class PixelTrainConfig(AveragedTrainConfig):
    """How to train it, as plain data.

    Args:
        data: ``"static"``, static binarised MNIST, or ``"dynamic"``, MNIST binarised for every batch.
        add_validation: whether to train on the validation images, too; training then measures the test images.
        learning_rate: of Adam, until the decay begins.
    """

    data: Literal["static", "dynamic"] = "static"
    add_validation: bool = False
    epochs: int = 400

    @property
    def measured_part(self) -> str:
        return "test" if self.add_validation else "valid"


@dataclass(frozen=True)
class PixelCNNEvaluationConfig:
    """How a trained model is evaluated, as plain data.

    Args:
        image_chunk: images at a time.
    """

    image_chunk: int = 200

    def __post_init__(self) -> None:
        check_whole(self, image_chunk=1)


@dataclass(frozen=True)
class PixelCNNSettings:
    """All settings of a run of ``pixelcnn``.

    Raises:
        ValueError: ``model`` is conditional, and the images of ``training`` have no labels.
    """

    model: PixelCNNConfig = field(default_factory=PixelCNNConfig)
    training: PixelTrainConfig = field(default_factory=PixelTrainConfig)
    evaluation: PixelCNNEvaluationConfig = field(default_factory=PixelCNNEvaluationConfig)

    def __post_init__(self) -> None:
        if self.model.conditional and self.training.data == "static":
            raise ValueError(
                "data must be 'dynamic' for a conditional model, as static images have no labels; got 'static'"
            )
