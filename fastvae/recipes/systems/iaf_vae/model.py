"""A convolutional variational auto-encoder of binary images whose posterior is an inverse autoregressive flow."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ....distributions import DiagonalGaussian, TriangularGaussian
from ....likelihoods import bernoulli_log_prob
from ....nn import DiagonalGaussianHead, InverseAutoregressiveFlow, TriangularGaussianHead, initialize_from_data
from ...evaluation.latents import OneLatent
from ...flow_posterior import FlowPosterior
from ...flow_prior import FlowPrior
from .config import IAFVAEConfig
from .layers import ResidualBlock, apply_weight_norm, halve

__all__ = ["IAFVAE"]

HEAD_STD = 0.1


class IAFVAE(OneLatent):
    r"""The MNIST experiment of the paper below: residual networks, p(z) = N(0, I), and p(x | z) is Bernoulli.

    With ``prior="maf"`` p(z) is learned, see :class:`~fastvae.recipes.flow_prior.FlowPrior`.

    The encoder halves the image once for each entry of ``feature_maps``, by a residual block of stride 2, which a
    block of stride 1 follows; then comes a dense layer. The decoder mirrors it with transposed convolutions. All
    layers are weight-normalised, activations are ELU. The dense layer's output is the context of every flow step.

    Args:
        config: sizes, posterior and implementation.

    Note:
        A new model must meet a first batch, :meth:`initialize_from`, before it is trained.

    Reference:
        *Improving Variational Inference with Inverse Autoregressive Flow* (Kingma, Salimans, Jozefowicz, Chen,
        Sutskever, Welling, 2016), appendix B.

    Example:
        >>> model = IAFVAE(IAFVAEConfig(latent_features=4, depth=2, width=16, feature_maps=(4, 8)))
        >>> x = torch.rand(6, 784).round()
        >>> model.initialize_from(x)
        >>> model.bound(x).shape
        torch.Size([6])
    """

    def __init__(self, config: IAFVAEConfig) -> None:
        super().__init__()
        self.config = config
        sides = list(itertools.accumulate(config.feature_maps, lambda side, _: halve(side), initial=config.image_side))
        maps, dense, latent = (1, *config.feature_maps), config.dense_features, config.latent_features
        smallest = (maps[-1], sides[-1], sides[-1])
        flat = maps[-1] * sides[-1] ** 2
        self.encoder = nn.Sequential(
            nn.Unflatten(-1, (1, config.image_side, config.image_side)),
            *_encoder_blocks(maps),
            nn.ELU(),
            nn.Flatten(),
            apply_weight_norm(nn.Linear(flat, dense)),
            nn.ELU(),
        )
        self.decoder = nn.Sequential(
            apply_weight_norm(nn.Linear(latent, dense)),
            nn.ELU(),
            apply_weight_norm(nn.Linear(dense, flat)),
            nn.ELU(),
            nn.Unflatten(-1, smallest),
            *_decoder_blocks(maps, sides),
            nn.Flatten(),
        )
        self.head: DiagonalGaussianHead | TriangularGaussianHead
        gaussian = config.base if config.posterior == "iaf" else config.posterior
        if gaussian == "triangular":
            # Rows of zeros have no direction that could be normalised.
            self.head = TriangularGaussianHead(dense, latent, tril_init_scale=1.0, impl=config.impl)
        else:
            self.head = DiagonalGaussianHead(dense, latent, impl=config.impl)
        apply_weight_norm(self.head.linear)
        self.flow: InverseAutoregressiveFlow | None = None
        if config.posterior == "iaf":
            self.flow = InverseAutoregressiveFlow(
                latent,
                (config.width, config.width),
                steps=config.depth,
                context_features=dense,
                weight_norm=True,
                kind=config.kind,
                impl=config.impl,
            )
            for network in self.flow.steps():
                assert network.context_layer is not None
                apply_weight_norm(network.context_layer)
        if config.prior == "maf":
            self.prior = FlowPrior(latent, depth=config.prior_depth, width=config.prior_width, impl=config.impl)

    @torch.no_grad()
    def initialize_from(self, x: Tensor, **noise: Any) -> None:
        """Data-dependent initialisation from a first batch of binary images ``(N, pixels)``, in training mode.

        Args:
            x: binary images.
            noise: as of :meth:`bound`.
        """
        self.train()
        targets: dict[nn.Module, float] = {self.head.linear: HEAD_STD}
        initialize_from_data(self, x, run=lambda x: self.bound(x, **noise), target_std=targets)

    def encode(self, x: Tensor) -> DiagonalGaussian | TriangularGaussian | FlowPosterior:
        """The posterior q(z | x) of binary images ``(N, pixels)``."""
        features = self.encoder(x)
        # A posterior's parameters, and what is drawn from it, stay in full precision under autocast.
        with torch.autocast(features.device.type, enabled=False):
            full = features.to(self.head.linear.bias.dtype)
            base: DiagonalGaussian | TriangularGaussian
            if isinstance(self.head, TriangularGaussianHead):
                mu, log_sigma, tril = self.head.posterior_parameters(full)
                base = TriangularGaussian(mu, log_sigma, self.config.tril_scale * tril, impl=self.config.impl)
            else:
                base = self.head(full)
        return base if self.flow is None else FlowPosterior(base, self.flow, features)

    def decode(self, z: Tensor) -> Tensor:
        """Logits ``(*, pixels)`` of p(x | z) for z ``(*, D)``."""
        return self.decoder(z.reshape(-1, z.shape[-1])).reshape(*z.shape[:-1], -1)

    def bound(self, x: Tensor, **noise: Any) -> Tensor:
        """The evidence lower bound of every image of ``(N, pixels)`` from one sample: ``(N,)``, nats.

        Args:
            x: binary images.
            noise: ``generator``, ``row_offset`` or ``eps`` of the posterior's ``rsample_with_kl``.
        """
        z, kl = self.draw_with_kl(self.encode(x), **noise)
        return bernoulli_log_prob(x, self.decode(z)) - kl


def _encoder_blocks(maps: Sequence[int]) -> Iterator[nn.Module]:
    for before, after in itertools.pairwise(maps):
        yield ResidualBlock(before, after, stride=2)
        yield ResidualBlock(after, after)


def _decoder_blocks(maps: Sequence[int], sides: Sequence[int]) -> Iterator[nn.Module]:
    for stage in range(len(maps) - 1, 0, -1):
        yield ResidualBlock(maps[stage], maps[stage])
        yield ResidualBlock(maps[stage], maps[stage - 1], transposed_to=sides[stage - 1])
