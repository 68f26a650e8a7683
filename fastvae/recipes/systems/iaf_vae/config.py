"""Settings of the system ``iaf_vae``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from ...evaluation.config import EvaluationConfig
from ...settings import (
    Implementation,
    check_choices,
    check_positive,
    check_sizes,
    check_whole,
    option,
    to_plain,
)
from ...training.config import AveragedTrainConfig, WarmupConfig, check_groups

__all__ = ["IAF_BASES", "IAF_POSTERIORS", "IAFTrainConfig", "IAFVAEConfig", "IAFVAESettings"]

IAF_POSTERIORS = ("diagonal", "triangular", "iaf")
IAF_BASES = ("diagonal", "triangular")
Kind = Literal["gated", "exp", "clamped_exp", "softplus", "sigmoid", "location_only", "iaf_release"]


@dataclass(frozen=True)
class IAFVAEConfig:
    """What defines the model, as plain data.

    Args:
        posterior: q(z | x): ``"diagonal"``, ``"triangular"`` (full covariance) or ``"iaf"``.
        latent_features: dimensions of z.
        depth: flow steps of ``"iaf"``.
        width: width of the two hidden layers of each flow step.
        feature_maps: feature maps of the encoder's stages. Each stage halves the image; the decoder mirrors them.
        dense_features: width of the dense layer between images and latents; its output is the flow's context.
        image_side: height and width of the images.
        base: the Gaussian that the flow of ``"iaf"`` starts from: ``"diagonal"``, the paper's, or ``"triangular"``,
            which is the paper's linear flow (its appendix A) as the chain's first step.
        kind: the flow's affine step, see :func:`fastvae.functional.affine_flow`: ``"gated"`` is the paper's,
            ``"iaf_release"`` that of its released code, which starts closer to the identity.
        tril_scale: factor on the entries below the diagonal, of a triangular Gaussian only.
        prior: p(z): ``"normal"``, N(0, I), or ``"maf"``, a masked autoregressive flow that is learned; the KL term is
            then estimated from the sample.
        prior_depth: flow steps of ``"maf"``.
        prior_width: width of the two hidden layers of each of these steps.
        impl: implementation of the posterior's ops, see :mod:`fastvae.backend`.

    Raises:
        ValueError: a value is not one of its choices, or a size is below 1.

    Example:
        >>> IAFVAEConfig(depth=8, width=1920).as_dict()["feature_maps"]
        [16, 32, 32]
    """

    posterior: Literal["diagonal", "triangular", "iaf"] = "iaf"
    latent_features: int = option("latent", 32)
    depth: int = 2
    width: int = 320
    feature_maps: tuple[int, ...] = option("maps", (16, 32, 32))
    dense_features: int = option("dense", 450)
    image_side: int = 28
    base: Literal["diagonal", "triangular"] = "diagonal"
    kind: Kind = "gated"
    tril_scale: float = 0.1
    prior: Literal["normal", "maf"] = "normal"
    prior_depth: int = 2
    prior_width: int = 320
    impl: Implementation = "auto"

    def __post_init__(self) -> None:
        check_choices(self)
        check_whole(self, latent_features=1, depth=1, width=1, dense_features=1, image_side=1)
        check_whole(self, prior_depth=1, prior_width=1)
        check_sizes(self, "feature_maps")
        check_positive(self, "tril_scale")

    @property
    def data_features(self) -> int:
        return self.image_side**2

    def as_dict(self) -> dict[str, Any]:
        return to_plain(self)


@dataclass(frozen=True)
class IAFTrainConfig(AveragedTrainConfig, WarmupConfig):
    """How to train it, as plain data.

    Args:
        learning_rate: of Adamax, until the decay begins.
        free_bits: free nats in every latent dimension.
        free_bits_groups: groups of consecutive dimensions; the mean of a group's KL term over the batch has one floor,
            the free nats of its dimensions. 0: every dimension is a group.
        compile: whether ``torch.compile`` translates encoder and decoder.
    """

    epochs: int = 1000
    batch_size: int = 128
    learning_rate: float = 2e-3
    final_learning_rate: float = 2e-4
    free_bits: float = 0.01
    free_bits_groups: int = 0
    compile: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self, "free_bits", zero=True)
        check_whole(self, free_bits_groups=0)


@dataclass(frozen=True)
class IAFVAESettings:
    """All settings of a run of ``iaf_vae``."""

    model: IAFVAEConfig = field(default_factory=IAFVAEConfig)
    training: IAFTrainConfig = field(default_factory=IAFTrainConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)

    def __post_init__(self) -> None:
        check_groups(self.training.free_bits_groups, self.model.latent_features)
