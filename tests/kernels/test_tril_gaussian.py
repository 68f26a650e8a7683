"""The triangular launchers against formulas in float64: awkward shapes and strides, noise given and drawn."""

import math

import pytest
import torch
from torch import Tensor

from fastvae.kernels import tril_gaussian, tril_gaussian_density
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

triangles = pytest.mark.parametrize("dense", [False, True], ids=["packed", "dense"])


def below_diagonal(d: int) -> Tensor:
    return torch.ones(d, d, dtype=torch.bool, device=DEVICE).tril(-1)


def triangle(n: int, d: int, dense: bool, layout: str = "contiguous") -> Tensor:
    """T, with NaN wherever nothing may be read."""
    scale = 1.0 / math.sqrt(d)
    if not dense:
        return rows(n, d * (d - 1) // 2, layout=layout, scale=scale)
    tril = rows(n, d, d, layout=layout, scale=scale)
    distinct = tril[:1] if layout == "broadcast" else tril
    distinct.masked_fill_(~below_diagonal(d).cpu(), float("nan"))
    return tril


def factor(log_sigma: Tensor, tril: Tensor) -> Tensor:
    """diag(sigma) + T."""
    below = below_diagonal(log_sigma.shape[1])
    if tril.dim() == 3:
        strict = torch.where(below, tril, 0.0)
    else:
        strict = tril.new_zeros(*log_sigma.shape, log_sigma.shape[1])
        strict[:, below] = tril
    return strict + torch.diag_embed(log_sigma.exp())


def tril_sample(mu: Tensor, log_sigma: Tensor, tril: Tensor, eps: Tensor) -> tuple[Tensor, Tensor]:
    z = mu + torch.einsum("nij,knj->kni", factor(log_sigma, tril), eps)
    return z, standard_log_prob(eps) - log_sigma.sum(-1)


def tril_log_prob(z: Tensor, mu: Tensor, log_sigma: Tensor, tril: Tensor) -> tuple[Tensor]:
    eps = torch.linalg.solve_triangular(factor(log_sigma, tril), (z - mu)[..., None], upper=False)[..., 0]
    return (standard_log_prob(eps) - log_sigma.sum(-1),)


def tril_kl(mu: Tensor, log_sigma: Tensor, tril: Tensor) -> tuple[Tensor]:
    squares = factor(log_sigma, tril).square().sum((-1, -2)) + mu.square().sum(-1) - mu.shape[-1]
    return (0.5 * squares - log_sigma.sum(-1),)


def tril_inputs(n, d, layout, dense, dtype) -> list[Tensor]:
    parameters = [rows(n, d, layout=layout), rows(n, d, layout=layout, scale=0.5), triangle(n, d, dense, layout)]
    return [move_to_device(t, dtype) for t in parameters]


def assert_zero_above(d_tril: Tensor) -> None:
    if d_tril.dim() == 3:
        assert (d_tril[:, ~below_diagonal(d_tril.shape[1])] == 0).all()


def check_tril_sample(n, d, layout, samples, given, dense, dtype=torch.float32):
    mu, log_sigma, tril = tril_inputs(n, d, layout, dense, dtype)
    noise, eps, row_offset = noise_of(given, samples, n, d)
    expected = Expected(tril_sample, [mu, log_sigma, tril], (eps,))
    outputs = tril_gaussian.tril_gaussian_fwd(mu, log_sigma, tril, noise, samples, row_offset)
    gradients = tril_gaussian.tril_gaussian_bwd(*expected.upstream, log_sigma, noise, row_offset, dense)
    expected.check(outputs, gradients)
    assert_zero_above(gradients[2])


def check_tril_sample_with_kl(n, d, layout, samples, given, dense, dtype=torch.float32):
    mu, log_sigma, tril = tril_inputs(n, d, layout, dense, dtype)
    noise, eps, row_offset = noise_of(given, samples, n, d)

    def formula(mu: Tensor, log_sigma: Tensor, tril: Tensor, eps: Tensor) -> tuple[Tensor, ...]:
        parts = 0.5 * (factor(log_sigma, tril).square().sum(-1) + mu**2 - 1) - log_sigma
        return *tril_sample(mu, log_sigma, tril, eps), parts

    expected = Expected(formula, [mu, log_sigma, tril], (eps,))
    outputs = tril_gaussian.tril_gaussian_with_kl_fwd(mu, log_sigma, tril, noise, samples, row_offset)
    gradients = tril_gaussian.tril_gaussian_with_kl_bwd(*expected.upstream, mu, log_sigma, tril, noise, row_offset)
    expected.check(outputs, gradients)
    assert_zero_above(gradients[2])


@cases
@draws
@triangles
def test_tril_sample_with_kl(n, d, layout, samples, given, dense):
    check_tril_sample_with_kl(n, d, layout, samples, given, dense)


@triangles
@pytest.mark.parametrize("dtype", DTYPES)
def test_tril_sample_with_kl_dtypes(dtype, dense):
    check_tril_sample_with_kl(3, 37, "contiguous", 2, False, dense, dtype)


@triangles
def test_one_gradient_for_all_dimensions_of_a_row(dense):
    parameters = tril_inputs(3, 9, "strided", dense, torch.float32)
    d_z, d_log_q, d_kl = (torch.randn(size, device=DEVICE) for size in ((2, 3, 9), (2, 3), (3,)))
    seed = torch.tensor(5, device=DEVICE)
    gradients, repeated = (
        tril_gaussian.tril_gaussian_with_kl_bwd(d_z, d_log_q, d, *parameters, seed, 0)
        for d in (d_kl, d_kl[:, None].repeat(1, 9))
    )
    for a, b in zip(gradients, repeated, strict=True):
        assert torch.equal(a, b)


@cases
@draws
@triangles
def test_tril_sample(n, d, layout, samples, given, dense):
    check_tril_sample(n, d, layout, samples, given, dense)


@noises
@triangles
@pytest.mark.parametrize("dtype", DTYPES)
def test_tril_sample_dtypes(dtype, given, dense):
    check_tril_sample(3, 37, "contiguous", 2, given, dense, dtype)


def check_tril_log_prob(n, d, layout, samples, dense, dtype=torch.float32):
    mu, log_sigma, tril = tril_inputs(n, d, layout, dense, dtype)
    z = move_to_device(rows(samples, n, d, layout=layout), dtype)
    expected = Expected(tril_log_prob, [z, mu, log_sigma, tril])
    log_q, eps = tril_gaussian_density.tril_gaussian_log_prob_fwd(z, mu, log_sigma, tril)
    gradients = tril_gaussian_density.tril_gaussian_log_prob_bwd(*expected.upstream, eps, log_sigma, tril)
    expected.check([log_q], gradients)
    assert_zero_above(gradients[3])


@cases
@samples_of
@triangles
def test_tril_log_prob(n, d, layout, samples, dense):
    check_tril_log_prob(n, d, layout, samples, dense)


@triangles
@pytest.mark.parametrize("dtype", DTYPES)
def test_tril_log_prob_dtypes(dtype, dense):
    check_tril_log_prob(3, 37, "contiguous", 2, dense, dtype)


def check_tril_kl(n, d, layout, dense, dtype=torch.float32):
    inputs = tril_inputs(n, d, layout, dense, dtype)
    expected = Expected(tril_kl, inputs)
    kl = tril_gaussian_density.tril_gaussian_kl_fwd(*inputs)
    gradients = tril_gaussian_density.tril_gaussian_kl_bwd(*expected.upstream, *inputs)
    expected.check([kl], gradients)
    assert_zero_above(gradients[2])


@cases
@triangles
def test_tril_kl(n, d, layout, dense):
    check_tril_kl(n, d, layout, dense)


@triangles
@pytest.mark.parametrize("dtype", DTYPES)
def test_tril_kl_dtypes(dtype, dense):
    check_tril_kl(3, 37, "contiguous", dense, dtype)


def test_no_samples_leave_zero_gradients():
    log_sigma = torch.zeros(2, 5, device=DEVICE)
    d_z, d_log_q, seed = log_sigma.new_empty(0, 2, 5), log_sigma.new_empty(0, 2), torch.tensor(1, device=DEVICE)
    gradients = tril_gaussian.tril_gaussian_bwd(d_z, d_log_q, log_sigma, seed, 0, True)
    assert all((gradient == 0).all() for gradient in gradients)
