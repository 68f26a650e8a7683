"""Encoders, decoders and the networks of the momentum."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from .... import functional as F
from ....likelihoods import bernoulli_log_prob
from ....nn import DiagonalGaussianHead

__all__ = ["ConvDecoder", "ConvEncoder", "DenseDecoder", "DenseEncoder", "Momentum"]

SIDE, SMALL = 28, 4


class ConvEncoder(nn.Module):
    """Three convolutions of 5 x 5 and stride 2, then a dense layer: ``(N, 784)`` to ``(N, hidden)``."""

    def __init__(self, maps: Sequence[int], hidden_features: int) -> None:
        super().__init__()
        sizes = itertools.pairwise((1, *maps))
        convolutions = [layer for a, b in sizes for layer in (nn.Conv2d(a, b, 5, 2, 2), nn.Softplus())]
        dense = nn.Linear(maps[-1] * SMALL * SMALL, hidden_features)
        self.network = nn.Sequential(*convolutions, nn.Flatten(), dense, nn.Softplus())

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.network(x.view(-1, 1, SIDE, SIDE))
        return found


class ConvDecoder(nn.Module):
    """The way back, from ``(*, latent)`` to logits ``(*, 784)``."""

    def __init__(self, latent_features: int, maps: Sequence[int], hidden_features: int) -> None:
        super().__init__()
        first, second, third = maps
        self.network = nn.Sequential(
            nn.Linear(latent_features, hidden_features),
            nn.Softplus(),
            nn.Linear(hidden_features, third * SMALL * SMALL),
            nn.Softplus(),
            nn.Unflatten(1, (third, SMALL, SMALL)),
            nn.ConvTranspose2d(third, second, 5, 2, 2),
            nn.Softplus(),
            nn.ConvTranspose2d(second, first, 5, 2, 2, output_padding=1),
            nn.Softplus(),
            nn.ConvTranspose2d(first, 1, 5, 2, 2, output_padding=1, bias=False),
        )
        self.last_bias = nn.Parameter(torch.zeros(SIDE * SIDE))

    def forward(self, z: Tensor) -> Tensor:
        logits: Tensor = self.network(z.flatten(0, -2)).view(*z.shape[:-1], SIDE * SIDE)
        return logits + self.last_bias

    def log_prob(self, x: Tensor, z: Tensor) -> Tensor:
        """log p(x | z), ``(*, N)``, nats."""
        return bernoulli_log_prob(x, self(z))

    def gradient(self, x: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """log p(x | z), ``(*, N)``, and its gradient to z, which autograd can differentiate where ``z`` can."""
        if torch.compiler.is_compiling():
            # A compiler does not see through a gradient by autograd.
            return self._traced_gradient(x, z)
        keep = torch.is_grad_enabled()
        with torch.enable_grad():
            at = z.view_as(z) if z.requires_grad and keep else z.detach().requires_grad_()
            log_p_x = self.log_prob(x, at)
            (found,) = torch.autograd.grad(log_p_x.sum(), at, create_graph=keep)
        return log_p_x if keep else log_p_x.detach(), found

    def _traced_gradient(self, x: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        def of_latents(z: Tensor) -> tuple[Tensor, Tensor]:
            log_p_x = self.log_prob(x, z)
            return log_p_x.sum(), log_p_x

        found, log_p_x = torch.func.grad(of_latents, has_aux=True)(z)
        return log_p_x, found


class DenseEncoder(nn.Sequential):
    """Dense layers with ELU, ``(N, 784)`` to ``(N, hidden)``."""

    def __init__(self, hidden_features: Sequence[int]) -> None:
        sizes = itertools.pairwise((SIDE * SIDE, *hidden_features))
        super().__init__(*(layer for a, b in sizes for layer in (nn.Linear(a, b), nn.ELU())))


class DenseDecoder(nn.Module):
    """Dense layers with ELU, from ``(*, latent)`` to logits ``(*, 784)``; its gradient is one call."""

    def __init__(self, latent_features: int, hidden_features: Sequence[int], impl: str) -> None:
        super().__init__()
        sizes = (latent_features, *reversed(hidden_features), SIDE * SIDE)
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(sizes))
        self.impl = impl

    @property
    def last_bias(self) -> Tensor:
        bias: Any = self.layers[-1].bias
        return cast(Tensor, bias)

    def _parameters_of_layers(self) -> tuple[list[Any], list[Any]]:
        return [layer.weight for layer in self.layers], [layer.bias for layer in self.layers]

    def forward(self, z: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            z = nn.functional.elu(layer(z))
        logits: Tensor = self.layers[-1](z)
        return logits

    def log_prob(self, x: Tensor, z: Tensor) -> Tensor:
        """log p(x | z), ``(*, N)``, nats."""
        return F.mlp_bernoulli_log_prob(z, *self._parameters_of_layers(), x, activation="elu", impl=self.impl)

    def gradient(self, x: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """log p(x | z), ``(*, N)``, and its gradient to z, which autograd can differentiate."""
        return F.latent_gradient(z, *self._parameters_of_layers(), x, activation="elu", impl=self.impl)


class Momentum(nn.Module):
    """A diagonal Gaussian over the momentum given the image's features and the latents."""

    def __init__(self, in_features: int, latent_features: int, hidden_features: int, impl: str) -> None:
        super().__init__()
        self.hidden = nn.Sequential(nn.Linear(in_features + latent_features, hidden_features), nn.Softplus())
        self.in_features = in_features
        self.head = DiagonalGaussianHead(hidden_features, latent_features, impl=impl)
        # The momentum starts as N(0, I), whatever the image.
        nn.init.zeros_(self.head.linear.weight)
        nn.init.zeros_(self.head.linear.bias)

    def forward(self, features: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-sigma, each of the shape of ``z``; ``features`` ``(N, in)`` belong to every sample."""
        linear = cast(nn.Linear, self.hidden[0])
        of_features, of_latents = linear.weight.split([self.in_features, z.shape[-1]], 1)
        # The features of an image serve all its samples.
        joint = nn.functional.linear(features, of_features, linear.bias) + nn.functional.linear(z, of_latents)
        q = self.head(self.hidden[1](joint))
        return q.mu, q.log_sigma
