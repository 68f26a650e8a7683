"""A VAE of binary images whose class is given."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .... import functional as F
from ....distributions import DiagonalGaussian
from ...class_models.conditional import ConditionalVAE
from ...evaluation.units import kl_by_unit
from .config import CVAEConfig

__all__ = ["CVAE"]


class CVAE(ConditionalVAE):
    r"""p(x | y) with p(z) = N(0, I), or with a diagonal Gaussian p(z | y) of each class.

    .. math::
        \log p(x \mid y) \ge E_{q(z \mid x, y)}[\log p(x \mid y, z)] - D_{KL}(q(z \mid x, y) \,\|\, p(z \mid y))

    Args:
        config: sizes, prior, activation and implementation.

    Reference:
        *Learning Structured Output Representation using Deep Conditional Generative Models* (Sohn, Lee, Yan, 2015).

    Example:
        >>> model, x = CVAE(CVAEConfig(8, (32,), prior="class")), torch.rand(4, 784).round()
        >>> model.bound(x, torch.arange(4)).shape, model.sample(3, labels=torch.tensor([7, 7, 1])).shape
        (torch.Size([4]), torch.Size([3, 784]))
    """

    config: CVAEConfig
    kl_names = ("kl",)

    def __init__(self, config: CVAEConfig) -> None:
        super().__init__(config, config.data_features, config.data_features)
        self.prior: nn.Parameter | None = None
        if config.prior == "class":
            # Means that are alike would stay alike longer.
            means = 0.1 * torch.randn(config.classes, config.latent_features)
            self.prior = nn.Parameter(torch.cat([means, torch.zeros_like(means)], 1))

    def prior_parameters(self, labels: Tensor | None) -> tuple[Tensor, Tensor]:
        """Mean and log-sigma of p(z | y), ``(N, D)`` or, without labels, ``(C, D)`` each."""
        assert self.prior is not None
        mu, log_sigma = (self.prior if labels is None else self.prior[labels]).chunk(2, -1)
        return mu, log_sigma

    def log_prior(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        if self.prior is None:
            return super().log_prior(z, labels)
        return F.diag_gaussian_log_prob(z, *self.prior_parameters(labels), impl=self.config.impl)

    def sample_posterior(
        self, q: DiagonalGaussian, labels: Tensor | None = None, **noise: Any
    ) -> tuple[Tensor, Tensor]:
        if self.prior is None:
            return super().sample_posterior(q, labels, **noise)
        z, _ = q.rsample_with_log_prob(**noise)
        prior = (part.expand_as(q.mu) for part in self.prior_parameters(labels))
        return z, F.diag_gaussian_kl(q.mu, q.log_sigma, *prior, impl=self.config.impl)

    def draw_prior(self, labels: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        eps = super().draw_prior(labels, generator=generator)
        if self.prior is None:
            return eps
        mu, log_sigma = self.prior_parameters(labels)
        return mu + log_sigma.exp() * eps

    def bound(self, x: Tensor, labels: Tensor, **noise: Any) -> Tensor:
        """The bound of log p(x | y) of every image of ``(N, pixels)`` from one sample: ``(N,)``, nats."""
        log_p_x, kl = self.measure_classes(x, labels, **noise)
        return log_p_x - kl

    def encode(self, x: Tensor, labels: Tensor) -> DiagonalGaussian:
        return self.posterior(x, labels)

    def measure(
        self, x: Tensor, posterior: DiagonalGaussian | None = None, *, labels: Tensor, **noise: Any
    ) -> tuple[Tensor, Tensor]:
        """log p(x | y, z) of one sample, ``(N,)``, and the divergence, ``(N, 1)``, nats."""
        q = self.encode(x, labels) if posterior is None else posterior
        z, kl = self.sample_posterior(q, labels, **noise)
        return self.log_likelihood(x, z, labels), kl[:, None]

    def measure_units(
        self, x: Tensor, posterior: DiagonalGaussian, *, labels: Tensor, **noise: Any
    ) -> tuple[Tensor, list[Tensor]]:
        """As :meth:`measure`, with the part of every dimension in the divergence, ``(N, D)``."""
        z, _ = posterior.rsample_with_log_prob(**noise)
        zeros = torch.zeros_like(posterior.mu)
        prior = (zeros, zeros) if self.prior is None else self.prior_parameters(labels)
        return self.log_likelihood(x, z, labels), [kl_by_unit(posterior.mu, posterior.log_sigma, *prior)]

    def average_units(self, posterior: DiagonalGaussian, samples: int, **noise: Any) -> list[Tensor]:
        """The mean of every dimension under q, ``(N, D)``; it is exact."""
        return [posterior.mu]

    def log_weights(
        self, x: Tensor, posterior: DiagonalGaussian, samples: int, *, labels: Tensor, **noise: Any
    ) -> Tensor:
        """log p(x, z | y) - log q(z | x, y) of new samples z, ``(samples, N)``, nats."""
        return self.weigh_classes(x, posterior, samples, labels, **noise)

    @torch.no_grad()
    def find_classes(self, x: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """The class of the highest bound, ``(N,)``."""
        log_p_x, kl = self.measure_classes(x, generator=generator)
        return (log_p_x - kl).argmax(-1)

    @torch.no_grad()
    def reconstruct(
        self, x: Tensor, labels: Tensor | None = None, *, generator: torch.Generator | None = None
    ) -> Tensor:
        """Means ``(N, pixels)`` of p(x | y, z), z ~ q(z | x, y); y is the class of the highest bound if not given."""
        labels = self.find_classes(x, generator=generator) if labels is None else labels
        z, _ = self.posterior(x, labels).rsample_with_log_prob(generator=generator)
        return self.to_intensities(self.decode(z, labels))
