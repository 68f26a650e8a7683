r"""Full-covariance Gaussian with a triangular factor in plain PyTorch.

.. math::
    L = \operatorname{strictly\,lower}(T) + \operatorname{diag}(\sigma), \quad z = \mu + L\epsilon, \quad
    \log q(z) = -\sum_i \left(\tfrac12 \epsilon_i^2 + \log \sigma_i + \tfrac12 \log 2\pi\right)

since :math:`\log|\det L| = \sum_i \log\sigma_i`: no Cholesky, and no solve for one's own sample.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..precision import compute_dtype, keep_full_precision
from .diag_gaussian import draw_eps, standard_normal_log_prob, twice_kl


def strictly_lower(tril: Tensor, features: int, packed: bool) -> Tensor:
    """The dense strict lower triangle of either layout, zero elsewhere."""
    if not packed:
        return tril.tril(-1)
    row, column = torch.tril_indices(features, features, -1, device=tril.device)
    # Nothing is written in place: a selective checkpoint that saves every result may not see it change.
    zeros = tril.new_zeros((*tril.shape[:-1], features * features))
    return zeros.index_copy(-1, row * features + column, tril).unflatten(-1, (features, features))


def rsample(
    mu: Tensor,
    log_sigma: Tensor,
    tril: Tensor,
    packed: bool,
    sample_shape: tuple[int, ...],
    eps: Tensor | None,
    generator: torch.Generator | None,
) -> tuple[Tensor, Tensor]:
    dtype = compute_dtype(mu.dtype)
    if eps is None:
        eps = draw_eps(sample_shape + mu.shape, mu, generator)
    eps, log_sigma = eps.to(dtype), log_sigma.to(dtype)
    lower = strictly_lower(tril.to(dtype), mu.shape[-1], packed)
    with keep_full_precision(mu.device.type):
        mixed = torch.einsum("...ij,...j->...i", lower, eps)
    z = torch.addcmul(mu.to(dtype) + mixed, log_sigma.exp(), eps)
    return z.to(mu.dtype), standard_normal_log_prob(eps) - log_sigma.sum(-1)


def rsample_with_kl(
    mu: Tensor,
    log_sigma: Tensor,
    tril: Tensor,
    packed: bool,
    sample_shape: tuple[int, ...],
    eps: Tensor | None,
    generator: torch.Generator | None,
    by_dimension: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    z, log_q = rsample(mu, log_sigma, tril, packed, sample_shape, eps, generator)
    return z, log_q, (kl_by_dimension if by_dimension else kl)(mu, log_sigma, tril, packed)


def log_prob(z: Tensor, mu: Tensor, log_sigma: Tensor, tril: Tensor, packed: bool) -> Tensor:
    dtype = compute_dtype(mu.dtype)
    log_sigma = log_sigma.to(dtype)
    lower = strictly_lower(tril.to(dtype), mu.shape[-1], packed) + torch.diag_embed(log_sigma.exp())
    # Samples of one Gaussian are the right-hand sides of one solve: the factor is not expanded over them.
    samples = math.prod(z.shape[: z.dim() - mu.dim()])
    residual = (z.to(dtype) - mu.to(dtype)).reshape(samples, *mu.shape).movedim(0, -1)
    eps = torch.linalg.solve_triangular(lower, residual, upper=False).movedim(-1, 0).reshape(z.shape)
    return standard_normal_log_prob(eps) - log_sigma.sum(-1)


def kl(mu: Tensor, log_sigma: Tensor, tril: Tensor, packed: bool) -> Tensor:
    dtype = compute_dtype(mu.dtype)
    mu, log_sigma = mu.to(dtype), log_sigma.to(dtype)
    tril = tril.to(dtype)
    off_diagonal = tril.square().sum(-1) if packed else tril.tril(-1).square().sum((-2, -1))
    return 0.5 * (off_diagonal + twice_kl(mu, log_sigma).sum(-1))


def kl_by_dimension(mu: Tensor, log_sigma: Tensor, tril: Tensor, packed: bool) -> Tensor:
    r"""The divergence of :math:`q(z_i \mid z_{<i})` from N(0, 1), in expectation, for every i: ``(*, D)``."""
    dtype = compute_dtype(mu.dtype)
    lower = strictly_lower(tril.to(dtype), mu.shape[-1], packed)
    return 0.5 * (lower.square().sum(-1) + twice_kl(mu.to(dtype), log_sigma.to(dtype)))
