"""The model M1, whose latents are features for a classifier."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .... import functional as F
from ....distributions import DiagonalGaussian
from ....nn import DiagonalGaussianHead, initialize_from_data
from ....objectives import elbo
from ...evaluation.latents import OneLatent
from .config import M1Config

__all__ = ["M1"]


class M1(OneLatent):
    """Encoder and decoder are multilayer perceptrons of softplus, p(z) = N(0, I), and p(x | z) is Bernoulli.

    Args:
        config: sizes and implementation.

    Reference:
        *Semi-Supervised Learning with Deep Generative Models* (Kingma, Rezende, Mohamed, Welling, 2014).

    Example:
        >>> from fastvae.recipes.systems.m1.config import M1Config
        >>> model = M1(M1Config(latent_features=8, hidden_features=(32,)))
        >>> model.bound(torch.rand(4, 784).round()).shape
        torch.Size([4])
    """

    def __init__(self, config: M1Config) -> None:
        super().__init__()
        self.config = config
        widths = config.hidden_features
        self.encoder = nn.Sequential(*list_layers([config.data_features, *widths]))
        self.head = DiagonalGaussianHead(widths[-1], config.latent_features, impl=config.impl)
        self.decoder = nn.Sequential(*list_layers([config.latent_features, *reversed(widths)]))
        self.to_logits = nn.Linear(widths[0], config.data_features)

    def encode(self, x: Tensor) -> DiagonalGaussian:
        """The posterior q(z | x) of images ``(*, pixels)``."""
        found: DiagonalGaussian = self.head(self.encoder(x))
        return found

    def decode(self, z: Tensor) -> Tensor:
        """Logits ``(*, pixels)`` of p(x | z)."""
        logits: Tensor = self.to_logits(self.decoder(z))
        return logits

    def log_likelihood(self, x: Tensor, z: Tensor) -> Tensor:
        """log p(x | z), ``(*, N)``, nats, of images ``(N, pixels)`` with intensities in [0, 1]."""
        weight, bias = self.to_logits.weight, self.to_logits.bias
        return F.linear_bernoulli_log_prob(self.decoder(z), weight, bias, x, impl=self.config.impl)

    @torch.no_grad()
    def initialize_from(self, x: Tensor, pixel_means: Tensor, **noise: Any) -> None:
        """Starts a new model near these intensities, with features that vary by 1 over a first batch.

        Smaller ones would not carry the latents through the decoder: it would learn to do without them.

        Args:
            x: images ``(N, pixels)``.
            pixel_means: intensities, ``(pixels,)``.
            noise: as of :meth:`bound`.
        """
        layers = [layer for layer in (*self.encoder, *self.decoder) if isinstance(layer, nn.Linear)]
        initialize_from_data(
            self, x, run=lambda x: self.decode(self.encode(x).rsample_with_log_prob(**noise)[0]), plain=layers
        )
        self.to_logits.bias.copy_(pixel_means.clamp(1e-3, 1.0 - 1e-3).logit())

    def bound(self, x: Tensor, **noise: Any) -> Tensor:
        """The evidence lower bound of every image of ``(N, pixels)`` from one sample: ``(N,)``, nats.

        Args:
            x: images with intensities in [0, 1].
            noise: ``generator``, ``row_offset`` or ``eps`` of the posterior's ``rsample_with_kl``.
        """
        z, _, kl = self.encode(x).rsample_with_kl(**noise)
        return elbo(self.log_likelihood(x, z), kl)


def list_layers(widths: Sequence[int]) -> Iterator[nn.Module]:
    for before, after in itertools.pairwise(widths):
        yield nn.Linear(before, after)
        yield nn.Softplus()
