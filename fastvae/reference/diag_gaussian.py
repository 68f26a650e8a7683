r"""Diagonal Gaussian in plain PyTorch.

.. math::
    z = \mu + \sigma \odot \epsilon, \qquad
    \log q(z) = -\sum_i \left(\tfrac12 \epsilon_i^2 + \log \sigma_i + \tfrac12 \log 2\pi\right)

Half-precision inputs are computed in float32; the sample has the inputs' dtype, densities stay float32.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..precision import compute_dtype

LOG_2PI = math.log(2.0 * math.pi)


def draw_eps(shape: tuple[int, ...], like: Tensor, generator: torch.Generator | None) -> Tensor:
    options: Any = {"dtype": compute_dtype(like.dtype), "device": like.device}
    # Dynamo traces symbolic sizes only through the overload that takes no generator at all.
    return torch.randn(shape, **options) if generator is None else torch.randn(shape, generator=generator, **options)


def standard_normal_log_prob(eps: Tensor) -> Tensor:
    return -0.5 * eps.square().sum(-1) - 0.5 * LOG_2PI * eps.shape[-1]


def rsample(
    mu: Tensor,
    log_sigma: Tensor,
    sample_shape: tuple[int, ...],
    eps: Tensor | None,
    generator: torch.Generator | None,
) -> tuple[Tensor, Tensor]:
    dtype = compute_dtype(mu.dtype)
    if eps is None:
        eps = draw_eps(sample_shape + mu.shape, mu, generator)
    eps, log_sigma = eps.to(dtype), log_sigma.to(dtype)
    z = torch.addcmul(mu.to(dtype), log_sigma.exp(), eps)
    return z.to(mu.dtype), standard_normal_log_prob(eps) - log_sigma.sum(-1)


def rsample_with_kl(
    mu: Tensor,
    log_sigma: Tensor,
    sample_shape: tuple[int, ...],
    eps: Tensor | None,
    generator: torch.Generator | None,
    by_dimension: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    return *rsample(mu, log_sigma, sample_shape, eps, generator), standard_kl(mu, log_sigma, by_dimension)


def log_prob(z: Tensor, mu: Tensor, log_sigma: Tensor) -> Tensor:
    dtype = compute_dtype(mu.dtype)
    log_sigma = log_sigma.to(dtype)
    eps = (z.to(dtype) - mu.to(dtype)) * (-log_sigma).exp()
    return standard_normal_log_prob(eps) - log_sigma.sum(-1)


def twice_kl(mu: Tensor, log_sigma: Tensor) -> Tensor:
    """Twice the divergence of each dimension from N(0, 1)."""
    return mu.square() + (2.0 * log_sigma).exp() - 1.0 - 2.0 * log_sigma


def standard_kl(mu: Tensor, log_sigma: Tensor, by_dimension: bool = False) -> Tensor:
    """The divergence from N(0, I), ``(*)``, or its part of each dimension, ``(*, D)``."""
    dtype = compute_dtype(mu.dtype)
    twice = twice_kl(mu.to(dtype), log_sigma.to(dtype))
    return 0.5 * (twice if by_dimension else twice.sum(-1))


def kl(mu: Tensor, log_sigma: Tensor, prior_mu: Tensor | None, prior_log_sigma: Tensor | None) -> Tensor:
    if prior_mu is None or prior_log_sigma is None:
        return standard_kl(mu, log_sigma)
    dtype = compute_dtype(mu.dtype)
    mu, log_sigma = mu.to(dtype), log_sigma.to(dtype)
    log_ratio = log_sigma - prior_log_sigma.to(dtype)
    whitened = (mu - prior_mu.to(dtype)) * (-prior_log_sigma.to(dtype)).exp()
    return 0.5 * (whitened.square() + (2.0 * log_ratio).exp() - 1.0 - 2.0 * log_ratio).sum(-1)
