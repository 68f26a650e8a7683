"""What models of one latent vector share: the prior, the loss, and the methods for evaluation and pictures."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ...likelihoods import bernoulli_log_prob
from ...objectives import free_bits, monte_carlo_elbo, standard_normal_log_prob
from ..flow_posterior import FlowPosterior, draw_by_dimension, normal_by_dimension
from ..flow_prior import FlowPrior

__all__ = ["OneLatent"]


class OneLatent(nn.Module):
    """A model of binary images with ``encode`` and ``decode`` to logits; z ~ N(0, I), or of the prior in ``prior``."""

    config: Any
    prior: FlowPrior | None
    kl_names = ("kl",)

    def __init__(self) -> None:
        super().__init__()
        self.prior = None

    def encode(self, x: Tensor) -> Any:
        raise NotImplementedError

    def decode(self, z: Tensor) -> Tensor:
        raise NotImplementedError

    def log_likelihood(self, x: Tensor, z: Tensor) -> Tensor:
        """log p(x | z), ``(*, N)``, nats, of binary images ``(N, pixels)`` and latents ``(*, N, D)``."""
        return bernoulli_log_prob(x, self.decode(z))

    def measure(self, x: Tensor, posterior: Any = None, **noise: Any) -> tuple[Tensor, Tensor]:
        """log p(x | z) of one sample, ``(N,)``, and the KL divergence, ``(N, 1)``, nats.

        Args:
            x: binary images ``(N, pixels)``.
            posterior: what :meth:`encode` returned for them; computed if None.
            noise: as of the posterior's ``rsample_with_kl``.
        """
        q = self.encode(x) if posterior is None else posterior
        z, kl = self.draw_with_kl(q, **noise)
        return self.log_likelihood(x, z), kl[:, None]

    def measure_units(self, x: Tensor, posterior: Any, **noise: Any) -> tuple[Tensor, list[Tensor]]:
        """log p(x | z) of one sample, ``(N,)``, and the part of every dimension in the divergence, ``(N, D)``, nats."""
        z, kl = self.draw_with_kl(posterior, kl="dimensions", **noise)
        return self.log_likelihood(x, z), [kl]

    def average_units(self, posterior: Any, samples: int, **noise: Any) -> list[Tensor]:
        """The mean of every dimension under q, ``(N, D)``: exact, or that of samples where q is a flow."""
        if isinstance(posterior, FlowPosterior):
            return [posterior.rsample_with_log_prob((samples,), **noise)[0].mean(0)]
        return [posterior.mu]

    def log_prior(self, z: Tensor) -> Tensor:
        """log p(z), ``(*)``, nats, of latents ``(*, D)``."""
        return standard_normal_log_prob(z) if self.prior is None else self.prior.log_prob(z)

    def draw_with_kl(self, q: Any, *, kl: str = "sum", sampled: bool = False, **noise: Any) -> tuple[Tensor, Tensor]:
        r"""A sample ``(N, D)``, and the divergence of q from the prior, ``(N,)``, nats.

        Args:
            q: a posterior.
            kl: ``"sum"``, or ``"dimensions"`` for the parts that add up to it, ``(N, D)``. Of a Gaussian, part i is the
                divergence of :math:`q(z_i \mid z_{<i})`. A flow's is an estimate from the sample: dimension i's share
                of log q, see :func:`~fastvae.recipes.flow_posterior.draw_by_dimension`, less that of log p.
            sampled: whether a Gaussian's divergence is such an estimate, too. With a learned prior it always is.
            noise: as of the posterior's ``rsample_with_kl``.
        """
        if self.prior is None and not sampled:
            z, _, found = q.rsample_with_kl(kl=kl, **noise)
            return z, found
        if kl == "sum":
            z, log_q = q.rsample_with_log_prob(**noise)
            return z, log_q - self.log_prior(z)
        z, log_q = draw_by_dimension(q, **noise)
        return z, log_q - (normal_by_dimension(z) if self.prior is None else self.prior.log_prob_by_dimension(z))

    def draw(self, x: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
        """As :meth:`draw_with_kl`, for the posterior of images ``(N, pixels)``."""
        return self.draw_with_kl(self.encode(x), **options)

    def loss(
        self,
        x: Tensor,
        minimum: float = 0.0,
        *,
        num_groups: int = 0,
        beta: float = 1.0,
        sampled: bool = False,
        all_processes: bool = False,
        **noise: Any,
    ) -> tuple[Tensor, Tensor, Tensor]:
        r"""The loss of the training, and the means of the bound and its KL part, all 0-d, nats.

        .. math::
            -\frac1N \sum_n \log p(x_n \mid z_n)
            + \beta \sum_j \max\left(\lambda_j,\ \frac1N \sum_n D_{KL}^{(n, j)}\right)

        over groups j of dimensions; :math:`\lambda_j` is ``minimum`` for each dimension in the group.

        Args:
            x: binary images ``(N, pixels)``.
            minimum: free bits, nats in every latent dimension.
            num_groups: groups of consecutive dimensions, each of which has one floor; 0: every dimension has its own.
            beta: weight of the KL part.
            sampled: as of :meth:`draw_with_kl`.
            all_processes: whether the mean of the KL divergence is one over all processes.
            noise: as of the posterior's ``rsample_with_kl``.
        """
        if minimum == 0:
            z, kl = self.draw(x, sampled=sampled, **noise)
            log_p_x, kl = self.log_likelihood(x, z).mean(), kl.mean()
            return beta * kl - log_p_x, (log_p_x - kl).detach(), kl.detach()
        z, parts = self.draw(x, kl="dimensions", sampled=sampled, **noise)
        log_p_x = self.log_likelihood(x, z).mean()
        groups = num_groups or parts.shape[-1]
        floor = minimum * parts.shape[-1] / groups
        kl = parts.detach().sum(-1).mean()
        penalty = free_bits(parts, floor, num_groups=groups, all_processes=all_processes)
        return beta * penalty - log_p_x, log_p_x.detach() - kl, kl

    def log_weights(self, x: Tensor, posterior: Any, samples: int, **noise: Any) -> Tensor:
        """log p(x, z) - log q(z | x) of new samples z, ``(samples, N)``, nats; arguments as of :meth:`measure`."""
        z, log_q = posterior.rsample_with_log_prob((samples,), **noise)
        return monte_carlo_elbo(self.log_likelihood(x, z), self.log_prior(z), log_q)

    @torch.no_grad()
    def sample(self, n: int, *, generator: torch.Generator | None = None) -> Tensor:
        """Means ``(n, pixels)`` of p(x | z) for z from the prior."""
        if self.prior is not None:
            return self.decode(self.prior.sample(n, generator=generator)).sigmoid()
        like = next(self.parameters())
        z = torch.randn(n, self.config.latent_features, generator=generator, dtype=like.dtype, device=like.device)
        return self.decode(z).sigmoid()

    @torch.no_grad()
    def reconstruct(self, x: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """Means ``(N, pixels)`` of p(x | z), each with a z ~ q(z | x)."""
        z, _ = self.encode(x).rsample_with_log_prob(generator=generator)
        return self.decode(z).sigmoid()
