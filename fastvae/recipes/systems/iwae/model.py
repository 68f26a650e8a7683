"""An importance-weighted auto-encoder of binary images with one or two layers of Gaussian latents."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

from .... import functional as F
from ....distributions import DiagonalGaussian
from ....nn import DiagonalGaussianHead
from ....objectives import monte_carlo_elbo, standard_normal_log_prob
from ...evaluation.units import log_prob_by_unit
from .config import IWAEConfig

__all__ = ["IWAE"]


class Terms(NamedTuple):
    """Of samples: log p(x | z1), log p(z) and log q(z | x) of all layers, nats."""

    log_p_x: Tensor
    log_p_z: Tensor
    log_q: Tensor


class GaussianBlock(nn.Module):
    """Two tanh layers and a diagonal Gaussian: q of a layer given what is below it, or p given what is above."""

    def __init__(self, in_features: int, hidden_features: int, latent_features: int, impl: str) -> None:
        super().__init__()
        self.hidden = nn.Sequential(*tanh_layers(in_features, hidden_features, hidden_features))
        self.head = DiagonalGaussianHead(hidden_features, latent_features, impl=impl)

    def forward(self, x: Tensor) -> DiagonalGaussian:
        found: DiagonalGaussian = self.head(self.hidden(x))
        return found


def tanh_layers(*widths: int) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(widths):
        layer = nn.Linear(before, after)
        nn.init.xavier_uniform_(layer.weight)
        nn.init.zeros_(layer.bias)
        layers += [layer, nn.Tanh()]
    return layers


class IWAE(nn.Module):
    r"""Blocks of two tanh layers between binary images and one or two layers of latents.

    .. math::
        q(z_1, z_2 \mid x) = q(z_1 \mid x)\, q(z_2 \mid z_1), \qquad
        p(x, z_1, z_2) = p(x \mid z_1)\, p(z_1 \mid z_2)\, N(z_2; 0, I)

    Latents are listed from below.

    Args:
        config: sizes, number of layers and implementation.

    Reference:
        *Importance Weighted Autoencoders* (Burda, Grosse, Salakhutdinov, 2015).

    Example:
        >>> model = IWAE(IWAEConfig(2, (4, 3), (8, 8)))
        >>> x = torch.rand(5, 784).round()
        >>> model.log_weights(x, model.encode(x), 7).shape
        torch.Size([7, 5])
    """

    def __init__(self, config: IWAEConfig) -> None:
        super().__init__()
        self.config = config
        latents, hidden = config.latent_features, config.hidden_features
        below = [config.data_features, *latents[:-1]]
        self.encoders = nn.ModuleList(
            GaussianBlock(*sizes, config.impl) for sizes in zip(below, hidden, latents, strict=True)
        )
        self.priors = nn.ModuleList(
            GaussianBlock(above, width, size, config.impl)
            for above, width, size in zip(latents[1:], hidden[1:], latents, strict=False)
        )
        self.decoder = nn.Sequential(
            *tanh_layers(latents[0], hidden[0], hidden[0]), nn.Linear(hidden[0], config.data_features)
        )

    @property
    def kl_names(self) -> tuple[str, ...]:
        return ("kl",) if self.config.layers == 1 else ("kl1", "kl2")

    @torch.no_grad()
    def start_at(self, pixel_means: Tensor) -> None:
        """Sets the decoder's last bias such that a new model starts at these intensities, ``(pixels,)``."""
        last: Any = self.decoder[-1]
        last.bias.copy_(pixel_means.clamp(1e-3, 1.0 - 1e-3).logit())

    def encode(self, x: Tensor) -> DiagonalGaussian:
        """The posterior of the lowest latents given binary images ``(N, pixels)``."""
        found: DiagonalGaussian = self.encoders[0](x)
        return found

    def decode(self, z: Tensor) -> Tensor:
        """Logits ``(*, pixels)`` of p(x | z1)."""
        logits: Tensor = self.decoder(z)
        return logits

    def log_likelihood(self, x: Tensor, z: Tensor) -> Tensor:
        """log p(x | z1), ``(*, N)``, nats, of binary images ``(N, pixels)`` and latents ``(*, N, D)``."""
        layers = [layer for layer in self.decoder if isinstance(layer, nn.Linear)]
        weights, biases = [layer.weight for layer in layers], [layer.bias for layer in layers]
        return F.mlp_bernoulli_log_prob(z, weights, biases, x, activation="tanh", impl=self.config.impl)

    def log_prior(self, latents: Sequence[Tensor]) -> Tensor:
        """log p(z), ``(*)``, nats, of all layers of latents ``(*, D)``."""
        log_p = standard_normal_log_prob(latents[-1])
        for prior, z, above in zip(self.priors, latents, latents[1:], strict=False):
            log_p = log_p + prior(above).log_prob(z)
        return log_p

    def measure(self, x: Tensor, posterior: DiagonalGaussian | None = None, **noise: Any) -> tuple[Tensor, Tensor]:
        """log p(x | z1) of one sample, ``(N,)``, and the KL divergence of each layer, ``(N, layers)``, nats.

        The top layer's divergence is exact given the layer below; that of the other is log q - log p of the sample.

        Args:
            x: binary images ``(N, pixels)``.
            posterior: what :meth:`encode` returned for them; computed if None.
            noise: ``generator`` and ``row_offset``, or ``eps``, ``(*sample_shape, N, D)`` with all layers' dimensions.
        """
        log_p_x, kl = self.measure_units(x, self.encode(x) if posterior is None else posterior, **noise)
        return log_p_x, torch.stack([of_layer.sum(-1) for of_layer in kl], -1)

    def measure_units(self, x: Tensor, posterior: DiagonalGaussian, **noise: Any) -> tuple[Tensor, list[Tensor]]:
        """As :meth:`measure`, with the part of every unit in the divergence of its layer, ``(N, D)`` each."""
        first, second = self._split_noise(noise)
        if self.config.layers == 1:
            z, _, kl = posterior.rsample_with_kl(kl="dimensions", **first)
            return self.log_likelihood(x, z), [kl]
        z, _ = posterior.rsample_with_log_prob(**first)
        eps = self._draw_second(z, (), second)
        above, _, kl = self.encoders[1](z).rsample_with_kl(eps=eps, kl="dimensions")
        prior = self.priors[0](above)
        log_q = log_prob_by_unit(z, posterior.mu, posterior.log_sigma)
        return self.log_likelihood(x, z), [log_q - log_prob_by_unit(z, prior.mu, prior.log_sigma), kl]

    def average_units(self, posterior: DiagonalGaussian, samples: int, **noise: Any) -> list[Tensor]:
        """The mean of every unit under q, ``(N, D)`` of each layer; the upper one's over samples of the lower."""
        if self.config.layers == 1:
            return [posterior.mu]
        z, _ = posterior.rsample_with_log_prob((samples,), **noise)
        return [posterior.mu, self.encoders[1](z).mu.mean(0)]

    def log_weights(self, x: Tensor, posterior: DiagonalGaussian, samples: int, **noise: Any) -> Tensor:
        """log p(x, z) - log q(z | x) of new samples z, ``(samples, N)``, nats; arguments as of :meth:`measure`."""
        return monte_carlo_elbo(*self.weigh(x, posterior, samples, **noise))

    def weigh(self, x: Tensor, posterior: DiagonalGaussian, samples: int, **noise: Any) -> Terms:
        """The terms of new samples' log-weights, ``(samples, N)`` each, nats; arguments as of :meth:`measure`."""
        first, second = self._split_noise(noise)
        z, log_q = posterior.rsample_with_log_prob((samples,), **first)
        latents = [z]
        if self.config.layers == 2:
            eps = self._draw_second(z[0], (samples,), second)
            above, more = self.encoders[1](z).rsample_with_log_prob(eps=eps)
            latents.append(above)
            log_q = log_q + more
        return Terms(self.log_likelihood(x, z), self.log_prior(latents), log_q)

    def weigh_by_path(
        self, x: Tensor, posterior: DiagonalGaussian, samples: int, **noise: Any
    ) -> tuple[Terms, list[Tensor]]:
        """As :meth:`weigh`, with the paths that :func:`~fastvae.objectives.dreg_bound` weights.

        They depend on the encoders' parameters through the paths alone. The upper latents pass through the
        upper encoder twice: with detached weights, where the gradient goes on to the lower latents, and with detached
        lower latents, where it ends in the weights. Only the second is a path.
        """
        first, second = self._split_noise(noise)
        z, _ = posterior.rsample_with_log_prob((samples,), **first)
        log_q = DiagonalGaussian(posterior.mu.detach(), posterior.log_sigma.detach(), impl=self.config.impl).log_prob(z)
        latents, paths = [z], [z]
        if self.config.layers == 2:
            eps = self._draw_second(z[0], (samples,), second)
            upper = self.encoders[1]
            fixed: DiagonalGaussian = functional_call(upper, {n: p.detach() for n, p in upper.named_parameters()}, z)
            above, _ = fixed.rsample_with_log_prob(eps=eps)
            path = upper(z.detach()).rsample_with_log_prob(eps=eps)[0]
            latents.append(above + (path - path.detach()))
            paths.append(path)
            log_q = log_q + fixed.log_prob(latents[1])
        return Terms(self.log_likelihood(x, z), self.log_prior(latents), log_q), paths

    def _split_noise(self, noise: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        if "eps" not in noise or self.config.layers == 1:
            return dict(noise), dict(noise)
        first, second = noise["eps"].split(self.config.latent_features, -1)
        return {"eps": first}, {"eps": second}

    def _draw_second(self, z: Tensor, shape: Sequence[int], noise: Mapping[str, Any]) -> Tensor:
        """Noise of the upper latents that does not depend on how a batch ``z``, ``(N, D)``, is shared out."""
        if "eps" in noise:
            eps: Tensor = noise["eps"]
            return eps
        zeros = z.new_zeros(len(z), self.config.latent_features[1])
        return DiagonalGaussian(zeros, zeros, impl=self.config.impl).rsample_with_log_prob(shape, **noise)[0]

    @torch.no_grad()
    def sample(self, n: int, *, generator: torch.Generator | None = None) -> Tensor:
        """Means ``(n, pixels)`` of p(x | z1) for latents from the prior."""
        like = next(self.parameters())
        size = (n, self.config.latent_features[-1])
        z = torch.randn(size, generator=generator, dtype=like.dtype, device=like.device)
        for prior in self.priors:
            z = prior(z).rsample_with_log_prob(generator=generator)[0]
        return self.decode(z).sigmoid()

    @torch.no_grad()
    def reconstruct(self, x: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """Means ``(N, pixels)`` of p(x | z1), each with a z1 ~ q(z1 | x)."""
        z, _ = self.encode(x).rsample_with_log_prob(generator=generator)
        return self.decode(z).sigmoid()
