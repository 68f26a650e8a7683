"""A VAE whose posterior is moved by Hamiltonian dynamics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .... import functional as F
from ....distributions import DiagonalGaussian
from ....nn import DiagonalGaussianHead, initialize_from_data
from ....objectives import monte_carlo_elbo, standard_normal_log_prob
from ...evaluation.units import log_prob_by_unit
from ...flow_posterior import normal_by_dimension
from ...leapfrog import leapfrog
from .config import HVIConfig
from .layers import ConvDecoder, ConvEncoder, DenseDecoder, DenseEncoder, Momentum

__all__ = ["HVI", "Drawn", "Encoded", "JointGradient"]

# Step sizes lie between 0 and this.
MOST_STEP = 0.5


class Encoded(NamedTuple):
    """The images, their features, and the posterior before the dynamics."""

    x: Tensor
    features: Tensor
    start: DiagonalGaussian


class Drawn(NamedTuple):
    """Samples after all steps.

    Args:
        z: the latents, ``(*sample_shape, N, D)``.
        cost: of drawing them, ``(*sample_shape, N)``, nats, in the place of a log-density: log q(z0) and, of each step,
            log q(v') - log r(v).
        log_p_x: log p(x | z), ``(*sample_shape, N)``, nats.
    """

    z: Tensor
    cost: Tensor
    log_p_x: Tensor


class JointGradient:
    """The gradient of log p(x, z) to z. It is kept until it is asked for elsewhere: a step begins where one ended.

    Args:
        decoder: of the model.
        x: the images.
    """

    def __init__(self, decoder: ConvDecoder | DenseDecoder, x: Tensor) -> None:
        self.decoder, self.x = decoder, x
        self.at: Tensor | None = None

    def __call__(self, z: Tensor) -> Tensor:
        if z is not self.at:
            self.log_p_x, gradient = self.decoder.gradient(self.x, z)
            self.at, self.value = z, gradient - z
        return self.value


class HVI(nn.Module):
    r"""Hamiltonian variational inference: the posterior's sample takes T leapfrog steps.

    .. math::
        \log p(x) \ge E\Big[\log p(x, z_T) - \log q(z_0 \mid x) + \sum_t \log r(v_t \mid x, z_t)
        - \log q(v'_t \mid x, z_{t-1})\Big]

    A step draws a momentum v' from q and moves (z, v') along the dynamics of the joint density p(x, z), which keep
    volumes. The reverse model r guesses the final momentum. Step sizes and masses are learned.

    Args:
        config: networks, steps, sizes and implementation.

    Reference:
        *Markov Chain Monte Carlo and Variational Inference: Bridging the Gap* (Salimans, Kingma, Welling, 2015).

    Example:
        >>> model = HVI(HVIConfig("dense", 2, 3, hidden_features=(8,), momentum_features=5))
        >>> x = torch.rand(4, 784).round()
        >>> model.log_weights(x, model.encode(x), 6).shape
        torch.Size([6, 4])
    """

    def __init__(self, config: HVIConfig) -> None:
        super().__init__()
        self.config = config
        size, hidden, impl = config.latent_features, config.hidden_features, config.impl
        self.encoder: nn.Module
        self.decoder: ConvDecoder | DenseDecoder
        if config.network == "conv":
            self.encoder = ConvEncoder(config.maps, hidden[0])
            self.decoder = ConvDecoder(size, config.maps, hidden[0])
        else:
            self.encoder, self.decoder = DenseEncoder(hidden), DenseDecoder(size, hidden, impl)
        self.head = DiagonalGaussianHead(hidden[-1], size, impl=impl)

        def momenta() -> nn.ModuleList:
            sizes = (hidden[-1], size, config.momentum_features, impl)
            return nn.ModuleList(Momentum(*sizes) for _ in range(config.leapfrog))

        self.momenta, self.reverse = momenta(), momenta()
        # Step sizes start at 0.05, masses at 1.
        self.step_logits = nn.Parameter(torch.full((config.leapfrog, size), -2.197))
        self.log_mass = nn.Parameter(torch.zeros(config.leapfrog, size))

    @property
    def kl_names(self) -> tuple[str, ...]:
        return ("kl",)

    @property
    def noise_features(self) -> int:
        """Normals of an image: of the latents, and of the momentum of each step."""
        return self.config.latent_features * (1 + self.config.leapfrog)

    @torch.no_grad()
    def initialize_from(self, x: Tensor, pixel_means: Tensor, **noise: Any) -> None:
        """Starts a new model near these intensities, with features and logits that vary by 1 over a first batch.

        Smaller ones would not carry the latents through the decoder: it would learn to do without them.

        Args:
            x: binary images ``(N, 784)``.
            pixel_means: intensities, ``(784,)``.
            noise: as of :meth:`draw`.
        """
        first = self._split_noise(noise)[0]
        layers = [
            layer
            for network in (self.encoder, self.decoder)
            for layer in network.modules()
            if isinstance(layer, nn.Linear | nn.Conv2d | nn.ConvTranspose2d)
        ]
        initialize_from_data(self, x, run=lambda x: self._reconstruct_start(x, first), plain=layers)
        self.decoder.last_bias.add_(pixel_means.clamp(1e-3, 1.0 - 1e-3).logit())

    def _reconstruct_start(self, x: Tensor, noise: dict[str, Any]) -> None:
        z, _ = self.encode(x).start.rsample_with_log_prob(**noise)
        self.decode(z)

    def encode(self, x: Tensor) -> Encoded:
        """The features and the first posterior of binary images ``(N, 784)``."""
        features = self.encoder(x)
        return Encoded(x, features, self.head(features))

    def decode(self, z: Tensor) -> Tensor:
        """Logits ``(*, 784)`` of p(x | z)."""
        logits: Tensor = self.decoder(z)
        return logits

    def draw(self, encoded: Encoded, sample_shape: Sequence[int] = (), *, by_unit: bool = False, **noise: Any) -> Drawn:
        """Samples after all steps.

        Args:
            encoded: what :meth:`encode` returned.
            sample_shape: of the samples of every image.
            by_unit: whether the cost has a part for every dimension, ``(*sample_shape, N, D)``.
            noise: ``generator`` and ``row_offset``, or ``eps``, ``(*sample_shape, N, noise_features)``.
        """
        first, *of_steps = self._split_noise(noise)
        z, cost = encoded.start.rsample_with_log_prob(sample_shape, **first)
        if by_unit:
            cost = log_prob_by_unit(z, encoded.start.mu, encoded.start.log_sigma)
        gradient = JointGradient(self.decoder, encoded.x)
        for t, of_step in enumerate(of_steps):
            eps = of_step.get("eps")
            if eps is None:
                zeros = z.new_zeros(len(encoded.x), z.shape[-1])
                normal = DiagonalGaussian(zeros, zeros, impl=self.config.impl)
                eps = normal.rsample_with_log_prob(sample_shape, **of_step)[0]
            z, more = self.move(encoded, z, eps, t, gradient, by_unit=by_unit)
            cost = cost + more
        return Drawn(z, cost, gradient.log_p_x if of_steps else self.decoder.log_prob(encoded.x, z))

    def move(
        self, encoded: Encoded, z: Tensor, eps: Tensor, t: int, gradient: JointGradient, *, by_unit: bool = False
    ) -> tuple[Tensor, Tensor]:
        """The latents after step ``t``, 0, 1, ..., and what it adds to their cost, given the momentum's noise."""
        impl, momentum = self.config.impl, self.momenta[t](encoded.features, z)
        v, log_q = F.diag_gaussian_rsample(*momentum, eps=eps, impl=impl)
        if by_unit:
            log_q = log_prob_by_unit(v, *momentum)
        step_size, mass = MOST_STEP * self.step_logits[t].sigmoid(), self.log_mass[t].exp()
        z, v = leapfrog(z, v, gradient, step_size, mass)
        reverse = self.reverse[t](encoded.features, z)
        if by_unit:
            return z, log_q - log_prob_by_unit(v, *reverse)
        return z, log_q - F.diag_gaussian_log_prob(v, *reverse, impl=impl)

    def _split_noise(self, noise: Mapping[str, Any]) -> list[dict[str, Any]]:
        """The noise of the latents, then of each step's momentum."""
        parts = 1 + self.config.leapfrog
        if "eps" not in noise:
            return [dict(noise) for _ in range(parts)]
        return [{"eps": eps} for eps in noise["eps"].split(self.config.latent_features, -1)]

    def measure(self, x: Tensor, posterior: Encoded | None = None, **noise: Any) -> tuple[Tensor, Tensor]:
        """log p(x | z_T) of one sample, ``(N,)``, and what its posterior costs beside the prior, ``(N, 1)``, nats.

        Args:
            x: binary images ``(N, 784)``.
            posterior: what :meth:`encode` returned for them; computed if None.
            noise: as of :meth:`draw`.
        """
        z, cost, log_p_x = self.draw(self.encode(x) if posterior is None else posterior, **noise)
        return log_p_x, (cost - standard_normal_log_prob(z))[:, None]

    def measure_units(self, x: Tensor, posterior: Encoded, **noise: Any) -> tuple[Tensor, list[Tensor]]:
        """As :meth:`measure`, with the part of every dimension in the cost, ``(N, D)``."""
        z, cost, log_p_x = self.draw(posterior, by_unit=True, **noise)
        return log_p_x, [cost - normal_by_dimension(z)]

    def average_units(self, posterior: Encoded, samples: int, **noise: Any) -> list[Tensor]:
        """The mean of every dimension after all steps, ``(N, D)``, over samples."""
        return [self.draw(posterior, (samples,), **noise).z.mean(0)]

    def log_weights(self, x: Tensor, posterior: Encoded, samples: int, **noise: Any) -> Tensor:
        """The bound's terms of new samples, log-weights of momenta and latents, ``(samples, N)``, nats."""
        z, cost, log_p_x = self.draw(posterior, (samples,), **noise)
        return monte_carlo_elbo(log_p_x, standard_normal_log_prob(z), cost)

    @torch.no_grad()
    def sample(self, n: int, *, generator: torch.Generator | None = None) -> Tensor:
        """Means ``(n, 784)`` of p(x | z) for z from the prior."""
        like = next(self.parameters())
        size = (n, self.config.latent_features)
        z = torch.randn(size, generator=generator, dtype=like.dtype, device=like.device)
        return self.decode(z).sigmoid()

    @torch.no_grad()
    def reconstruct(self, x: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """Means ``(N, 784)`` of p(x | z), each with a z from the posterior after all steps."""
        return self.decode(self.draw(self.encode(x), generator=generator).z).sigmoid()
