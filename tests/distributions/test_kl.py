"""Kullback-Leibler divergences between the posteriors and their priors, and the standard normal prior."""

import pytest
import torch
from torch.distributions import Independent, Laplace, Normal, kl_divergence

from fastvae.distributions import DiagonalGaussian, StandardNormal, TriangularGaussian
from tests.support.implementations import device_of
from tests.support.posteriors import (
    KINDS,
    assert_same,
    every_case,
    every_impl,
    every_kind,
    of_torch_full,
    parameters,
    posterior,
)


@every_impl
@every_kind
@every_case
def test_kl_divergence(batch, features, kind, impl):
    device = device_of(impl)
    made = parameters(kind, batch, features, device=device)
    q = posterior(made, impl)

    def to_prior(prior):
        # Between MultivariateNormals, so that every pair has one reference.
        return lambda _, p: kl_divergence(of_torch_full(p), of_torch_full([t.to(p[0]) for t in prior]))

    zero = torch.zeros(features, device=device)
    assert_same(kl_divergence(q, StandardNormal(features)), made, to_prior((zero, zero)))
    prior = [t.detach() for t in parameters("diagonal", batch, features, device=device)]
    assert_same(kl_divergence(q, DiagonalGaussian(*prior)), made, to_prior(prior))
    if kind == "diagonal":
        normal = Independent(Normal(prior[0], prior[1].exp()), 1)
        assert_same(kl_divergence(q, normal), made, to_prior(prior))


def test_standard_normal():
    prior = StandardNormal(3, (2,), dtype=torch.float64)
    z = torch.randn(5, 2, 3, dtype=torch.float64)
    torch.testing.assert_close(prior.log_prob(z), Normal(0.0, 1.0).log_prob(z).sum(-1))
    assert prior.sample((4,)).shape == (4, 2, 3)
    assert prior.sample().dtype == torch.float64
    large = prior.expand((7, 2))
    assert type(large) is StandardNormal
    for kind in KINDS:
        q = posterior(parameters(kind, (2,), 3))
        torch.testing.assert_close(kl_divergence(q, large), kl_divergence(q, StandardNormal(3)).expand(7, 2))
    torch.testing.assert_close(kl_divergence(prior, large), torch.zeros(7, 2, dtype=torch.float64))


def test_prior_broadcasts_against_the_posterior():
    q = DiagonalGaussian(*parameters("diagonal", (4,), 3))
    prior = DiagonalGaussian(*parameters("diagonal", (5, 1), 3))
    assert kl_divergence(q, prior).shape == (5, 4)
    q = TriangularGaussian(*parameters("packed", (4,), 3))
    assert kl_divergence(q, prior).shape == (5, 4)


ZERO = torch.zeros(2, 3)
Q = DiagonalGaussian(ZERO, ZERO)


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: kl_divergence(Q, StandardNormal(4)), ValueError, r"one event shape, got \(3,\) and \(4,\)"),
        (
            lambda: kl_divergence(Q, Independent(Laplace(ZERO, ZERO + 1), 1)),
            NotImplementedError,
            r"DiagonalGaussian to Independent\(Laplace",
        ),
        (
            lambda: kl_divergence(Q, Independent(Normal(ZERO, ZERO + 1), 2)),
            NotImplementedError,
            "is not known",
        ),
    ],
)
def test_bad_arguments(call, error, match):
    with pytest.raises(error, match=match):
        call()
