"""PixelVAE: a variational auto-encoder of binary images whose decoder, and prior, may be PixelCNNs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributions import kl_divergence

from ....distributions import DiagonalGaussian, StandardNormal
from ....likelihoods import bernoulli_log_prob
from ....nn import DiagonalGaussianHead
from ....nn.gaussian import bound_log_sigma
from ....nn.pixelcnn import PixelNetwork
from ....objectives import standard_normal_log_prob
from ...evaluation.units import kl_by_unit
from ..pixelcnn.layers import SIDE, make_network, to_images
from .config import PixelVAEConfig
from .layers import MAP_SIDE, bottom_encoder, top_encoder, upsampler_of_map, upsampler_of_vector
from .prior import GaussianPrior

__all__ = ["PixelVAE"]


class PixelVAE(nn.Module):
    r"""Encoder of convolutions, factorised Gaussian posterior, and a PixelCNN given z for p(x | z).

    With one level z is a vector or a map of 7 x 7 positions. With two, the map z1 is below a vector z2:

    .. math::
        \log p(x) \ge E\left[\log p(x \mid z_1) - D_{KL}(q(z_1 \mid x) \| p(z_1 \mid z_2))
        - D_{KL}(q(z_2 \mid x) \| N(0, I))\right]

    Latents are listed from below, and each is a vector for each image; :meth:`as_map` makes the map of one.

    Args:
        config: sizes, latents, prior, decoder and implementation.

    Note:
        The divergence from a PixelCNN prior is exact at each position given a sample of those before it.

    Reference:
        *PixelVAE: A Latent Variable Model for Natural Images* (Gulrajani, Kumar, Ahmed, Taiga, Visin, Vazquez,
        Courville, 2017).

    Example:
        >>> model = PixelVAE(PixelVAEConfig(latent_features=3, layers=2, maps=4, encoder_maps=(2, 2, 2)))
        >>> model.bound(torch.rand(5, 784).round()).shape
        torch.Size([5])
    """

    quantity = "elbo"

    def __init__(self, config: PixelVAEConfig) -> None:
        super().__init__()
        self.config = config
        has_map = config.latent == "map"
        has_vector = config.levels == 2 or not has_map
        maps, impl = config.encoder_maps, config.impl
        self.map_shape = (config.latent_maps, MAP_SIDE, MAP_SIDE)
        self.latent_sizes = [math.prod(self.map_shape)] * has_map + [config.latent_features] * has_vector
        self.bottom = bottom_encoder(maps)
        self.map_head = self.top = self.vector_head = None
        if has_map:
            self.map_head = nn.Sequential(
                nn.Conv2d(maps[1], maps[1], 3, padding=1), nn.ReLU(), nn.Conv2d(maps[1], 2 * config.latent_maps, 1)
            )
        if has_vector:
            self.top = top_encoder(maps)
            self.vector_head = DiagonalGaussianHead(maps[2] * 16, config.latent_features, impl=impl)
        self.prior: GaussianPrior | None = None
        if config.prior == "pixelcnn":
            self.prior = GaussianPrior(
                config.latent_maps,
                config.prior_maps,
                config.prior_layers,
                config.prior_filter_size,
                context_features=config.latent_features if has_vector else 0,
                weight_norm=config.weight_norm,
                impl=impl,
            )
            # Kernels know its layers, but none draws real numbers.
            if impl != "reference":
                self.prior.impl = "auto"
        self.normal = StandardNormal(self.latent_sizes[-1], impl=impl)
        self.upsampler: nn.Module | None = None
        self.network: PixelNetwork | None = None
        self.to_logits: nn.Module | None = None
        if config.decoder != "bias":
            upsampler = upsampler_of_map if has_map else upsampler_of_vector
            width = config.latent_maps if has_map else config.latent_features
            self.upsampler = upsampler(width, maps, config.decoder_maps)
        if config.decoder == "conv":
            self.to_logits = nn.Conv2d(config.decoder_maps, 1, 3, padding=1)
        elif config.decoder == "upsampling":
            self.network = make_network(config, context_channels=config.decoder_maps)
        else:
            self.network = make_network(config, context_features=config.latent_features)

    @property
    def kl_names(self) -> tuple[str, ...]:
        return ("kl",) if self.config.levels == 1 else ("kl1", "kl2")

    @property
    def noise_features(self) -> int:
        return sum(self.latent_sizes)

    def as_map(self, z: Tensor) -> Tensor:
        """``(*, C 7 7)`` as ``(*, C, 7, 7)``."""
        return z.unflatten(-1, self.map_shape)

    def encode(self, x: Tensor) -> list[DiagonalGaussian]:
        """The posterior of each latent, from below, given binary images ``(N, 784)``."""
        features = self.bottom(to_images(x))
        found = []
        if self.map_head is not None:
            mu, log_sigma = self._full(self.map_head(features)).chunk(2, 1)
            log_sigma = bound_log_sigma(log_sigma.flatten(1))
            found.append(DiagonalGaussian(mu.flatten(1), log_sigma, impl=self.config.impl))
        if self.top is not None and self.vector_head is not None:
            top = self.top(features)
            # A posterior's parameters, and what is drawn from it, stay in full precision under autocast.
            with torch.autocast(top.device.type, enabled=False):
                found.append(self.vector_head(self._full(top)))
        return found

    def _full(self, features: Tensor) -> Tensor:
        return features.to(next(self.parameters()).dtype)

    def draw(
        self, posteriors: Sequence[DiagonalGaussian], sample_shape: Sequence[int] = (), **noise: Any
    ) -> tuple[list[Tensor], Tensor]:
        """Samples of the latents, ``(*sample_shape, N, D)`` each, and their joint log-density.

        Args:
            posteriors: what :meth:`encode` returned.
            sample_shape: of the samples of every image.
            noise: ``generator``, ``row_offset`` or ``eps``, ``(*sample_shape, N, noise_features)``.
        """
        eps = noise.pop("eps", None)
        parts = [{}] * len(posteriors) if eps is None else [{"eps": e} for e in eps.split(self.latent_sizes, -1)]
        drawn = [
            q.rsample_with_log_prob(sample_shape, **part, **noise) for q, part in zip(posteriors, parts, strict=True)
        ]
        return [z for z, _ in drawn], torch.stack([log_q for _, log_q in drawn]).sum(0)

    def kl(self, posteriors: Sequence[DiagonalGaussian], latents: Sequence[Tensor]) -> Tensor:
        """The KL divergence from the prior for each latent, ``(N, levels)``, nats, given samples ``(N, D)``."""
        terms = []
        if self.prior is not None:
            q, z = posteriors[0], self.as_map(latents[0])
            terms.append(self.prior.kl(q.mu, q.log_sigma, z, self._above(latents)))
        if len(terms) < len(posteriors):
            terms.append(kl_divergence(posteriors[-1], self.normal))
        return torch.stack(terms, -1)

    def measure_units(
        self, x: Tensor, posterior: Sequence[DiagonalGaussian], **noise: Any
    ) -> tuple[Tensor, list[Tensor]]:
        """As :meth:`measure`, with the part of every dimension in the divergence of its latent, ``(N, D)`` each."""
        latents, _ = self.draw(posterior, **noise)
        zeros = torch.zeros_like(latents[-1])
        priors = [] if self.prior is None else [self.prior.predict(self.as_map(latents[0]), self._above(latents))]
        priors += [(zeros, zeros)] * (len(posterior) - len(priors))
        parts = [kl_by_unit(q.mu, q.log_sigma, *p) for q, p in zip(posterior, priors, strict=True)]
        return self.log_likelihood(x, latents[0]), parts

    def average_units(self, posterior: Sequence[DiagonalGaussian], samples: int, **noise: Any) -> list[Tensor]:
        """The mean of every dimension under q, ``(N, D)`` of each latent; it is exact."""
        return [q.mu for q in posterior]

    @staticmethod
    def _above(latents: Sequence[Tensor]) -> Tensor | None:
        return latents[1] if len(latents) > 1 else None

    def log_prior(self, latents: Sequence[Tensor]) -> Tensor:
        """log p(z), ``(N,)``, nats, of latents ``(N, D)``."""
        if self.prior is None:
            return standard_normal_log_prob(latents[0])
        log_p = self.prior.log_prob(self.as_map(latents[0]), self._above(latents))
        return log_p if len(latents) == 1 else log_p + standard_normal_log_prob(latents[1])

    def context(self, z: Tensor) -> Tensor:
        """The decoder's context from the lowest latent ``(N, D)``: the latent, or a map of the image's size."""
        if self.upsampler is None:
            return z
        up: Tensor = self.upsampler(self.as_map(z) if self.config.latent == "map" else z)
        return up

    def log_likelihood(self, x: Tensor, z: Tensor) -> Tensor:
        """log p(x | z), ``(N,)``, nats, of binary images ``(N, 784)`` and the lowest latent ``(N, D)``."""
        if self.network is None:
            return bernoulli_log_prob(x, self._logits(z))
        return self.network.log_prob(to_images(x), self.context(z))

    def _logits(self, z: Tensor) -> Tensor:
        return cast(nn.Module, self.to_logits)(self.context(z)).flatten(1)

    def measure(
        self, x: Tensor, posterior: Sequence[DiagonalGaussian] | None = None, **noise: Any
    ) -> tuple[Tensor, Tensor]:
        """log p(x | z) of one sample, ``(N,)``, and the KL divergence for each latent, ``(N, levels)``, nats.

        Args:
            x: binary images ``(N, 784)``.
            posterior: what :meth:`encode` returned for them; computed if None.
            noise: as of :meth:`draw`.
        """
        posteriors = self.encode(x) if posterior is None else posterior
        latents, _ = self.draw(posteriors, **noise)
        return self.log_likelihood(x, latents[0]), self.kl(posteriors, latents)

    def bound(self, x: Tensor, **noise: Any) -> Tensor:
        """The evidence lower bound from one sample, ``(N,)``, nats; arguments as of :meth:`measure`."""
        log_p_x, kl = self.measure(x, **noise)
        return log_p_x - kl.sum(-1)

    def log_weights(self, x: Tensor, posterior: Sequence[DiagonalGaussian], samples: int, **noise: Any) -> Tensor:
        """log p(x, z) - log q(z | x) of new samples z, ``(samples, N)``, nats.

        Args:
            x: binary images ``(N, 784)``.
            posterior: what :meth:`encode` returned for them.
            samples: number of samples for each image.
            noise: as of :meth:`draw`.
        """
        latents, log_q = self.draw(posterior, (samples,), **noise)
        rows = [z.flatten(0, 1) for z in latents]
        repeated = x.expand(samples, *x.shape).flatten(0, 1)
        log_p = self.log_likelihood(repeated, rows[0]) + self.log_prior(rows)
        return log_p.unflatten(0, (samples, -1)) - log_q

    @torch.no_grad()
    def sample_latents(self, n: int, *, generator: torch.Generator | None = None) -> Tensor:
        """The lowest latent from the prior, ``(n, D)``."""
        above = None
        if self.prior is None or self.config.levels == 2:
            like = next(self.parameters())
            above = torch.randn(n, self.latent_sizes[-1], generator=generator, dtype=like.dtype, device=like.device)
            if self.prior is None:
                return above
        return self.prior.sample(n, self.map_shape[1:], context=above, generator=generator).flatten(1)

    @torch.no_grad()
    def sample_images(self, z: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """Binary images ``(N, 784)`` from p(x | z), given the lowest latent ``(N, D)``."""
        if self.network is None:
            return torch.bernoulli(self._logits(z).sigmoid(), generator=generator)
        images = self.network.sample(len(z), (SIDE, SIDE), context=self.context(z), generator=generator)
        return images.flatten(1)

    def sample(self, n: int, *, generator: torch.Generator | None = None) -> Tensor:
        """Binary images ``(n, 784)`` from the model."""
        return self.sample_images(self.sample_latents(n, generator=generator), generator=generator)

    @torch.no_grad()
    def reconstruct(self, x: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """Binary images ``(N, 784)`` from p(x | z), each with a z ~ q(z | x)."""
        latents, _ = self.draw(self.encode(x), generator=generator)
        return self.sample_images(latents[0], generator=generator)
