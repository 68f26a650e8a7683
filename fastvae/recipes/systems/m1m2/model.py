"""The model M2 on the latents of a trained M1."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from ....distributions import DiagonalGaussian
from ....nn import DiagonalGaussianHead
from ....nn.gaussian import bound_log_sigma
from ...class_models.conditional import list_layers
from ...class_models.semi_supervised import SemiSupervisedVAE
from ...evaluation.features import find_active
from .config import M1M2Config

__all__ = ["M1M2", "FirstStage", "SecondStage"]

HALF_LOG_TWO_PI = 0.5 * math.log(2.0 * math.pi)


class FirstStage(nn.Module):
    """A trained M1, which does not learn any more: q(z1 | x) and p(x | z1). Its weights have the names of M1's."""

    def __init__(self, config: M1M2Config) -> None:
        super().__init__()
        widths, latents = config.m1_hidden, config.m1_latent
        self.encoder = nn.Sequential(*list_layers((config.data_features, *widths), "softplus"))
        self.head = DiagonalGaussianHead(widths[-1], latents, impl=config.impl)
        self.decoder = nn.Sequential(*list_layers((latents, *widths[::-1]), "softplus"))
        self.to_logits = nn.Linear(widths[0], config.data_features)
        self.requires_grad_(False)

    def encode(self, x: Tensor) -> DiagonalGaussian:
        """q(z1 | x) of intensities ``(N, pixels)``."""
        found: DiagonalGaussian = self.head(self.encoder(x))
        return found

    def decode(self, z: Tensor) -> Tensor:
        """Intensities ``(*, pixels)`` of p(x | z1)."""
        logits: Tensor = self.to_logits(self.decoder(z))
        return logits.sigmoid()


class SecondStage(SemiSupervisedVAE):
    r"""The model M2 of z1, of whose units only those count that M1 uses.

    .. math::
        p(z_1 \mid y, z_2) = \prod_{i\ \text{active}} N(z_{1,i};\ \mu_i(y, z_2), \sigma_i^2(y, z_2))

    Attributes:
        active: 1 for each active unit and 0 for the others, ``(m1_latent,)``.
    """

    active: Tensor

    def __init__(self, config: M1M2Config) -> None:
        super().__init__(config, config.m1_latent, 2 * config.m1_latent)
        self.register_buffer("active", torch.ones(config.m1_latent))

    def posterior(self, x: Tensor, labels: Tensor | None = None) -> DiagonalGaussian:
        return super().posterior(x * self.active, labels)

    def class_logits(self, x: Tensor) -> Tensor:
        return super().class_logits(x * self.active)

    def log_likelihood(self, x: Tensor, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """log p(z1 | y, z2), nats, of active units."""
        mu, log_sigma = self.decode(z, labels).chunk(2, -1)
        log_sigma = bound_log_sigma(log_sigma)
        error = ((x if labels is not None else x.unsqueeze(-2)) - mu) * (-log_sigma).exp()
        return -(0.5 * error.square() + log_sigma + HALF_LOG_TWO_PI) @ self.active

    def to_intensities(self, parameters: Tensor) -> Tensor:
        """The mean of p(z1 | y, z2), 0 for units that are not active."""
        return parameters.chunk(2, -1)[0] * self.active


class M1M2(nn.Module):
    r"""M1 of images, and M2 of M1's latents: p(x | z1) p(z1 | y, z2) p(y) p(z2).

    Args:
        config: sizes, activation and implementation.

    Reference:
        *Semi-Supervised Learning with Deep Generative Models* (Kingma, Rezende, Mohamed, Welling, 2014).

    Example:
        >>> model = M1M2(M1M2Config(latent_features=8, hidden_features=(16,), m1_latent=6, m1_hidden=(32,)))
        >>> model.class_logits(torch.rand(4, 784)).shape, model.sample(20).shape
        (torch.Size([4, 10]), torch.Size([20, 784]))
    """

    def __init__(self, config: M1M2Config) -> None:
        super().__init__()
        self.config = config
        self.first, self.second = FirstStage(config), SecondStage(config)

    def class_logits(self, x: Tensor) -> Tensor:
        """Logits of q(y | z1) at the mean z1 of every image of ``(N, pixels)``: ``(N, C)``."""
        return self.second.class_logits(self.first.encode(x).mu)

    @torch.no_grad()
    def sample(self, n: int, *, labels: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
        """Means ``(n, pixels)`` of p(x | z1) at the mean of p(z1 | y, z2); without labels the classes take turns."""
        return self.first.decode(self.second.sample(n, labels=labels, generator=generator))

    @torch.no_grad()
    def reconstruct(self, x: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """Intensities ``(N, pixels)`` after their way through z1, y and z2."""
        return self.first.decode(self.second.reconstruct(self.first.encode(x).mu, generator=generator))

    @torch.no_grad()
    def transfer(self, x: Tensor, labels: Tensor) -> Tensor:
        """Each image in its own style under every class, ``(N, C, pixels)``."""
        return self.first.decode(self.second.transfer(self.first.encode(x).mu, labels))

    @torch.no_grad()
    def start_from(self, weights: dict[str, Any], x: Tensor) -> None:
        """Takes the weights of M1, and finds its active units.

        Args:
            weights: the state dict of :class:`FirstStage`.
            x: intensities of training images, ``(N, pixels)``.

        Raises:
            RuntimeError: the weights do not fit.
        """
        self.first.load_state_dict(weights)
        self.second.active.copy_(find_active(self.first, x))
