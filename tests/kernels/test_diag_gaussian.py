"""The diagonal launchers against formulas in float64: awkward shapes and strides, noise given and drawn."""

import pytest
import torch
from torch import Tensor

from fastvae.kernels import diag_gaussian, diag_gaussian_density
from tests.support.gaussian_launches import (
    DEVICE,
    Expected,
    cases,
    draws,
    move_to_device,
    noise_of,
    noises,
    rows,
    samples_of,
    standard_log_prob,
)
from tests.support.implementations import DTYPES


def diag_sample(mu: Tensor, log_sigma: Tensor, eps: Tensor) -> tuple[Tensor, Tensor]:
    return mu + log_sigma.exp() * eps, standard_log_prob(eps) - log_sigma.sum(-1)


def diag_log_prob(z: Tensor, mu: Tensor, log_sigma: Tensor) -> tuple[Tensor]:
    return (standard_log_prob((z - mu) / log_sigma.exp()) - log_sigma.sum(-1),)


def diag_kl(mu: Tensor, log_sigma: Tensor) -> tuple[Tensor]:
    return (0.5 * (mu**2 + (2 * log_sigma).exp() - 1 - 2 * log_sigma).sum(-1),)


def diag_kl_prior(mu: Tensor, log_sigma: Tensor, prior_mu: Tensor, prior_log_sigma: Tensor) -> tuple[Tensor]:
    ratio = log_sigma - prior_log_sigma
    whitened = (mu - prior_mu) / prior_log_sigma.exp()
    return (0.5 * (whitened**2 + (2 * ratio).exp() - 1 - 2 * ratio).sum(-1),)


def check_diag_sample(n, d, layout, samples, given, dtype=torch.float32):
    mu, log_sigma = (move_to_device(rows(n, d, layout=layout, scale=scale), dtype) for scale in (1.0, 0.5))
    noise, eps, row_offset = noise_of(given, samples, n, d)
    expected = Expected(diag_sample, [mu, log_sigma], (eps,))
    outputs = diag_gaussian.diag_gaussian_fwd(mu, log_sigma, noise, samples, row_offset)
    upstream = (*expected.upstream, log_sigma, noise, row_offset)
    expected.check(outputs, diag_gaussian.diag_gaussian_bwd_samples(*upstream))
    if samples == 1:
        expected.check(gradients=[expected.upstream[0][0], diag_gaussian.diag_gaussian_bwd(*upstream)])


def check_diag_sample_with_kl(n, d, layout, samples, given, by_dimension, dtype=torch.float32):
    mu, log_sigma = (move_to_device(rows(n, d, layout=layout, scale=scale), dtype) for scale in (1.0, 0.5))
    noise, eps, row_offset = noise_of(given, samples, n, d)

    def formula(mu: Tensor, log_sigma: Tensor, eps: Tensor) -> tuple[Tensor, ...]:
        parts = 0.5 * (mu**2 + (2 * log_sigma).exp() - 1 - 2 * log_sigma)
        return *diag_sample(mu, log_sigma, eps), parts if by_dimension else parts.sum(-1)

    expected = Expected(formula, [mu, log_sigma], (eps,))
    outputs = diag_gaussian.diag_gaussian_with_kl_fwd(mu, log_sigma, noise, samples, row_offset, by_dimension)
    expected.check(
        outputs, diag_gaussian.diag_gaussian_with_kl_bwd(*expected.upstream, mu, log_sigma, noise, row_offset)
    )
    for a, b in zip(outputs, diag_gaussian.diag_gaussian_fwd(mu, log_sigma, noise, samples, row_offset), strict=False):
        assert torch.equal(a, b)


@cases
@draws
@pytest.mark.parametrize("by_dimension", [False, True])
def test_diag_sample_with_kl(n, d, layout, samples, given, by_dimension):
    check_diag_sample_with_kl(n, d, layout, samples, given, by_dimension)


@pytest.mark.thorough
@pytest.mark.parametrize("by_dimension", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_diag_sample_with_kl_dtypes(dtype, by_dimension):
    check_diag_sample_with_kl(3, 96, "contiguous", 2, False, by_dimension, dtype)


@cases
@draws
def test_diag_sample(n, d, layout, samples, given):
    check_diag_sample(n, d, layout, samples, given)


@noises
@pytest.mark.parametrize("dtype", DTYPES)
def test_diag_sample_dtypes(dtype, given):
    check_diag_sample(3, 96, "contiguous", 2, given, dtype)


def check_diag_log_prob(n, d, layout, samples, dtype=torch.float32):
    mu, log_sigma = (move_to_device(rows(n, d, layout=layout, scale=scale), dtype) for scale in (1.0, 0.5))
    z = move_to_device(rows(samples, n, d, layout=layout), dtype)
    expected = Expected(diag_log_prob, [z, mu, log_sigma])
    log_q = diag_gaussian_density.diag_gaussian_log_prob_fwd(z, mu, log_sigma)
    gradients = diag_gaussian_density.diag_gaussian_log_prob_bwd(*expected.upstream, z, mu, log_sigma)
    expected.check([log_q], gradients)


@cases
@samples_of
def test_diag_log_prob(n, d, layout, samples):
    check_diag_log_prob(n, d, layout, samples)


@pytest.mark.parametrize("dtype", DTYPES)
def test_diag_log_prob_dtypes(dtype):
    check_diag_log_prob(3, 96, "contiguous", 2, dtype)


def check_diag_kl(n, d, layout, prior, dtype=torch.float32):
    scales = (1.0, 0.5, 1.0, 0.5) if prior else (1.0, 0.5)
    inputs = [move_to_device(rows(n, d, layout=layout, scale=scale), dtype) for scale in scales]
    expected = Expected(diag_kl_prior if prior else diag_kl, inputs)
    name = "diag_gaussian_kl_prior" if prior else "diag_gaussian_kl"
    kl = getattr(diag_gaussian_density, f"{name}_fwd")(*inputs)
    expected.check([kl], getattr(diag_gaussian_density, f"{name}_bwd")(*expected.upstream, *inputs))


@cases
@pytest.mark.parametrize("prior", [False, True])
def test_diag_kl(n, d, layout, prior):
    check_diag_kl(n, d, layout, prior)


@pytest.mark.parametrize("prior", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_diag_kl_dtypes(dtype, prior):
    check_diag_kl(3, 96, "contiguous", prior, dtype)


def test_no_samples_leave_zero_gradients():
    log_sigma = torch.zeros(2, 5, device=DEVICE)
    d_z, d_log_q, seed = log_sigma.new_empty(0, 2, 5), log_sigma.new_empty(0, 2), torch.tensor(1, device=DEVICE)
    gradients = diag_gaussian.diag_gaussian_bwd_samples(d_z, d_log_q, log_sigma, seed, 0)
    assert all((gradient == 0).all() for gradient in gradients)


@pytest.mark.parametrize("x", [float("inf"), -float("inf"), float("nan"), 200.0, -200.0])
def test_extreme_scales(x):
    log_sigma = torch.full((1, 2), x, device=DEVICE)
    z, _ = diag_gaussian.diag_gaussian_fwd(
        torch.zeros_like(log_sigma), log_sigma, torch.ones(1, 1, 2, device=DEVICE), 1, 0
    )
    torch.testing.assert_close(z[0], log_sigma.exp(), equal_nan=True)
