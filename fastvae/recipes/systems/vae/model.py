"""A variational auto-encoder of binary images with a diagonal or a triangular Gaussian posterior."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import kl_divergence

from ....distributions import DiagonalGaussian, StandardNormal, TriangularGaussian
from ....likelihoods import bernoulli_log_prob
from ....nn import DiagonalGaussianHead, TriangularGaussianHead
from ....objectives import elbo, monte_carlo_elbo, standard_normal_log_prob
from ...evaluation.latents import OneLatent
from .config import VAEConfig

__all__ = ["VAE"]

HEADS = {"diagonal": DiagonalGaussianHead, "triangular": TriangularGaussianHead}


class VAE(OneLatent):
    r"""Encoder and decoder are multilayer perceptrons, p(z) = N(0, I), and p(x | z) is Bernoulli.

    Args:
        config: sizes, posterior and implementation.

    Reference:
        *Auto-Encoding Variational Bayes* (Kingma, Welling, 2013).

    Example:
        >>> from fastvae.recipes.systems.vae.config import VAEConfig
        >>> model = VAE(VAEConfig("triangular", latent_features=8, hidden_features=(32,)))
        >>> model.bound(torch.rand(4, 784).round()).shape
        torch.Size([4])
    """

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        self.config = config
        widths = config.hidden_features
        self.encoder = nn.Sequential(*_layers([config.data_features, *widths]))
        self.head = HEADS[config.posterior](widths[-1], config.latent_features, impl=config.impl)
        self.decoder = nn.Sequential(*_layers([config.latent_features, *reversed(widths)]))
        self.to_logits = nn.Linear(widths[0], config.data_features)
        self.prior = StandardNormal(config.latent_features, impl=config.impl)

    def encode(self, x: Tensor) -> DiagonalGaussian | TriangularGaussian:
        """The posterior q(z | x) of binary images ``(*, pixels)``."""
        features = self.encoder(x)
        if self.config.posterior == "diagonal":
            return self.head(features)
        mu, log_sigma, tril = self.head.posterior_parameters(features)
        return TriangularGaussian(mu, log_sigma, self.config.tril_scale * tril, impl=self.config.impl)

    def decode(self, z: Tensor) -> Tensor:
        """Logits ``(*, pixels)`` of p(x | z)."""
        return self.to_logits(self.decoder(z))

    @torch.no_grad()
    def start_at(self, pixel_means: Tensor) -> None:
        """Sets the decoder's last bias such that a new model starts at these intensities, ``(pixels,)``."""
        self.to_logits.bias.copy_(pixel_means.clamp(1e-3, 1.0 - 1e-3).logit())

    def kl(self, q: DiagonalGaussian | TriangularGaussian, z: Tensor, log_q: Tensor) -> Tensor:
        """The KL divergence of q from the prior, ``(N,)``: in closed form, whatever the sample."""
        return kl_divergence(q, self.prior)

    def bound(self, x: Tensor, *, beta: float = 1.0, **noise: Any) -> Tensor:
        """The evidence lower bound of every image of ``(N, pixels)`` from one sample: ``(N,)``, nats.

        Args:
            x: binary images.
            beta: weight of the KL term.
            noise: ``generator``, ``row_offset`` or ``eps`` of the posterior's ``rsample_with_log_prob``.
        """
        q = self.encode(x)
        if self.config.kl == "analytic":
            z, _, kl = q.rsample_with_kl(**noise)
            return elbo(bernoulli_log_prob(x, self.decode(z)), kl, beta=beta)
        z, log_q = q.rsample_with_log_prob(**noise)
        log_p_x = bernoulli_log_prob(x, self.decode(z))
        return monte_carlo_elbo(log_p_x, standard_normal_log_prob(z), log_q, beta=beta)


def _layers(widths: Sequence[int]) -> Iterator[nn.Module]:
    for before, after in itertools.pairwise(widths):
        yield nn.Linear(before, after)
        yield nn.ELU()
