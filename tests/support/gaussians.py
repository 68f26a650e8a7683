"""Inputs of the Gaussian ops, and every entry point of both as a problem for the oracle."""

from __future__ import annotations

import math

import torch
from torch import Tensor

import fastvae.functional as F
from tests.support.oracle import Problem


def packed_size(features: int) -> int:
    return features * (features - 1) // 2


def gaussian_inputs(batch: tuple[int, ...], features: int) -> list[Tensor]:
    return [torch.randn(*batch, features), 0.5 * torch.randn(*batch, features)]


def tril_input(batch: tuple[int, ...], features: int, dense: bool) -> Tensor:
    """Small enough that solves stay well conditioned; NaN where nothing may be read."""
    if not dense:
        return 0.5 * torch.randn(*batch, packed_size(features)) / math.sqrt(features)
    tril = 0.5 * torch.randn(*batch, features, features) / math.sqrt(features)
    upper = torch.ones(features, features, dtype=torch.bool).triu()
    return tril.masked_fill(upper, float("nan"))


def problems(
    stem: str, batch: tuple[int, ...], features: int, sample_shape: tuple[int, ...] = (), dense: bool = False
) -> dict[str, Problem]:
    """Every entry point of a stem on random inputs, noise given."""
    mu, log_sigma = gaussian_inputs(batch, features)
    noise = torch.randn(*sample_shape, *batch, features)
    z = torch.randn(*sample_shape, *batch, features)
    if stem == "diag_gaussian":
        prior = gaussian_inputs(batch, features)
        made = {
            "rsample": Problem(
                lambda impl, p: F.diag_gaussian_rsample(*p, sample_shape, eps=noise.to(p[0]), impl=impl),
                [mu, log_sigma],
            ),
            "with_kl": Problem(
                lambda impl, p: F.diag_gaussian_rsample_with_kl(*p, sample_shape, eps=noise.to(p[0]), impl=impl),
                [mu, log_sigma],
            ),
            "with_kl_of_dimensions": Problem(
                lambda impl, p: F.diag_gaussian_rsample_with_kl(
                    *p, sample_shape, kl="dimensions", eps=noise.to(p[0]), impl=impl
                ),
                [mu, log_sigma],
            ),
            "log_prob": Problem(lambda impl, p: (F.diag_gaussian_log_prob(*p, impl=impl),), [z, mu, log_sigma]),
            "kl": Problem(lambda impl, p: (F.diag_gaussian_kl(*p, impl=impl),), [mu, log_sigma]),
            "kl_prior": Problem(lambda impl, p: (F.diag_gaussian_kl(*p, impl=impl),), [mu, log_sigma, *prior]),
        }
    else:
        tril = tril_input(batch, features, dense)
        made = {
            "rsample": Problem(
                lambda impl, p: F.tril_gaussian_rsample(*p, sample_shape, eps=noise.to(p[0]), impl=impl),
                [mu, log_sigma, tril],
            ),
            "with_kl": Problem(
                lambda impl, p: F.tril_gaussian_rsample_with_kl(*p, sample_shape, eps=noise.to(p[0]), impl=impl),
                [mu, log_sigma, tril],
            ),
            "with_kl_of_dimensions": Problem(
                lambda impl, p: F.tril_gaussian_rsample_with_kl(
                    *p, sample_shape, kl="dimensions", eps=noise.to(p[0]), impl=impl
                ),
                [mu, log_sigma, tril],
            ),
            "log_prob": Problem(lambda impl, p: (F.tril_gaussian_log_prob(*p, impl=impl),), [z, mu, log_sigma, tril]),
            "kl": Problem(lambda impl, p: (F.tril_gaussian_kl(*p, impl=impl),), [mu, log_sigma, tril]),
        }
    for problem in made.values():
        for t in problem.inputs:
            t.requires_grad_()
    return made
