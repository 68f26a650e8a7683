"""A variational auto-encoder of binary images with a Gaussian posterior, or a flow of one."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from .... import functional as F
from ....distributions import DiagonalGaussian, TriangularGaussian
from ....nn import DiagonalGaussianHead, InverseAutoregressiveFlow, TriangularGaussianHead
from ....nn.gaussian import bound_log_sigma
from ....objectives import elbo, monte_carlo_elbo
from ...class_models.conditional import list_layers
from ...errors import RecipeError
from ...evaluation.latents import OneLatent
from ...flow_posterior import FlowPosterior
from ...flow_prior import FlowPrior
from .config import VAEConfig

__all__ = ["VAE"]

HALF_LOG_TWO_PI = 0.5 * math.log(2.0 * math.pi)
HEADS = {"diagonal": DiagonalGaussianHead, "triangular": TriangularGaussianHead, "iaf": DiagonalGaussianHead}


class VAE(OneLatent):
    r"""Encoder and decoder are multilayer perceptrons, p(z) = N(0, I), and p(x | z) is Bernoulli, or Gaussian.

    With ``prior="maf"`` p(z) is learned, see :class:`~fastvae.recipes.flow_prior.FlowPrior`.

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
        self.encoder = nn.Sequential(*list_layers([config.data_features, *widths], config.activation))
        self.head = HEADS[config.posterior](widths[-1], config.latent_features, impl=config.impl)
        self.decoder = nn.Sequential(*list_layers([config.latent_features, *reversed(widths)], config.activation))
        self.to_logits = nn.Linear(widths[0], config.data_features)
        self.to_log_sigma: nn.Linear | None = None
        if config.likelihood == "gaussian":
            self.to_log_sigma = nn.Linear(widths[0], config.data_features)
        self.flow: InverseAutoregressiveFlow | None = None
        if config.posterior == "iaf":
            self.flow = InverseAutoregressiveFlow(
                config.latent_features,
                (config.width, config.width),
                steps=config.depth,
                context_features=widths[-1],
                kind="iaf_release",
                impl=config.impl,
            )
        if config.prior == "maf":
            features = config.latent_features
            self.prior = FlowPrior(features, depth=config.prior_depth, width=config.prior_width, impl=config.impl)

    def encode(self, x: Tensor) -> DiagonalGaussian | TriangularGaussian | FlowPosterior:
        """The posterior q(z | x) of binary images ``(*, pixels)``."""
        features = self.encoder(x)
        if self.config.posterior == "diagonal":
            return self.head(features)
        if self.flow is not None:
            return FlowPosterior(self.head(features), self.flow, features)
        mu, log_sigma, tril = self.head.posterior_parameters(features)
        return TriangularGaussian(mu, log_sigma, self.config.tril_scale * tril, impl=self.config.impl)

    def draw(self, x: Tensor, *, kl: str = "sum", sampled: bool = False, **noise: Any) -> tuple[Tensor, Tensor]:
        """As of the class above; full covariance is drawn as its parameters are made."""
        if self.config.posterior != "triangular" or self.prior is not None or sampled:
            return super().draw(x, kl=kl, sampled=sampled, **noise)
        z, _, found = self.head.rsample_with_kl(self.encoder(x), tril_scale=self.config.tril_scale, kl=kl, **noise)
        return z, found

    def decode(self, z: Tensor) -> Tensor:
        """Logits ``(*, pixels)`` of the means of p(x | z)."""
        return self.to_logits(self.decoder(z))

    def log_likelihood(self, x: Tensor, z: Tensor) -> Tensor:
        if self.to_log_sigma is None:
            options = {"activation": self.config.activation, "impl": self.config.impl}
            return F.mlp_bernoulli_log_prob(z, *self._decoder_layers(), x, **options)
        hidden = self.decoder(z)
        log_sigma = bound_log_sigma(self.to_log_sigma(hidden))
        error = (x - self.to_logits(hidden).sigmoid()) * (-log_sigma).exp()
        return -(0.5 * error.square() + log_sigma + HALF_LOG_TWO_PI).sum(-1)

    def latent_gradient(self, z: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """log p(x | z), ``(*)``, and its gradient to ``z``, ``(*, latent)``, in one call.

        Under :func:`torch.no_grad` nothing is kept. See :func:`fastvae.functional.latent_gradient`.

        Args:
            z: latents, ``(*, latent)``.
            x: binary images, ``(*, pixels)``, which broadcast to the batch of ``z``.

        Raises:
            RecipeError: p(x | z) is Gaussian.
        """
        if self.to_log_sigma is not None:
            raise RecipeError("likelihood must be 'bernoulli' for the gradient to the latents, got 'gaussian'")
        weights, biases = self._decoder_layers()
        return F.latent_gradient(z, weights, biases, x, activation=self.config.activation, impl=self.config.impl)

    def _decoder_layers(self) -> tuple[list[Tensor], list[Tensor]]:
        layers = [layer for layer in (*self.decoder, self.to_logits) if isinstance(layer, nn.Linear)]
        return [layer.weight for layer in layers], [layer.bias for layer in layers]

    @torch.no_grad()
    def start_at(self, pixel_means: Tensor) -> None:
        """Sets the decoder's last bias such that a new model starts at these intensities, ``(pixels,)``."""
        self.to_logits.bias.copy_(pixel_means.clamp(1e-3, 1.0 - 1e-3).logit())

    def bound(self, x: Tensor, *, beta: float = 1.0, **noise: Any) -> Tensor:
        """The evidence lower bound of every image of ``(N, pixels)`` from one sample: ``(N,)``, nats.

        Args:
            x: binary images.
            beta: weight of the KL term.
            noise: ``generator``, ``row_offset`` or ``eps`` of the posterior's ``rsample_with_kl``.
        """
        if self.config.kl == "analytic":
            z, kl = self.draw(x, **noise)
            return elbo(self.log_likelihood(x, z), kl, beta=beta)
        z, log_q = self.encode(x).rsample_with_log_prob(**noise)
        log_p_x = self.log_likelihood(x, z)
        return monte_carlo_elbo(log_p_x, self.log_prior(z), log_q, beta=beta)
