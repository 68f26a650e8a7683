"""Two Gaussians merged by their precisions: the product of their densities, sample, densities and divergence."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.distributions import Normal, kl_divergence

import fastvae.functional as F
from tests.support.implementations import DTYPES, IMPLEMENTATIONS, SHAPES, device_of
from tests.support.oracle import Problem, check

ENTRY_POINTS = ("sum", "dimensions")


def problem(batch, features, sample_shape=(), kl="sum", scale=0.5):
    mu, log_sigma = torch.randn(*batch, features), scale * torch.randn(*batch, features)
    prior_mu, prior_log_sigma = (s * torch.randn(*sample_shape, *batch, features) for s in (1.0, scale))
    noise = torch.randn(*sample_shape, *batch, features)
    return Problem(
        lambda impl, p: F.gaussian_merge_rsample(*p, kl=kl, eps=noise.to(p[0]), impl=impl),
        [t.requires_grad_() for t in (mu, log_sigma, prior_mu, prior_log_sigma)],
    )


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("kl", ENTRY_POINTS)
@pytest.mark.parametrize(("batch", "features"), SHAPES)
def test_forward_and_backward(batch, features, kl, impl):
    check(lambda: problem(batch, features, kl=kl), impl, torch.float32)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("kl", ENTRY_POINTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_dtypes(dtype, kl, impl):
    check(lambda: problem((6,), 34, kl=kl), impl, dtype)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("sample_shape", [(1,), (5,), (2, 3), (0,)])
def test_samples_of_the_prior(sample_shape, impl):
    for kl in ENTRY_POINTS:
        check(lambda kl=kl: problem((4,), 9, sample_shape, kl), impl, torch.float32)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_scales_far_apart(impl):
    check(lambda: problem((5,), 33, scale=6.0), impl, torch.float32)


@given(
    batch=st.lists(st.integers(0, 4), max_size=3).map(tuple),
    features=st.integers(1, 80),
    sample_shape=st.lists(st.integers(1, 3), max_size=2).map(tuple),
    kl=st.sampled_from(ENTRY_POINTS),
)
def test_any_shape(batch, features, sample_shape, kl):
    check(lambda: problem(batch, features, sample_shape, kl), "cpp", torch.float32)


@pytest.mark.parametrize("impl", ["reference", "cpp"])
@pytest.mark.parametrize("kl", ENTRY_POINTS)
def test_gradcheck(kl, impl):
    made = problem((3,), 5, (2,), kl)
    inputs = [t.detach().double().requires_grad_() for t in made.inputs]
    assert torch.autograd.gradcheck(lambda *p: made.call(impl, p), inputs)
    assert torch.autograd.gradgradcheck(lambda *p: made.call(impl, p), inputs)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_merge_is_the_product_of_the_densities(impl):
    """The log of the product of two densities, minus that of the merged one, is the same at every point."""
    torch.manual_seed(0)
    mu, log_sigma, prior_mu, prior_log_sigma = (0.7 * torch.randn(3, 4, dtype=torch.float64) for _ in range(4))
    merged_mu, merged_log_sigma = F.gaussian_merge(mu, log_sigma, prior_mu, prior_log_sigma)
    points = torch.randn(50, 3, 4, dtype=torch.float64)

    def log_density(mu, log_sigma):
        return Normal(mu, log_sigma.exp()).log_prob(points)

    ratio = log_density(mu, log_sigma) + log_density(prior_mu, prior_log_sigma)
    ratio = ratio - log_density(merged_mu, merged_log_sigma)
    torch.testing.assert_close(ratio, ratio[:1].expand_as(ratio), rtol=1e-10, atol=1e-10)
    precision = (-2 * log_sigma).exp() + (-2 * prior_log_sigma).exp()
    torch.testing.assert_close((-2 * merged_log_sigma).exp(), precision)

    dtype = torch.float32 if impl == "triton" else torch.float64
    parameters = [t.to(device_of(impl), dtype) for t in (mu, log_sigma, prior_mu, prior_log_sigma)]
    eps = torch.randn(3, 4, dtype=torch.float64)
    z, log_q, log_p, kl = F.gaussian_merge_rsample(*parameters, kl="dimensions", eps=eps.to(parameters[0]), impl=impl)
    q, p = Normal(merged_mu, merged_log_sigma.exp()), Normal(prior_mu, prior_log_sigma.exp())
    close = {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 1e-12, "atol": 1e-12}
    for got, expected in (
        (z, q.loc + q.scale * eps),
        (log_q, q.log_prob(z.double().cpu()).sum(-1)),
        (log_p, p.log_prob(z.double().cpu()).sum(-1)),
        (kl, kl_divergence(q, p)),
    ):
        torch.testing.assert_close(got.double().cpu(), expected, **close)


def test_noise_is_that_of_a_gaussian_with_as_many_samples():
    shape = (3, 5, 21)
    zero = torch.zeros(shape[1:])
    options = {"row_offset": 4, "impl": "cpp"}
    expected = F.diag_gaussian_rsample(zero, zero, shape[:1], generator=torch.Generator().manual_seed(2), **options)[0]
    # A Gaussian without precision leaves the prior as it is.
    flat, prior = torch.full_like(zero, 60.0), torch.zeros(shape)
    z, *_ = F.gaussian_merge_rsample(zero, flat, prior, prior, generator=torch.Generator().manual_seed(2), **options)
    assert torch.equal(z, expected)


@pytest.mark.parametrize("impl", ["cpp", "triton"])
def test_drawn_noise_is_that_of_the_backward_pass(impl):
    """Gradients with a seed are those with the noise that the seed gives."""
    made = problem((4,), 19, (2,)).to(torch.float32, device_of(impl))
    parameters = [t.detach() for t in made.inputs]
    flat = torch.full_like(parameters[0], 60.0)
    zero = torch.zeros_like(parameters[2])

    def generator():
        return torch.Generator(parameters[0].device).manual_seed(3)

    eps = F.gaussian_merge_rsample(parameters[0] * 0, flat, zero, zero, generator=generator(), impl=impl)[0]
    found = []
    for noise in ({"generator": generator()}, {"eps": eps}):
        inputs = [t.clone().requires_grad_() for t in parameters]
        outputs = F.gaussian_merge_rsample(*inputs, **noise, impl=impl)
        found.append([*outputs, *torch.autograd.grad([o.square().sum() for o in outputs], inputs)])
    for with_seed, with_noise in zip(*found, strict=True):
        torch.testing.assert_close(with_seed, with_noise, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("impl", ["cpp", "triton"])
def test_strides(impl):
    """Halves of one layer's output, transposed, expanded: read in place, with the values of contiguous inputs."""
    made = problem((6,), 20).to(torch.float32, device_of(impl))
    expected = made.outputs(impl)
    for relayout in (
        lambda t: torch.cat([t, t], -1).chunk(2, -1)[0],
        lambda t: t.t().contiguous().t(),
        lambda t: torch.stack([t, t], -1)[..., 0],
    ):
        found = made.call(impl, [relayout(t.detach()) for t in made.inputs])
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=0)


