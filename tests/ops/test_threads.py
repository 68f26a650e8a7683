"""The number of threads changes no bit of any result or gradient: the order of all sums depends on the shapes alone."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

import fastvae.functional as F
from fastvae.ops import linear_bernoulli
from tests.support.convolutions import Form
from tests.support.long_sums import (
    PROBLEMS,
    classes,
    convolution,
    decoder_likelihood,
    density,
    factor,
    flow,
    gaussian,
    gaussian_head,
    latent,
    layer,
    likelihood,
    pointwise,
    sampled,
)
from tests.support.masked_layers import norm_problem, spread
from tests.support.mixtures import problem as mixture
from tests.support.oracle import Problem, run_with_gradients
from tests.support.units import unit_problem
from tests.support.windows import window_problem, written_problem

THREADS = (1, 2, 3, 5)

# With rows, images or samples for all threads; the problems of long sums have few of some.
SPLIT = {
    "diag_gaussian, many rows": lambda: sampled(F.diag_gaussian_rsample, 4, *gaussian(3000, 70)),
    "diag_gaussian, many densities": lambda: density(F.diag_gaussian_log_prob, 300, *gaussian(40, 70)),
    "gaussian_merge, many rows": lambda: merged(3000, 70),
    "tril_gaussian, many rows": lambda: sampled(
        F.tril_gaussian_rsample, 2, *gaussian(1000, 30), factor(1000, 30, True)
    ),
    "tril_gaussian, many samples": lambda: sampled(
        F.tril_gaussian_rsample, 1100, *gaussian(9, 20), factor(9, 20, False)
    ),
    "tril_gaussian, many densities": lambda: density(
        F.tril_gaussian_log_prob, 300, *gaussian(20, 30), factor(20, 30, False)
    ),
    "attention_window, two images": lambda: window_problem((300,), 2, (28, 28), images=2),
    "attention_window, written": lambda: written_problem((300,), 5, (28, 28)),
    "bernoulli, many rows": lambda: unit_problem((3000,), 70, (2,), True),
    "affine_flow, many rows": lambda: pointwise(F.affine_flow, *[(3000, 70)] * 3, kind="gated"),
    "masked_linear, few rows": lambda: layer(70, 300, 400),
    "masked_linear, norm": lambda: norm_problem(
        torch.randn(600, 700).requires_grad_(), (spread(700, 6), spread(600, 6))
    ),
    "autoregressive_flow, few rows": lambda: flow("flow", 70, 40),
    "autoregressive_inverse, few rows": lambda: flow("inverse", 70, 40),
    "class_linear, few rows": lambda: classes(100, 10, 300, each=False),
    "class_linear, cells": lambda: classes(300, 7, 120, each=True),
    "linear_bernoulli, samples": lambda: likelihood(9, 300, 50, 20),
    "linear_bernoulli, lanes of one block": lambda: likelihood(1, 41, 300, 200),
    "linear_bernoulli, lanes of two blocks": lambda: likelihood(2, 37, 300, 200),
    "linear_tril_gaussian, few rows": lambda: gaussian_head(70, 300, 30),
    "linear_tril_gaussian, many rows": lambda: gaussian_head(1500, 20, 12),
    "mlp_bernoulli, blocks": lambda: decoder_likelihood(200, (8, 40, 60)),
    "mlp_bernoulli, lanes of one block": lambda: decoder_likelihood(41, (8, 200, 300), differentiated=True),
    "mlp_bernoulli, gradients": lambda: decoder_likelihood(190, (8, 40, 60), differentiated=True),
    "latent_gradient, blocks": lambda: latent(200, (8, 40, 60)),
    "latent_gradient, parts": lambda: latent(3, (30, 600, 700, 900)),
    "masked_conv2d, bands of one image": lambda: convolution(16, 33, 29, 1, dilation=(2, 1), activation="elu"),
    "masked_conv2d, images": lambda: Form(16, 33, image=(29, 31), batch=3, dilation=(2, 1), activation="elu").problem(),
    "masked_conv2d, many images": lambda: convolution(3, 33, 29, 77),
    "gated_activation, a vector each": lambda: gate_of_vectors(4, 64, 28),
    "logistic_mixture, colours": lambda: mixture(2, 3, 5, 40, 40),
}


def merged(rows: int, features: int) -> Problem:
    mu, log_sigma, prior_mu, prior_log_sigma = (0.5 * torch.randn(rows, features) for _ in range(4))
    return Problem(
        lambda impl, p: F.gaussian_merge_rsample(*p, generator=torch.Generator().manual_seed(1), impl=impl),
        [t.requires_grad_() for t in (mu, log_sigma, prior_mu, prior_log_sigma)],
    )


def gate_of_vectors(images: int, features: int, size: int) -> Problem:
    return pointwise(F.gated_activation, (images, 2 * features, size, size), (images, 2 * features))


def results(problem: Problem, threads: int) -> list[Tensor]:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        upstream = [torch.linspace(-1, 2, o.numel()).view(o.shape) for o in problem.outputs("cpp")]
        return run_with_gradients(problem, "cpp", upstream)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("name", PROBLEMS | SPLIT)
def test_threads_do_not_change_a_bit(name):
    problem = (PROBLEMS | SPLIT)[name]()
    expected, *others = (results(problem, threads) for threads in THREADS)
    for other in others:
        for i, (a, b) in enumerate(zip(other, expected, strict=True)):
            assert torch.equal(a, b), f"result {i}"


@pytest.mark.parametrize("of", ["samples", "lanes of one block", "lanes of two blocks"])
def test_threads_share_residuals_that_are_computed_again(of, monkeypatch):
    monkeypatch.setattr(linear_bernoulli, "_MOST_KEPT_BYTES", 0)
    problem = SPLIT[f"linear_bernoulli, {of}"]()
    expected, *others = (results(problem, threads) for threads in THREADS)
    for other in others:
        assert all(map(torch.equal, other, expected))


def test_threads_draw_the_same_noise():
    mu, log_sigma = gaussian(3000, 70)
    drawn = []
    for threads in THREADS:
        problem = Problem(
            lambda impl, p: F.diag_gaussian_rsample(*p, generator=torch.Generator().manual_seed(1), impl=impl),
            [mu, log_sigma],
        )
        drawn.append(results(problem, threads))
    for other in drawn[1:]:
        assert all(map(torch.equal, other, drawn[0]))


def test_every_op_is_here():
    """The sampler has a test of its own, and draws images."""
    stems = {path.stem for path in (Path(F.__file__).parent / "reference").glob("[!_]*.py")}
    covered = {name.split(",")[0] for name in PROBLEMS | SPLIT}
    assert stems - covered <= {"bounds", "causal_sampler", "made", "philox"}
