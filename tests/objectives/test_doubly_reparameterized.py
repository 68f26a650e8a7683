"""Doubly reparameterised gradients: on a linear-Gaussian model, whose log p(x) and posterior are known."""

import math

import pytest
import torch

from fastvae.distributions import DiagonalGaussian
from fastvae.objectives import dreg_bound, iwae_bound, standard_normal_log_prob

SIGMA_X = 0.6
SLOPE = torch.tensor([1.3, -0.4, 0.8], dtype=torch.float64)
X = torch.tensor([0.7, -1.1, 0.2], dtype=torch.float64)


def exact_posterior():
    """Of z ~ N(0, 1), x ~ N(slope z, sigma_x^2), by dimension."""
    precision = 1.0 + (SLOPE / SIGMA_X).square()
    return SLOPE * X / SIGMA_X**2 / precision, -0.5 * precision.log()


def parameters(shift):
    mu, log_sigma = exact_posterior()
    return [(mu + shift).requires_grad_(), (log_sigma + 0.5 * shift).requires_grad_(), SLOPE.clone().requires_grad_()]


def log_weights(mu, log_sigma, slope, shape, generator, detach, beta=1.0):
    z = DiagonalGaussian(mu, log_sigma).rsample_with_log_prob(shape, generator=generator)[0]
    if detach:
        mu, log_sigma = mu.detach(), log_sigma.detach()
    log_p_x = -0.5 * ((X - slope * z) / SIGMA_X).square() - math.log(SIGMA_X * math.sqrt(2.0 * math.pi))
    return log_p_x.sum(-1) + beta * (standard_normal_log_prob(z) - DiagonalGaussian(mu, log_sigma).log_prob(z)), z


def bounds_of(given, shape, seed):
    generator = torch.Generator().manual_seed(seed)
    log_w, z = log_weights(*given, shape, generator, detach=True)
    return dreg_bound(log_w, [z])


@pytest.mark.parametrize("samples", [1, 2, 7])
def test_value_and_the_models_gradient_are_those_of_the_usual_bound(samples):
    found, usual = parameters(0.3), parameters(0.3)
    ours = bounds_of(found, (samples, 50), seed=1)
    theirs = iwae_bound(log_weights(*usual, (samples, 50), torch.Generator().manual_seed(1), detach=False)[0])
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    (d_ours,) = torch.autograd.grad(ours.sum(), found[2])
    # What reaches the slope through z is the posterior's.
    log_w, _ = log_weights(*[t.detach() for t in usual[:2]], usual[2], (samples, 50), generator_of(1), detach=False)
    (d_theirs,) = torch.autograd.grad(iwae_bound(log_w).sum(), usual[2])
    torch.testing.assert_close(d_ours, d_theirs, rtol=1e-10, atol=1e-12)


def generator_of(seed):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(("samples", "beta"), [(1, 1.0), (5, 1.0), (5, 0.3), (2, 0.0)])
def test_expectation_is_that_of_the_usual_gradient(samples, beta):
    draws = 40_000
    difference = []
    for detach in (True, False):
        mu, log_sigma, slope = parameters(0.3)
        rows = [t.expand(draws, 3).clone().detach().requires_grad_() for t in (mu, log_sigma)]
        log_w, z = log_weights(*rows, slope, (samples,), generator_of(3 + detach), detach, beta)
        bound = dreg_bound(log_w, [z], beta=beta) if detach else iwae_bound(log_w)
        difference.append(torch.cat(torch.autograd.grad(bound.sum(), rows), 1))
    ours, usual = difference
    error = ((ours.var(0) + usual.var(0)) / draws).sqrt()
    assert ((ours.mean(0) - usual.mean(0)).abs() / error).max() < 4
    assert (ours.mean(0).abs() / error).max() > 20
    assert samples == 1 or beta == 0 or (ours.var(0) < usual.var(0)).all()


def test_gradient_is_zero_at_the_exact_posterior():
    found = parameters(0.0)
    gradients = torch.autograd.grad(bounds_of(found, (9, 40), seed=2).sum(), found[:2])
    assert max(g.abs().max() for g in gradients) < 1e-12


def test_weights_are_squared_by_hand():
    log_w, factor = torch.tensor([[0.2], [1.1], [-0.3]], dtype=torch.float64), 1.7
    z = torch.ones(3, 1, 2, dtype=torch.float64, requires_grad=True)
    path = 1.0 * z
    dreg_bound(log_w + factor * path.sum(-1), [path]).sum().backward()
    weights = log_w.softmax(0)
    torch.testing.assert_close(z.grad, (factor * weights.square())[..., None].expand(3, 1, 2))


def test_samples_along_another_dimension():
    z = torch.randn(4, 3, 2, dtype=torch.float64, requires_grad=True)
    path = 1.0 * z
    dreg_bound(path.sum(-1), [path], dim=1).sum().backward()
    weights = z.detach().sum(-1).softmax(1).square()
    torch.testing.assert_close(z.grad, weights[..., None].expand(4, 3, 2))


def test_bad_input():
    log_w = torch.zeros(3, 2)
    with pytest.raises(
        ValueError, match=r"paths\[1\] must have the shape of log_w, \(3, 2\), and one .* got \(2, 3, 4\)"
    ):
        dreg_bound(log_w, [torch.zeros(3, 2, 4), torch.zeros(2, 3, 4)])
    with pytest.raises(ValueError, match="log_w must hold at least one sample"):
        dreg_bound(torch.zeros(0, 2), [])
    with pytest.raises(TypeError, match=r"paths\[0\]"):
        dreg_bound(log_w, [torch.zeros(3, 2, 4, dtype=torch.int64)])
    with pytest.raises(ValueError, match="beta must be finite, got nan"):
        dreg_bound(log_w, [], beta=math.nan)
