"""PixelCNN over maps of real numbers: diagonal Gaussians given the positions before."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from .... import functional as F
from ....nn._start import Start, start_as
from ....nn.gated_pixelcnn import GatedPixelCNN
from ....nn.gaussian import bound_log_sigma
from ....sampling.likelihoods import PixelLikelihood

__all__ = ["GaussianPixels", "GaussianPrior"]


class GaussianPixels(PixelLikelihood):
    r"""Positions of C real numbers, independent given those before; parameters are C means, then C log-sigmas.

    The log-sigmas are bounded to [-7, 7]. The temperature multiplies sigma.

    Args:
        impl: implementation of the density, see :mod:`fastvae.backend`.

    Example:
        >>> GaussianPixels().draw(torch.zeros(2, 6), torch.full((2, 3), 0.5)).tolist()
        [[0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]
    """

    per_channel: ClassVar[bool] = False

    def __init__(self, impl: str = "auto") -> None:
        self.impl = impl

    def parameter_channels(self, channels: int) -> int:
        return 2 * channels

    def draw(self, parameters: Tensor, uniforms: Tensor, temperature: float = 1.0) -> Tensor:
        mu, log_sigma = self.moments(parameters)
        return mu + temperature * log_sigma.exp() * torch.special.ndtri(uniforms)

    def log_prob(self, x: Tensor, parameters: Tensor) -> Tensor:
        mu, log_sigma = self.moments(parameters)
        return F.diag_gaussian_log_prob(x.flatten(1), mu.flatten(1), log_sigma.flatten(1), impl=self.impl)

    def moments(self, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """Means and bounded log-sigmas, ``(N, C, *)``, from ``(N, 2C, *)``."""
        mu, log_sigma = parameters.chunk(2, 1)
        return mu, bound_log_sigma(log_sigma)

    def check(self, name: str, x: Tensor) -> None:
        if x.isinf().any():
            raise ValueError(f"{name} must be finite, or NaN where a pixel is to be drawn, got an infinite number")


class GaussianPrior(GatedPixelCNN):
    r"""Gated PixelCNN over a map z of latents: :math:`p(z \mid c) = \prod_i N(z_i; \mu_i(z_{<i}, c), \sigma_i^2)`.

    It starts at N(0, I): its last layer, and what the context adds to that, start at zero.

    Args:
        channels: channels C of the map.
        hidden_channels: width of the layers.
        num_layers: their number.
        kernel_size: their kernels, odd.
        context_features: width of the context c, 0 for none.
        weight_norm: whether weights are normalised, with learned gains.
        impl: implementation, see :mod:`fastvae.backend`.

    Example:
        >>> prior = GaussianPrior(2, 8, 2, context_features=3)
        >>> prior.sample(4, (5, 5), context=torch.randn(4, 3)).shape
        torch.Size([4, 2, 5, 5])
    """

    likelihood: GaussianPixels

    def __init__(
        self,
        channels: int,
        hidden_channels: int,
        num_layers: int,
        kernel_size: int = 3,
        *,
        context_features: int = 0,
        weight_norm: bool = False,
        impl: str = "auto",
    ) -> None:
        super().__init__(
            channels,
            hidden_channels,
            num_layers,
            kernel_size,
            first_kernel_size=kernel_size,
            context_features=context_features,
            likelihood=GaussianPixels(impl),
            weight_norm=weight_norm,
            impl=impl,
        )
        nothing = Start(weight_scale=0.0, bias_scale=0.0)
        start_as(self.head.second, nothing)
        context_layer = self.head.second_condition.layer
        if context_layer is not None:
            start_as(context_layer, nothing)

    def kl(self, mu: Tensor, log_sigma: Tensor, z: Tensor, context: Tensor | None = None) -> Tensor:
        r"""An estimate of the KL divergence of a factorised Gaussian from this prior, ``(N,)``, nats.

        .. math::
            \sum_i D_{KL}\left(N(\mu_i, \sigma_i^2)\ \|\ p(z_i \mid z_{<i}, c)\right), \qquad z \sim N(\mu, \sigma^2)

        The mean of the estimate over z is the divergence.

        Args:
            mu: means, ``(N, C H W)``.
            log_sigma: log-sigmas, of that shape.
            z: a sample, ``(N, C, H, W)``.
            context: the context c.
        """
        return F.diag_gaussian_kl(mu, log_sigma, *self.predict(z, context), impl=self.impl)

    def predict(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Mean and log-sigma of each number of z given those before it, ``(N, C H W)`` each."""
        mu, log_sigma = self.likelihood.moments(self(z, context))
        return mu.flatten(1), log_sigma.flatten(1)
