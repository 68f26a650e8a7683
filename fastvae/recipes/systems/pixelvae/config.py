"""What the recipes ``pixelcnn`` and ``pixelvae`` are told, as plain data."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from ..backend import IMPLEMENTATIONS
from .config import PRECISIONS, check_whole
from .static_data import DATA_KINDS

__all__ = [
    "DECODERS",
    "LATENTS",
    "NETWORKS",
    "PRIORS",
    "PixelCNNConfig",
    "PixelTrainConfig",
    "PixelVAEConfig",
    "PixelVAETrainConfig",
]

NETWORKS = ("gated", "plain")
DECODERS = ("bias", "upsampling", "conv")
LATENTS = ("vector", "map")
PRIORS = ("normal", "pixelcnn")


@dataclass(frozen=True)
class PixelCNNConfig:
    """What defines the network over pixels, as plain data.

    Args:
        network: ``"gated"``, :class:`~fastvae.nn.gated_pixelcnn.GatedPixelCNN`, or ``"plain"``,
            :class:`~fastvae.nn.pixelcnn.PixelCNN`.
        layers: number of layers, the first one included.
        filter_size: kernel of the layers but the first, odd.
        first_filter_size: kernel of the first layer, odd.
        maps: width of the layers.
        head_maps: width between the two last layers; 0: that of the layers.
        impl: implementation of the library's ops, see :mod:`fastvae.backend`; the sampler is chosen by itself unless
            this is ``"reference"``.

    Raises:
        ValueError: a value is none of those above, or a size is out of its range.

    Example:
        >>> PixelCNNConfig(layers=7).as_dict()["first_filter_size"]
        7
    """

    network: str = "gated"
    layers: int = 12
    filter_size: int = 5
    first_filter_size: int = 7
    maps: int = 32
    head_maps: int = 0
    impl: str = "auto"

    def __post_init__(self) -> None:
        check_choices(self, network=NETWORKS, impl=IMPLEMENTATIONS)
        check_network(self)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class PixelVAEConfig:
    """What defines a :class:`~fastvae.recipes.pixelvae.PixelVAE`, as plain data.

    Args:
        levels: 1, or 2 for the hierarchical model: z1 is a map and z2, above it, a vector.
        latent: ``"vector"`` or ``"map"``, 7 x 7 positions; ``"auto"``: the vector, with two levels the map.
        latent_features: dimension of the vector.
        latent_maps: channels of the map.
        prior: p(z), of the map with two levels p(z1 | z2): ``"normal"``, a standard normal, or ``"pixelcnn"``, a
            PixelCNN over the map whose outputs are diagonal Gaussians; ``"auto"``: normal, with two levels
            pixelcnn.
        prior_layers: layers of that PixelCNN.
        prior_filter_size: its kernels.
        prior_maps: its width.
        decoder: ``"bias"``, a network over pixels whose layers are all told the vector; ``"upsampling"``, one that is
            told a map of the image's size which transposed convolutions make of z; ``"conv"``, these alone, pixels
            being independent given z; ``"auto"``: bias, of a map upsampling.
        decoder_maps: channels of the map that transposed convolutions end with.
        encoder_maps: widths of the encoder's three stages.
        network: of the decoder, as the next ones: see :class:`PixelCNNConfig`.
        layers: number of layers.
        filter_size: kernel of the layers but the first.
        first_filter_size: kernel of the first layer.
        maps: width of the layers.
        head_maps: width between the two last layers; 0: that of the layers.
        impl: implementation of the library's ops, see :mod:`fastvae.backend`; the sampler is chosen by itself unless
            this is ``"reference"``.

    Raises:
        ValueError: a value is none of those above, a size is out of its range, or two do not go together.

    Example:
        >>> PixelVAEConfig().decoder, PixelVAEConfig(levels=2).latent
        ('bias', 'map')
    """

    levels: int = 1
    latent: str = "auto"
    latent_features: int = 16
    latent_maps: int = 8
    prior: str = "auto"
    prior_layers: int = 4
    prior_filter_size: int = 3
    prior_maps: int = 32
    decoder: str = "auto"
    decoder_maps: int = 32
    encoder_maps: tuple[int, ...] = (32, 64, 64)
    network: str = "gated"
    layers: int = 12
    filter_size: int = 5
    first_filter_size: int = 7
    maps: int = 16
    head_maps: int = 0
    impl: str = "auto"

    def __post_init__(self) -> None:
        if self.levels not in (1, 2):
            raise ValueError(f"levels must be 1 or 2, got {self.levels}")
        self._settle("latent", "vector" if self.levels == 1 else "map")
        self._settle("prior", "normal" if self.levels == 1 else "pixelcnn")
        self._settle("decoder", "bias" if self.latent == "vector" else "upsampling")
        object.__setattr__(self, "encoder_maps", tuple(self.encoder_maps))
        check_choices(
            self, latent=LATENTS, prior=PRIORS, decoder=DECODERS, network=NETWORKS, impl=IMPLEMENTATIONS
        )  # fmt: skip
        check_network(self)
        check_whole(self, latent_features=1, latent_maps=1, prior_layers=1, prior_maps=1, decoder_maps=1)
        check_odd(self, "prior_filter_size")
        if len(self.encoder_maps) != 3 or min(self.encoder_maps) < 1:
            raise ValueError(f"encoder_maps must be three sizes >= 1, got {self.encoder_maps}")
        if self.latent == "vector" and self.levels == 2:
            raise ValueError("latent must be 'map' for levels=2, got 'vector'")
        if self.latent == "vector" and self.prior == "pixelcnn":
            raise ValueError("prior must be 'normal' for latent='vector': a PixelCNN needs a map, got 'pixelcnn'")
        if self.levels == 2 and self.prior == "normal":
            raise ValueError("prior must be 'pixelcnn' for levels=2: z2 enters by it, got 'normal'")
        if self.latent == "map" and self.decoder == "bias":
            raise ValueError("decoder must be 'upsampling' or 'conv' for latent='map', got 'bias'")

    def _settle(self, name: str, default: str) -> None:
        if getattr(self, name) == "auto":
            object.__setattr__(self, name, default)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {"encoder_maps": list(self.encoder_maps)}


def check_choices(config: Any, **choices: tuple[str, ...]) -> None:
    for name, allowed in choices.items():
        if getattr(config, name) not in allowed:
            raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {getattr(config, name)!r}")


def check_network(config: PixelCNNConfig | PixelVAEConfig) -> None:
    check_whole(config, layers=1, maps=1, head_maps=0)
    for name in ("filter_size", "first_filter_size"):
        check_odd(config, name)


def check_odd(config: Any, name: str) -> None:
    size = getattr(config, name)
    if size < 1 or size % 2 == 0:
        raise ValueError(f"{name} must be odd, got {size}")


@dataclass(frozen=True)
class PixelTrainConfig:
    """How to train it, as plain data.

    Args:
        data: ``"static"``, static binarised MNIST, or ``"dynamic"``, MNIST binarised anew for every batch.
        add_validation: whether the validation images are trained on, too; the test images then are what is measured
            during training.
        epochs: passes over the training images.
        batch_size: images in the joint batch of all processes.
        learning_rate: of Adam, until the decay begins.
        final_learning_rate: at the end of the decay, which is geometric.
        decay_from: share of all steps after which the decay begins.
        average_decay: decay of the moving average of the weights, which evaluation uses; 0 for no average.
        seed: of initial weights, order, binarisation and noise.
        precision: Lightning's name: ``"32-true"``, ``"64-true"``, ``"bf16-mixed"`` or ``"16-mixed"``.
        check_every: epochs from one measurement and checkpoint to the next.

    Raises:
        ValueError: a value is none of those above, or a number is out of its range.
    """

    data: str = "static"
    add_validation: bool = False
    epochs: int = 400
    batch_size: int = 100
    learning_rate: float = 1e-3
    final_learning_rate: float = 1e-4
    decay_from: float = 0.5
    average_decay: float = 0.999
    seed: int = 0
    precision: str = "32-true"
    check_every: int = 1

    def __post_init__(self) -> None:
        check_choices(self, data=DATA_KINDS, precision=PRECISIONS)
        check_whole(self, epochs=1, batch_size=1, seed=0, check_every=1)
        for name in ("learning_rate", "final_learning_rate"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be > 0 and finite, got {getattr(self, name)}")
        if not 0 <= self.decay_from <= 1:
            raise ValueError(f"decay_from must lie in [0, 1], got {self.decay_from}")
        if not 0 <= self.average_decay < 1:
            raise ValueError(f"average_decay must lie in [0, 1), got {self.average_decay}")

    @property
    def measured(self) -> str:
        """Which images are measured during training: ``"valid"`` or ``"test"``."""
        return "test" if self.add_validation else "valid"


@dataclass(frozen=True)
class PixelVAETrainConfig(PixelTrainConfig):
    """As :class:`PixelTrainConfig`, and what keeps a strong decoder from leaving the latents unused.

    Args:
        kl_warmup: steps in which the weight of the KL terms rises from 0 to 1.
        free_bits: nats of each KL term, a mean over the batch, that the loss does not penalise.
    """

    kl_warmup: int = 10_000
    free_bits: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole(self, kl_warmup=0)
        if not 0 <= self.free_bits < math.inf:
            raise ValueError(f"free_bits must be >= 0 and finite, got {self.free_bits}")