@pytest.mark.parametrize("used", [(0,), (1,), (2,), (3,), (0, 3), (1, 2)])
def test_outputs_that_nobody_uses(used):
    made = problem((4,), 9, (3,))
    results = []
    for impl in ("cpp", "reference"):
        outputs = made.outputs(impl)
        loss = sum((outputs[i] * (i + 1)).square().sum() for i in used)
        results.append(torch.autograd.grad(loss, made.inputs, allow_unused=True))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, torch.zeros_like(ours) if theirs is None else theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("sample_shape", [(), (3,)])
def test_compiled_fullgraph(sample_shape):
    made = problem((4,), 9, sample_shape)
    noise = torch.randn(*sample_shape, 4, 9)
    parameters = [t.detach().requires_grad_() for t in made.inputs]

    def loss(*p):
        z, log_q, log_p, kl = F.gaussian_merge_rsample(*p, eps=noise)
        return z.square().sum() + (log_q * 2 - log_p).sum() + kl.square().sum()

    expected = torch.autograd.grad(loss(*parameters), parameters)
    found = torch.autograd.grad(torch.compile(loss, fullgraph=True)(*parameters), parameters)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_equal_gaussians_halve_the_variance():
    zero = torch.zeros(2, 3)
    z, log_q, log_p, kl = F.gaussian_merge_rsample(zero + 1.0, zero, zero, zero, eps=zero)
    torch.testing.assert_close(z, zero + 0.5)
    assert kl[0].item() == pytest.approx(3 * 0.5 * (0.5 + 0.25 - 1.0 + math.log(2.0)), rel=1e-5)
    assert (log_q > log_p).all()


def test_bad_input():
    mu = torch.zeros(4, 3)
    with pytest.raises(ValueError, match=r"prior_mu must have as many features as mu, 3, got \(4, 2\)"):
        F.gaussian_merge_rsample(mu, mu, mu[:, :2], mu[:, :2])
    with pytest.raises(ValueError, match=r"prior_mu must have shape \(\*sample_shape, \*, D\) for mu .* got \(5, 3\)"):
        F.gaussian_merge_rsample(mu, mu, torch.zeros(5, 3), torch.zeros(5, 3))
    with pytest.raises(TypeError, match="prior_log_sigma"):
        F.gaussian_merge_rsample(mu, mu, mu, mu.double())
    with pytest.raises(ValueError, match=r"eps must have the shape of the sample, \(4, 3\), got \(3,\)"):
        F.gaussian_merge_rsample(mu, mu, mu, mu, eps=torch.zeros(3))
    with pytest.raises(ValueError, match="kl must be"):
        F.gaussian_merge_rsample(mu, mu, mu, mu, kl="mean")
    with pytest.raises(ValueError, match="eps and generator exclude each other"):
        F.gaussian_merge_rsample(mu, mu, mu, mu, eps=mu, generator=torch.Generator())
    with pytest.raises(ValueError, match=r"log_sigma must have as many features as mu, 3, got \(4, 1\)"):
        F.gaussian_merge(mu, mu[:, :1], mu, mu)
