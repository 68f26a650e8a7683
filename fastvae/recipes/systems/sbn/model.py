"""A sigmoid belief network: one or two layers of Bernoulli units above binary images."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as TF
from torch import Tensor, nn

from .... import backend, rng
from .... import functional as F
from ....likelihoods import bernoulli_log_prob
from ....reference import philox
from .config import SBNConfig

__all__ = ["SBN", "Latents", "draw_uniforms"]


class Latents(NamedTuple):
    """Units from the image upwards, each ``(*, N, D)``, and log q of each layer given the one below it, ``(*, N)``."""

    layers: tuple[Tensor, ...]
    log_q: tuple[Tensor, ...]


def draw_uniforms(like: Tensor, *, generator: torch.Generator | None = None, row_offset: int = 0) -> Tensor:
    """Uniform numbers of the noise contract for the rows of ``like``, ``(N, D)``, which shards share."""
    seed = rng.draw_seed(like.device, generator)
    rows, columns = like.shape
    return rng.philox_uniform(seed, rows, columns, row_offset).to(like.dtype)


class SBN(nn.Module):
    r"""Units :math:`b^{(1)}` and, above them, :math:`b^{(2)}`; the top layer has a learned prior.

    .. math::
        \log p(x, b) = \log p(x \mid b^{(1)}) + \log p(b^{(1)} \mid b^{(2)}) + \log p(b^{(2)}), \qquad
        q(b \mid x) = q(b^{(1)} \mid x)\, q(b^{(2)} \mid b^{(1)})

    Maps see 2x - 1 and 2b - 1.

    Args:
        config: sizes and implementation.

    Reference:
        *Neural Variational Inference and Learning in Belief Networks* (Mnih, Gregor, 2014).

    Example:
        >>> from fastvae.recipes.systems.sbn.config import SBNConfig
        >>> model = SBN(SBNConfig(latent_features=8))
        >>> model.sample(3).shape
        torch.Size([3, 784])
    """

    def __init__(self, config: SBNConfig) -> None:
        super().__init__()
        self.config = config
        hidden = [config.hidden_features] * (2 if config.layers == "nonlinear" else 0)
        sizes = [config.data_features, *[config.latent_features] * (2 if config.layers == "linear2" else 1)]
        pairs = list(itertools.pairwise(sizes))
        self.encoders = nn.ModuleList(_make_map([below, *hidden, above]) for below, above in pairs)
        self.decoders = nn.ModuleList(_make_map([above, *hidden, below]) for below, above in pairs)
        self.prior_logits = nn.Parameter(torch.zeros(config.latent_features))

    @property
    def kl_names(self) -> tuple[str, ...]:
        return ("kl",) if len(self.encoders) == 1 else ("kl1", "kl2")

    def encode(self, x: Tensor) -> Tensor:
        """Logits of the first layer of units, ``(N, D)``, of binary images ``(N, pixels)``."""
        return cast(Tensor, self.encoders[0](2.0 * x - 1.0))

    def draw(
        self,
        logits: Tensor,
        sample_shape: Sequence[int] = (),
        *,
        antithetic: bool = False,
        generator: torch.Generator | None = None,
        row_offset: int = 0,
    ) -> tuple[Tensor, Tensor]:
        """:func:`~fastvae.functional.bernoulli_sample`; shards draw the units of the whole by any implementation."""
        if backend.resolve(self.config.impl, logits) != "reference":
            return F.bernoulli_sample(
                logits, sample_shape, antithetic=antithetic, generator=generator, row_offset=row_offset,
                impl=self.config.impl,
            )  # fmt: skip
        count, seed = torch.Size(sample_shape).numel(), rng.draw_seed(logits.device, generator)
        uniforms = philox.uniform(seed, count, *logits.shape, row_offset=row_offset).to(logits.dtype)
        uniforms = uniforms.view(*sample_shape, *logits.shape)
        return self.draw_by(logits, uniforms, sample_shape, antithetic=antithetic)

    def draw_by(
        self, logits: Tensor, uniforms: Tensor, sample_shape: Sequence[int] = (), *, antithetic: bool = False
    ) -> tuple[Tensor, Tensor]:
        """The same of given uniform numbers."""
        return F.bernoulli_sample(logits, sample_shape, antithetic=antithetic, uniforms=uniforms, impl=self.config.impl)

    def draw_above(self, layers: tuple[Tensor, ...], log_q: tuple[Tensor, ...], **noise: Any) -> Latents:
        """The latents of given first layers: what is missing is drawn."""
        for encoder in itertools.islice(self.encoders, len(layers), None):
            logits = encoder(2.0 * layers[-1] - 1.0)
            # Rows of one sample at a time, so that their numbers are those of images.
            drawn = [self.draw(of_sample, **noise) for of_sample in logits.flatten(0, -3)] if logits.dim() > 2 else []
            b, log_q_b = map(torch.stack, zip(*drawn, strict=True)) if drawn else self.draw(logits, **noise)
            layers, log_q = (*layers, b.view_as(logits)), (*log_q, log_q_b.view(logits.shape[:-1]))
        return Latents(layers, log_q)

    def draw_latents(self, logits: Tensor, sample_shape: Sequence[int] = (), **noise: Any) -> Latents:
        """Samples of q(b | x) for the logits that :meth:`encode` returns; ``noise`` as of :meth:`draw`."""
        b, log_q = self.draw(logits, sample_shape, **noise)
        return self.draw_above((b,), (log_q,), **noise)

    def log_priors(self, layers: Sequence[Tensor]) -> list[Tensor]:
        """log p of each layer given the one above it, ``(*, N)``, nats; units may be relaxed."""
        found = [
            bernoulli_log_prob(below, decoder(2.0 * above - 1.0))
            for below, above, decoder in zip(layers, layers[1:], itertools.islice(self.decoders, 1, None), strict=False)
        ]
        return [*found, layers[-1] @ self.prior_logits - TF.softplus(self.prior_logits).sum()]

    def log_likelihood(self, x: Tensor, b: Tensor) -> Tensor:
        """log p(x | b), ``(*, N)``, nats, of binary images ``(N, pixels)`` and units of the first layer."""
        decoder = cast(nn.Sequential, self.decoders[0])
        h, last = decoder[:-1](2.0 * b - 1.0), cast(nn.Linear, decoder[-1])
        return F.linear_bernoulli_log_prob(h, last.weight, last.bias, x, impl=self.config.impl)

    def log_prior(self, layers: Sequence[Tensor]) -> Tensor:
        """log p(b) of all layers, ``(*, N)``, nats."""
        return torch.stack(self.log_priors(layers)).sum(0)

    def log_joint(self, x: Tensor, layers: Sequence[Tensor]) -> Tensor:
        """log p(x, b), ``(*, N)``, nats."""
        return self.log_likelihood(x, layers[0]) + self.log_prior(layers)

    @torch.no_grad()
    def start_at(self, pixel_means: Tensor) -> None:
        """Sets the decoder's last bias such that a new model starts at these intensities, ``(pixels,)``."""
        last = cast(nn.Linear, cast(nn.Sequential, self.decoders[0])[-1])
        last.bias.copy_(pixel_means.clamp(1e-3, 1.0 - 1e-3).logit())

    # What evaluation and pictures call

    def measure(self, x: Tensor, posterior: Tensor | None = None, **noise: Any) -> tuple[Tensor, Tensor]:
        """log p(x | b) of one sample, ``(N,)``, and log q - log p of each layer, ``(N, layers)``, nats."""
        latents = self.draw_latents(self.encode(x) if posterior is None else posterior, **noise)
        priors = self.log_priors(latents.layers)
        terms = [log_q - log_p for log_q, log_p in zip(latents.log_q, priors, strict=True)]
        return self.log_likelihood(x, latents.layers[0]), torch.stack(terms, -1)

    def measure_units(self, x: Tensor, posterior: Tensor, **noise: Any) -> tuple[Tensor, list[Tensor]]:
        """As :meth:`measure`, with the part of every unit in the term of its layer, ``(N, D)`` each."""
        layers = self.draw_latents(posterior, **noise).layers
        of_prior = itertools.islice(self.decoders, 1, None)
        priors = [decoder(2.0 * above - 1.0) for decoder, above in zip(of_prior, layers[1:], strict=True)]
        of_posterior = itertools.islice(self.encoders, 1, None)
        above = [encoder(2.0 * below - 1.0) for encoder, below in zip(of_posterior, layers, strict=False)]
        found = [
            _log_prob_by_unit(b, q) - _log_prob_by_unit(b, p)
            for b, q, p in zip(layers, [posterior, *above], [*priors, self.prior_logits], strict=True)
        ]
        return self.log_likelihood(x, layers[0]), found

    def average_units(self, posterior: Tensor, samples: int, **noise: Any) -> list[Tensor]:
        """The mean of every unit under q, ``(N, D)`` of each layer; the upper one's over samples of the lower."""
        found = [posterior.sigmoid()]
        for encoder in itertools.islice(self.encoders, 1, None):
            b, _ = self.draw(posterior, (samples,), **noise)
            found.append(encoder(2.0 * b - 1.0).sigmoid().mean(0))
        return found

    def log_weights(self, x: Tensor, posterior: Tensor, samples: int, **noise: Any) -> Tensor:
        """log p(x, b) - log q(b | x) of new samples, ``(samples, N)``, nats."""
        latents = self.draw_latents(posterior, (samples,), **noise)
        return self.log_joint(x, latents.layers) - torch.stack(latents.log_q).sum(0)

    @torch.no_grad()
    def sample(self, n: int, *, generator: torch.Generator | None = None) -> Tensor:
        """Means ``(n, pixels)`` of p(x | b) for units from the prior."""
        logits = self.prior_logits.expand(n, -1)
        for decoder in reversed(self.decoders):
            logits = decoder(2.0 * self.draw(logits, generator=generator)[0] - 1.0)
        return logits.sigmoid()

    @torch.no_grad()
    def reconstruct(self, x: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """Means ``(N, pixels)`` of p(x | b), each with units b ~ q(b | x)."""
        b, _ = self.draw(self.encode(x), generator=generator)
        return cast(Tensor, self.decoders[0](2.0 * b - 1.0)).sigmoid()


def _log_prob_by_unit(b: Tensor, logits: Tensor) -> Tensor:
    return b * logits - TF.softplus(logits)


def _make_map(widths: Sequence[int]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(widths):
        layers += [nn.Linear(before, after), nn.Tanh()]
    return nn.Sequential(*layers[:-1])
