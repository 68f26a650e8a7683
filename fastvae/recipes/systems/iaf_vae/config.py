"""What the recipe ``iaf_vae`` is told, as plain data: it goes into checkpoints and comes from the command line."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from ..backend import IMPLEMENTATIONS
from ..reference.affine_flow import KINDS
from .config import PRECISIONS, check_whole

__all__ = ["IAF_BASES", "IAF_POSTERIORS", "EvaluationConfig", "IAFTrainConfig", "IAFVAEConfig"]

IAF_POSTERIORS = ("diagonal", "triangular", "iaf")
IAF_BASES = ("diagonal", "triangular")


@dataclass(frozen=True)
class IAFVAEConfig:
    """What defines an :class:`~fastvae.recipes.iaf_vae.IAFVAE`, as plain data.

    Args:
        posterior: ``"diagonal"``, ``"triangular"`` (full covariance) or ``"iaf"``.
        latent_features: dimension D of z.
        depth: number T of flow steps; of ``"iaf"`` only, as is ``width``.
        width: width of the two hidden layers of every step's network.
        feature_maps: feature maps of the encoder's stages, each of which halves the image; the decoder mirrors them.
        dense_features: width of the dense layer between images and latents, whose output is the flow's context.
        image_side: height and width of the images.
        base: the Gaussian that the flow of ``"iaf"`` starts from: ``"diagonal"``, the paper's, or ``"triangular"``,
            which is the paper's linear flow (its appendix A) as the chain's first step.
        kind: the flow's affine step, see :func:`fastvae.functional.affine_flow`: ``"gated"`` is the paper's,
            ``"iaf_release"`` that of its released code, which starts closer to the identity.
        tril_scale: factor on the predicted entries below the diagonal, of a triangular Gaussian only.
        impl: implementation of the posterior's ops, see :mod:`fastvae.backend`.

    Raises:
        ValueError: a value is none of those above, or a size is below 1.

    Example:
        >>> IAFVAEConfig(depth=8, width=1920).as_dict()["feature_maps"]
        [16, 32, 32]
    """

    posterior: str = "iaf"
    latent_features: int = 32
    depth: int = 2
    width: int = 320
    feature_maps: tuple[int, ...] = (16, 32, 32)
    dense_features: int = 450
    image_side: int = 28
    base: str = "diagonal"
    kind: str = "gated"
    tril_scale: float = 0.1
    impl: str = "auto"

    def __post_init__(self) -> None:
        object.__setattr__(self, "feature_maps", tuple(self.feature_maps))
        for name, allowed in (
            ("posterior", IAF_POSTERIORS),
            ("base", IAF_BASES),
            ("kind", KINDS),
            ("impl", IMPLEMENTATIONS),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}")
        check_whole(self, latent_features=1, depth=1, width=1, dense_features=1, image_side=1)
        if not self.feature_maps or min(self.feature_maps) < 1:
            raise ValueError(f"feature_maps must be one or more sizes >= 1, got {self.feature_maps}")
        if not 0 < self.tril_scale < math.inf:
            raise ValueError(f"tril_scale must be > 0 and finite, got {self.tril_scale}")

    @property
    def data_features(self) -> int:
        return self.image_side**2

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {"feature_maps": list(self.feature_maps)}


@dataclass(frozen=True)
class IAFTrainConfig:
    """How to train it, as plain data.

    Args:
        epochs: passes over the training images.
        batch_size: images in the joint batch of all processes.
        learning_rate: of Adamax, until the decay begins.
        final_learning_rate: at the end of the decay, which is geometric.
        decay_from: share of all steps after which the decay begins.
        free_bits: nats in every latent dimension that the loss does not penalise.
        average_decay: decay of the moving average of the weights, which evaluation uses; 0 for no average.
        seed: of initial weights, order, binarisation and noise.
        precision: Lightning's name: ``"32-true"``, ``"64-true"``, ``"bf16-mixed"`` or ``"16-mixed"``.
        compile: whether ``torch.compile`` translates encoder and decoder.
        check_every: epochs from one test and checkpoint to the next.

    Raises:
        ValueError: a number is out of its range.
    """

    epochs: int = 1000
    batch_size: int = 128
    learning_rate: float = 2e-3
    final_learning_rate: float = 2e-4
    decay_from: float = 0.5
    free_bits: float = 0.01
    average_decay: float = 0.999
    seed: int = 0
    precision: str = "32-true"
    compile: bool = False
    check_every: int = 1

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {self.precision!r}")
        check_whole(self, epochs=1, batch_size=1, seed=0, check_every=1)
        for name in ("learning_rate", "final_learning_rate"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be > 0 and finite, got {getattr(self, name)}")
        if not 0 <= self.free_bits < math.inf:
            raise ValueError(f"free_bits must be >= 0 and finite, got {self.free_bits}")
        if not 0 <= self.decay_from <= 1:
            raise ValueError(f"decay_from must lie in [0, 1], got {self.decay_from}")
        if not 0 <= self.average_decay < 1:
            raise ValueError(f"average_decay must lie in [0, 1), got {self.average_decay}")


@dataclass(frozen=True)
class EvaluationConfig:
    """How a trained model is evaluated, as plain data.

    Args:
        samples: number K of importance samples.
        log_p_images: number of test images for log p(x).
        image_chunk: images at a time.
        sample_chunk: samples of each image at a time.

    Raises:
        ValueError: a number is below 1.
    """

    samples: int = 128
    log_p_images: int = 10_000
    image_chunk: int = 100
    sample_chunk: int = 32

    def __post_init__(self) -> None:
        check_whole(self, samples=1, log_p_images=1, image_chunk=1, sample_chunk=1)
