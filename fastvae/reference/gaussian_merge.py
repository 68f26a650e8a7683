r"""Two diagonal Gaussians merged by their precisions, in plain PyTorch.

.. math::
    u = 2 (\log\sigma_p - \log\hat\sigma), \quad w = \operatorname{sigmoid}(u), \quad r = 1 - w, \qquad
    \mu = \mu_p + w (\hat\mu - \mu_p), \quad \sigma = \sigma_p \sqrt r

The share w of the first Gaussian in the mean is its share of the precision; r is the merged variance over the prior's.
Half-precision inputs are computed in float32; the sample has the inputs' dtype, densities stay float32.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from ..precision import compute_dtype
from .diag_gaussian import draw_eps, standard_normal_log_prob


def merge(mu: Tensor, log_sigma: Tensor, prior_mu: Tensor, prior_log_sigma: Tensor) -> tuple[Tensor, Tensor]:
    u = 2.0 * (prior_log_sigma - log_sigma)
    return prior_mu + u.sigmoid() * (mu - prior_mu), prior_log_sigma + 0.5 * logsigmoid(-u)


def rsample(
    mu: Tensor,
    log_sigma: Tensor,
    prior_mu: Tensor,
    prior_log_sigma: Tensor,
    eps: Tensor | None,
    generator: torch.Generator | None,
    by_dimension: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The sample of the merged Gaussian, its log-density, that of the prior, and the divergence from the prior."""
    dtype, out_dtype = compute_dtype(mu.dtype), mu.dtype
    eps = draw_eps(tuple(prior_mu.shape), mu, generator) if eps is None else eps.to(dtype)
    mu, log_sigma, prior_mu, prior_log_sigma = (t.to(dtype) for t in (mu, log_sigma, prior_mu, prior_log_sigma))
    u = 2.0 * (prior_log_sigma - log_sigma)
    log_r = logsigmoid(-u)
    w = u.sigmoid()
    shift = w * (mu - prior_mu) * (-prior_log_sigma).exp()
    whitened = shift + (0.5 * log_r).exp() * eps
    z = prior_mu + prior_log_sigma.exp() * whitened
    log_q = standard_normal_log_prob(eps) - (prior_log_sigma + 0.5 * log_r).sum(-1)
    log_p = standard_normal_log_prob(whitened) - prior_log_sigma.sum(-1)
    twice_kl = shift.square() - w - log_r
    return z.to(out_dtype), log_q, log_p, 0.5 * (twice_kl if by_dimension else twice_kl.sum(-1))
