"""Settings of the system ``pixelvae``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from ...evaluation.config import EvaluationConfig
from ...settings import Implementation, check_choices, check_odd, check_positive, check_whole, option, to_plain
from ...training.config import WarmupConfig
from ..pixelcnn.config import PixelTrainConfig, check_network

__all__ = ["PixelVAEConfig", "PixelVAESettings", "PixelVAETrainConfig"]


@dataclass(frozen=True)
class PixelVAEConfig:
    """What defines the model, as plain data.

    Args:
        levels: levels of latents: 1, or 2 for the hierarchical model: z1 is a map and z2, above it, a vector.
        latent: ``"vector"`` or ``"map"``, 7 x 7 positions; ``"auto"``: the vector, with two levels the map.
        latent_features: dimensions of the vector.
        latent_maps: channels of the map.
        prior: p(z), of the map with two levels p(z1 | z2): ``"normal"``, a standard normal, or ``"pixelcnn"``, a
            PixelCNN over the map whose outputs are diagonal Gaussians; ``"auto"``: normal, with two levels
            pixelcnn.
        prior_layers: layers of that PixelCNN.
        prior_filter_size: its kernels.
        prior_maps: its width.
        decoder: ``"bias"``, a network over pixels with the vector as context; ``"upsampling"``, one with a map of the
            image's size as context, which transposed convolutions make of z; ``"conv"``, these convolutions alone, with
            pixels independent given z; ``"auto"``: bias for a vector, upsampling for a map.
        decoder_maps: channels of the map that transposed convolutions end with.
        encoder_maps: widths of the encoder's three stages.
        network: of the decoder, as the next ones: see :class:`~fastvae.recipes.systems.pixelcnn.config.PixelCNNConfig`.
        layers: number of layers.
        filter_size: kernel of the layers but the first.
        first_filter_size: kernel of the first layer.
        maps: width of the layers.
        head_maps: width between the two last layers; 0: that of the layers.
        weight_norm: whether weights of masked convolutions, those of a PixelCNN prior too, are normalised, with a start
            from the first batch.
        impl: implementation of the library's ops, and of the sampler of images, see :mod:`fastvae.backend`; the sampler
            of a PixelCNN prior is chosen by itself unless this is ``"reference"``.

    Raises:
        ValueError: a value is not one of its choices, a size is out of its range, or two do not go together.

    Example:
        >>> PixelVAEConfig().decoder, PixelVAEConfig(levels=2).latent
        ('bias', 'map')
    """

    levels: Literal[1, 2] = 1
    latent: Literal["auto", "vector", "map"] = "auto"
    latent_features: int = 16
    latent_maps: int = 8
    prior: Literal["auto", "normal", "pixelcnn"] = "auto"
    prior_layers: int = 4
    prior_filter_size: int = option("prior-filter", 3)
    prior_maps: int = 32
    decoder: Literal["auto", "bias", "upsampling", "conv"] = "auto"
    decoder_maps: int = 32
    encoder_maps: tuple[int, int, int] = (32, 64, 64)
    network: Literal["gated", "plain"] = "gated"
    layers: int = 12
    filter_size: int = option("filter", 5)
    first_filter_size: int = option("first-filter", 7)
    maps: int = 16
    head_maps: int = 0
    weight_norm: bool = False
    impl: Implementation = "auto"

    def __post_init__(self) -> None:
        check_choices(self)
        self._choose("latent", "vector" if self.levels == 1 else "map")
        self._choose("prior", "normal" if self.levels == 1 else "pixelcnn")
        self._choose("decoder", "bias" if self.latent == "vector" else "upsampling")
        check_network(self)
        check_whole(self, latent_features=1, latent_maps=1, prior_layers=1, prior_maps=1, decoder_maps=1)
        check_odd(self, "prior_filter_size")
        if len(self.encoder_maps) != 3 or min(self.encoder_maps) < 1:
            raise ValueError(f"encoder_maps must be three sizes >= 1, got {self.encoder_maps}")
        self._check_parts()

    def _check_parts(self) -> None:
        if self.latent == "vector" and self.levels == 2:
            raise ValueError("latent must be 'map' for levels=2, got 'vector'")
        if self.latent == "vector" and self.prior == "pixelcnn":
            raise ValueError("prior must be 'normal' for latent='vector': a PixelCNN needs a map, got 'pixelcnn'")
        if self.levels == 2 and self.prior == "normal":
            raise ValueError("prior must be 'pixelcnn' for levels=2: z2 enters by it, got 'normal'")
        if self.weight_norm and self.decoder == "conv" and self.prior == "normal":
            raise ValueError("weight_norm must be False for decoder='conv' with prior='normal', got True")
        if self.latent == "map" and self.decoder == "bias":
            raise ValueError("decoder must be 'upsampling' or 'conv' for latent='map', got 'bias'")

    def _choose(self, name: str, default: str) -> None:
        if getattr(self, name) == "auto":
            object.__setattr__(self, name, default)

    def as_dict(self) -> dict[str, Any]:
        return to_plain(self)


@dataclass(frozen=True)
class PixelVAETrainConfig(PixelTrainConfig, WarmupConfig):
    """The training of ``pixelcnn``, with options that keep a strong decoder from ignoring the latents.

    Args:
        kl_warmup: steps until the KL terms have weight 1.
        free_bits: free nats of each KL term, a mean over the batch and a sum over its latent's dimensions.
    """

    kl_warmup: int = 10_000
    free_bits: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self, "free_bits", zero=True)


@dataclass(frozen=True)
class PixelVAESettings:
    """All settings of a run of ``pixelvae``."""

    model: PixelVAEConfig = field(default_factory=PixelVAEConfig)
    training: PixelVAETrainConfig = field(default_factory=PixelVAETrainConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
