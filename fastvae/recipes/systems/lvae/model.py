"""A hierarchy of Gaussian latents whose posterior merges the image with the prior, level by level."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import leaky_relu, softplus

from .... import functional as F
from ....distributions import DiagonalGaussian
from ....objectives import monte_carlo_elbo, standard_normal_log_prob
from ....reference.gaussian_merge import merge
from ...batch_statistics import CollectedBatchNorm
from ...evaluation.units import kl_by_unit, log_prob_by_unit
from .config import LVAEConfig

__all__ = ["LVAE"]

# The smallest variance.
_LEAST_VARIANCE = 1e-8

Parameters = tuple[Tensor, Tensor]


class Block(nn.Module):
    """Two dense layers, each with batch norm and leaky ReLU; rows ``(*, in_features)``."""

    def __init__(self, in_features: int, hidden_features: int) -> None:
        super().__init__()
        self.linears = nn.ModuleList(
            nn.Linear(before, hidden_features, bias=False) for before in (in_features, hidden_features)
        )
        self.norms = nn.ModuleList(CollectedBatchNorm(hidden_features) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        for linear, norm in zip(self.linears, self.norms, strict=True):
            rows = linear(x)
            x = leaky_relu(norm(rows.flatten(0, -2)).view(rows.shape), 0.01)
        return x


class GaussianHead(nn.Module):
    """Mean and log-sigma, ``(*, latent_features)`` each; the variance is a softplus, about 1.3 at the start."""

    def __init__(self, in_features: int, latent_features: int) -> None:
        super().__init__()
        self.mean = nn.Linear(in_features, latent_features)
        self.variance = nn.Linear(in_features, latent_features)
        nn.init.ones_(self.variance.bias)

    def forward(self, features: Tensor) -> Parameters:
        variance = softplus(self.variance(features)) + _LEAST_VARIANCE
        return self.mean(features), 0.5 * variance.log()


class Draw(NamedTuple):
    """Samples of all levels, from below, and the terms of each level: log q, log p and the KL divergence."""

    latents: list[Tensor]
    log_q: list[Tensor]
    log_p: list[Tensor]
    kl: list[Tensor]


class LVAE(nn.Module):
    r"""Levels of latents :math:`z_1, \dots, z_L`, listed from below.

    .. math::
        p(x, z) = p(x \mid z_1) \prod_{l < L} p(z_l \mid z_{l+1})\; N(z_L; 0, I)

    A ladder's posterior is drawn from above: that of a level merges, by precisions, the Gaussian that the image gives
    on its way up with the prior given the level above; see :func:`fastvae.functional.gaussian_merge_rsample`.

    Args:
        config: sizes, inference and implementation.

    Reference:
        *Ladder Variational Autoencoders* (Sønderby, Raiko, Maaløe, Sønderby, Winther, 2016).

    Example:
        >>> model = LVAE(LVAEConfig(latent_features=(4, 3), hidden_features=(8, 6)))
        >>> x = torch.rand(5, 784).round()
        >>> model.log_weights(x, model.encode(x), 7).shape
        torch.Size([7, 5])
    """

    def __init__(self, config: LVAEConfig) -> None:
        super().__init__()
        self.config = config
        latents, hidden = config.latent_features, config.hidden_features
        ladder = config.inference == "ladder"
        passed = latents if config.mean_up or not ladder else hidden
        below = [config.data_features, *passed[:-1]]
        self.up = nn.ModuleList(Block(*sizes) for sizes in zip(below, hidden, strict=True))
        self.up_heads = nn.ModuleList(GaussianHead(*sizes) for sizes in zip(hidden, latents, strict=True))
        # Of each level but the top.
        self.down = nn.ModuleList(Block(*sizes) for sizes in zip(latents[1:], hidden[1:], strict=True))
        self.down_heads = nn.ModuleList(GaussianHead(*sizes) for sizes in zip(hidden[1:], latents[:-1], strict=True))
        self.decoder = Block(latents[0], hidden[0])
        self.to_logits = nn.Linear(hidden[0], config.data_features)

    @property
    def kl_names(self) -> tuple[str, ...]:
        return tuple(f"kl{level}" for level in range(1, len(self.up) + 1))

    @torch.no_grad()
    def start_at(self, pixel_means: Tensor) -> None:
        """Sets the decoder's last bias such that a new model starts at these intensities, ``(pixels,)``."""
        self.to_logits.bias.copy_(pixel_means.clamp(1e-3, 1.0 - 1e-3).logit())

    def forward(self, x: Tensor) -> Tensor:
        """The logits of reconstructions: every block is passed, so that batch statistics can be collected."""
        return self.decode(self.draw(self.encode(x)).latents[0])

    def encode(self, x: Tensor) -> list[Parameters]:
        """What images ``(N, pixels)`` say of each level, mean and log-sigma; bottom-up of the lowest alone."""
        found: list[Parameters] = []
        if self.config.inference == "bottom-up":
            return [self.up_heads[0](self.up[0](x))]
        for block, head in zip(self.up, self.up_heads, strict=True):
            features = block(x)
            found.append(head(features))
            x = found[-1][0] if self.config.mean_up else features
        return found

    def prior_of(self, level: int, above: Tensor) -> Parameters:
        """Mean and log-sigma of p(z | z of the level above) of level 0, 1, ..."""
        found: Parameters = self.down_heads[level](self.down[level](above))
        return found

    def draw(self, posterior: Sequence[Parameters], sample_shape: Sequence[int] = (), **noise: Any) -> Draw:
        """Samples of all levels, ``(*sample_shape, N, D)`` each, and their terms, ``(*sample_shape, N)``.

        Args:
            posterior: what :meth:`encode` returned.
            sample_shape: of the samples of every image.
            noise: ``generator`` and ``row_offset``, or ``eps``, ``(*sample_shape, N, D)`` with all levels' dimensions.
        """
        parts = self._split_noise(noise)
        if self.config.inference == "bottom-up":
            return self._draw_from_below(posterior[0], sample_shape, parts)
        return self._draw_from_above(posterior, sample_shape, parts)

    def _draw_from_above(
        self, posterior: Sequence[Parameters], sample_shape: Sequence[int], noise: Sequence[Mapping[str, Any]]
    ) -> Draw:
        impl, top = self.config.impl, DiagonalGaussian(*posterior[-1], impl=self.config.impl)
        z, log_q, kl = top.rsample_with_kl(sample_shape, **noise[-1])
        drawn = Draw([z], [log_q], [standard_normal_log_prob(z)], [kl.expand(log_q.shape)])
        for level in reversed(range(len(posterior) - 1)):
            prior = self.prior_of(level, drawn.latents[0])
            found = F.gaussian_merge_rsample(*posterior[level], *prior, **noise[level], impl=impl)
            for of_levels, of_level in zip(drawn, found, strict=True):
                of_levels.insert(0, of_level)
        return drawn

    def _draw_from_below(
        self, lowest: Parameters, sample_shape: Sequence[int], noise: Sequence[Mapping[str, Any]]
    ) -> Draw:
        impl = self.config.impl
        z, log_q = DiagonalGaussian(*lowest, impl=impl).rsample_with_log_prob(sample_shape, **noise[0])
        drawn = Draw([z], [log_q], [], [])
        for level in range(1, len(self.up)):
            q = DiagonalGaussian(*self.up_heads[level](self.up[level](drawn.latents[-1])), impl=impl)
            eps = noise[level].get("eps")
            if eps is None:
                eps = self._draw_noise(lowest[0], level, sample_shape, noise[level])
            z, log_q = q.rsample_with_log_prob(eps=eps)
            drawn.latents.append(z)
            drawn.log_q.append(log_q)
        for level, (z, above) in enumerate(zip(drawn.latents, drawn.latents[1:], strict=False)):
            drawn.log_p.append(F.diag_gaussian_log_prob(z, *self.prior_of(level, above), impl=impl))
        drawn.log_p.append(standard_normal_log_prob(drawn.latents[-1]))
        drawn.kl.extend(log_q - log_p for log_q, log_p in zip(drawn.log_q, drawn.log_p, strict=True))
        return drawn

    def _draw_noise(self, like: Tensor, level: int, shape: Sequence[int], noise: Mapping[str, Any]) -> Tensor:
        """Noise that does not depend on how a batch is shared out to processes."""
        zeros = like.new_zeros(len(like), self.config.latent_features[level])
        return DiagonalGaussian(zeros, zeros, impl=self.config.impl).rsample_with_log_prob(shape, **noise)[0]

    def _split_noise(self, noise: Mapping[str, Any]) -> list[dict[str, Any]]:
        """The noise of each level, from below."""
        sizes = self.config.latent_features
        if "eps" not in noise:
            return [dict(noise) for _ in sizes]
        return [{"eps": eps} for eps in noise["eps"].split(sizes, -1)]

    def decode(self, z: Tensor) -> Tensor:
        """Logits ``(*, pixels)`` of p(x | z1)."""
        logits: Tensor = self.to_logits(self.decoder(z))
        return logits

    def log_likelihood(self, x: Tensor, z: Tensor) -> Tensor:
        """log p(x | z1), ``(*, N)``, nats, of binary images ``(N, pixels)`` and latents ``(*, N, D)``."""
        weight, bias = self.to_logits.weight, self.to_logits.bias
        return F.linear_bernoulli_log_prob(self.decoder(z), weight, bias, x, impl=self.config.impl)

    def measure(self, x: Tensor, posterior: Sequence[Parameters] | None = None, **noise: Any) -> tuple[Tensor, Tensor]:
        """log p(x | z1) of one sample, ``(N,)``, and the KL divergence of each level, ``(N, levels)``, nats.

        A ladder's divergences are exact given the level above; of a bottom-up model they are log q - log p.

        Args:
            x: binary images ``(N, pixels)``.
            posterior: what :meth:`encode` returned for them; computed if None.
            noise: as of :meth:`draw`.
        """
        drawn = self.draw(self.encode(x) if posterior is None else posterior, **noise)
        return self.log_likelihood(x, drawn.latents[0]), torch.stack(drawn.kl, -1)

    def measure_units(self, x: Tensor, posterior: Sequence[Parameters], **noise: Any) -> tuple[Tensor, list[Tensor]]:
        """As :meth:`measure`, with the part of every unit in the divergence of its level, ``(N, D)`` each."""
        latents = self.draw(posterior, **noise).latents
        top = torch.zeros_like(latents[-1])
        priors = [*map(self.prior_of, range(len(self.down)), latents[1:]), (top, top)]
        given = self._infer(posterior, latents, priors)
        if self.config.inference == "ladder":
            return self.log_likelihood(x, latents[0]), [kl_by_unit(*q, *p) for q, p in zip(given, priors, strict=True)]
        found = [
            log_prob_by_unit(z, *q) - log_prob_by_unit(z, *p) for z, q, p in zip(latents, given, priors, strict=True)
        ]
        return self.log_likelihood(x, latents[0]), found

    def average_units(self, posterior: Sequence[Parameters], samples: int, **noise: Any) -> list[Tensor]:
        """The mean of every unit under q, ``(N, D)`` of each level, over samples of the levels that it is given."""
        latents = self.draw(posterior, (samples,), **noise).latents
        priors = list(map(self.prior_of, range(len(self.down)), latents[1:]))
        return [mu.mean(0) if mu.dim() == 3 else mu for mu, _ in self._infer(posterior, latents, priors)]

    def _infer(
        self, posterior: Sequence[Parameters], latents: Sequence[Tensor], priors: Sequence[Parameters]
    ) -> list[Parameters]:
        """q of each level given the samples that it depends on."""
        if self.config.inference == "ladder":
            merged = [merge(*q, *p) for q, p in zip(posterior[:-1], priors, strict=False)]
            return [*merged, posterior[-1]]
        above = [head(block(z)) for head, block, z in zip(self.up_heads[1:], self.up[1:], latents, strict=False)]
        return [posterior[0], *above]

    def log_weights(self, x: Tensor, posterior: Sequence[Parameters], samples: int, **noise: Any) -> Tensor:
        """log p(x, z) - log q(z | x) of new samples z, ``(samples, N)``, nats; arguments as of :meth:`measure`."""
        drawn = self.draw(posterior, (samples,), **noise)
        log_p, log_q = torch.stack(drawn.log_p).sum(0), torch.stack(drawn.log_q).sum(0)
        return monte_carlo_elbo(self.log_likelihood(x, drawn.latents[0]), log_p, log_q)

    @torch.no_grad()
    def sample(self, n: int, *, generator: torch.Generator | None = None) -> Tensor:
        """Means ``(n, pixels)`` of p(x | z1) for latents from the prior."""
        like = next(self.parameters())
        size = (n, self.config.latent_features[-1])
        z = torch.randn(size, generator=generator, dtype=like.dtype, device=like.device)
        for level in reversed(range(len(self.down))):
            q = DiagonalGaussian(*self.prior_of(level, z), impl=self.config.impl)
            z = q.rsample_with_log_prob(generator=generator)[0]
        return self.decode(z).sigmoid()

    @torch.no_grad()
    def reconstruct(self, x: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """Means ``(N, pixels)`` of p(x | z1), each with latents from the posterior."""
        return self.decode(self.draw(self.encode(x), generator=generator).latents[0]).sigmoid()
