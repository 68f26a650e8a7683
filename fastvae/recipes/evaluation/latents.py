"""What models of one latent vector with a standard normal prior share: the methods for evaluation and pictures."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ...likelihoods import bernoulli_log_prob
from ...objectives import monte_carlo_elbo, standard_normal_log_prob

__all__ = ["OneLatent"]


class OneLatent(nn.Module):
    """A model of binary images with z ~ N(0, I), ``encode`` and ``decode`` to logits."""

    config: Any

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
        z, _, kl = q.rsample_with_kl(**noise)
        return self.log_likelihood(x, z), kl[:, None]

    def log_weights(self, x: Tensor, posterior: Any, samples: int, **noise: Any) -> Tensor:
        """log p(x, z) - log q(z | x) of new samples z, ``(samples, N)``, nats; arguments as of :meth:`measure`."""
        z, log_q = posterior.rsample_with_log_prob((samples,), **noise)
        return monte_carlo_elbo(self.log_likelihood(x, z), standard_normal_log_prob(z), log_q)

    @torch.no_grad()
    def sample(self, n: int, *, generator: torch.Generator | None = None) -> Tensor:
        """Means ``(n, pixels)`` of p(x | z) for z from the prior."""
        like = next(self.parameters())
        z = torch.randn(n, self.config.latent_features, generator=generator, dtype=like.dtype, device=like.device)
        return self.decode(z).sigmoid()

    @torch.no_grad()
    def reconstruct(self, x: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """Means ``(N, pixels)`` of p(x | z), each with a z ~ q(z | x)."""
        z, _ = self.encode(x).rsample_with_log_prob(generator=generator)
        return self.decode(z).sigmoid()
