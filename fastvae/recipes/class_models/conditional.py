"""A variational auto-encoder that is given a class: p(x | y, z) and q(z | x, y)."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ... import functional as F
from ...distributions import DiagonalGaussian
from ...nn import ClassLinear, DiagonalGaussianHead, initialize_from_data
from ...objectives import standard_normal_log_prob

__all__ = ["ACTIVATIONS", "ConditionalVAE"]

ACTIVATIONS: dict[str, type[nn.Module]] = {"softplus": nn.Softplus, "relu": nn.ReLU, "elu": nn.ELU, "tanh": nn.Tanh}


class ConditionalVAE(nn.Module):
    r"""z ~ N(0, I); p(x | y, z) and q(z | x, y) are multilayer perceptrons whose first layers are given the class, too.

    .. math::
        h = \operatorname{act}(x W_x + \operatorname{onehot}(y) W_y + b)

    A method without ``labels`` takes every image under every class, ``(N, C)``; with ``labels``, ``(N,)``, each under
    its own.

    Args:
        config: ``hidden_features``, ``latent_features``, ``classes``, ``activation`` and ``impl``.
        data_features: numbers that the encoder is given.
        outputs: numbers that the decoder returns.
    """

    config: Any

    def __init__(self, config: Any, data_features: int, outputs: int) -> None:
        super().__init__()
        self.config = config
        widths, impl = config.hidden_features, config.impl
        first: dict[str, Any] = {"activation": config.activation, "impl": impl}
        self.encoder_in = ClassLinear(data_features, config.classes, widths[0], **first)
        self.encoder = nn.Sequential(*list_layers(widths, config.activation))
        self.head = DiagonalGaussianHead(widths[-1], config.latent_features, impl=impl)
        widths = widths[::-1]
        self.decoder_in = ClassLinear(config.latent_features, config.classes, widths[0], **first)
        self.decoder = nn.Sequential(*list_layers(widths, config.activation))
        self.to_data = nn.Linear(widths[-1], outputs)

    def posterior(self, x: Tensor, labels: Tensor | None = None) -> DiagonalGaussian:
        """q(z | x, y) of data ``(N, features)``."""
        found: DiagonalGaussian = self.head(self.encoder(self.encoder_in(x, labels=labels)))
        return found

    def decode_features(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """What the decoder's last layer is given.

        Args:
            z: latents, ``(*, N, D)`` with ``labels``, and ``(*, N, C, D)`` without.
            labels: the classes.
        """
        hidden: Tensor = self.decoder(self.decoder_in(z, labels=self.decoder_in.classes if labels is None else labels))
        return hidden

    def decode(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """Parameters of p(x | y, z), ``(*, N, outputs)`` or ``(*, N, C, outputs)``; arguments as above."""
        parameters: Tensor = self.to_data(self.decode_features(z, labels))
        return parameters

    def log_likelihood(self, x: Tensor, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """log p(x | y, z) of binary images, nats, ``(*, N)`` or ``(*, N, C)``."""
        x = x if labels is not None else x.unsqueeze(-2)
        return F.linear_bernoulli_log_prob(
            self.decode_features(z, labels), self.to_data.weight, self.to_data.bias, x, impl=self.config.impl
        )

    def log_prior(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """log p(z | y), nats."""
        return standard_normal_log_prob(z)

    def sample_posterior(
        self, q: DiagonalGaussian, labels: Tensor | None = None, **noise: Any
    ) -> tuple[Tensor, Tensor]:
        """z ~ q(z | x, y), and the divergence of p(z | y) from it, nats.

        Args:
            q: what :meth:`posterior` returned.
            labels: the classes.
            noise: as of the posterior's ``rsample_with_kl``.
        """
        z, _, kl = q.rsample_with_kl(**noise)
        return z, kl

    def measure_classes(self, x: Tensor, labels: Tensor | None = None, **noise: Any) -> tuple[Tensor, Tensor]:
        """log p(x | y, z) of one sample z, and the divergence, ``(N,)`` or ``(N, C)`` each, nats."""
        z, kl = self.sample_posterior(self.posterior(x, labels), labels, **noise)
        return self.log_likelihood(x, z, labels), kl

    def weigh_classes(
        self, x: Tensor, q: DiagonalGaussian, samples: int, labels: Tensor | None = None, **noise: Any
    ) -> Tensor:
        """log p(x, z | y) - log q(z | x, y) of new samples z, ``(samples, N)`` or ``(samples, N, C)``, nats."""
        z, log_q = q.rsample_with_log_prob((samples,), **noise)
        return self.log_likelihood(x, z, labels) + self.log_prior(z, labels) - log_q

    def draw_prior(self, labels: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """z ~ p(z | y), ``(N, D)``."""
        like = self.to_data.weight
        shape = (len(labels), self.config.latent_features)
        return torch.randn(shape, generator=generator, dtype=like.dtype, device=like.device)

    def to_intensities(self, parameters: Tensor) -> Tensor:
        """Pixels in [0, 1] of what :meth:`decode` returns."""
        return parameters.sigmoid()

    @torch.no_grad()
    def initialize_from(self, x: Tensor, labels: Tensor | None = None, **noise: Any) -> None:
        """Starts a new model with features that vary by 1 over a first batch.

        Smaller ones would not carry the latents through the decoder: it would learn to do without them.

        Args:
            x: data ``(N, features)``.
            labels: their classes; None for all.
            noise: as of :meth:`measure_classes`.
        """
        networks = [self.encoder_in, self.encoder, self.decoder_in, self.decoder]
        layers = [
            layer for network in networks for layer in network.modules() if isinstance(layer, ClassLinear | nn.Linear)
        ]

        def run(x: Tensor) -> None:
            self.decode_features(self.posterior(x, labels).rsample_with_log_prob(**noise)[0], labels)

        initialize_from_data(self, x, run=run, plain=layers)

    @torch.no_grad()
    def start_at(self, pixel_means: Tensor) -> None:
        """Sets the decoder's last bias such that a new model starts at these intensities, ``(pixels,)``."""
        self.to_data.bias.copy_(pixel_means.clamp(1e-3, 1.0 - 1e-3).logit())

    @torch.no_grad()
    def sample(self, n: int, *, labels: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
        """Means ``(n, pixels)`` of p(x | y, z) for z from the prior; without labels the classes take turns."""
        device = self.to_data.weight.device
        labels = torch.arange(n, device=device) % self.config.classes if labels is None else labels.to(device)
        return self.to_intensities(self.decode(self.draw_prior(labels, generator=generator), labels))

    @torch.no_grad()
    def transfer(self, x: Tensor, labels: Tensor) -> Tensor:
        """Each image in its own style under every class, ``(N, C, pixels)``: z is the mean of q(z | x, y)."""
        z = self.posterior(x, labels).mu
        every = z.unsqueeze(-2).expand(-1, self.config.classes, -1)
        return self.to_intensities(self.decode(every))


def list_layers(widths: Sequence[int], activation: str) -> Iterator[nn.Module]:
    """Layers from each of the widths to the next."""
    for before, after in itertools.pairwise(widths):
        yield nn.Linear(before, after)
        yield ACTIVATIONS[activation]()
