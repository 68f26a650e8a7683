"""The posteriors as torch.distributions, against Independent(Normal) and MultivariateNormal."""

import math

import pytest
import torch
from torch.distributions import (
    kl_divergence,
)

from fastvae.distributions import DiagonalGaussian, StandardNormal, TriangularGaussian
from tests.support.implementations import device_of
from tests.support.posteriors import (
    assert_same,
    every_case,
    every_impl,
    every_kind,
    of_torch_full,
    parameters,
    posterior,
    scale_tril,
)


@every_impl
@every_kind
@every_case
def test_sample_and_log_prob(batch, features, kind, impl):
    made = parameters(kind, batch, features, device=device_of(impl))
    q = posterior(made, impl)
    assert q.batch_shape == batch
    assert q.event_shape == (features,)
    eps = torch.randn(7, *batch, features).to(made[0])
    z, log_q = q.rsample_with_log_prob((7,), eps=eps)
    assert_same(z, made, lambda _, p: p[0] + (scale_tril(p) @ eps.to(p[0])[..., None])[..., 0])
    # One's own log-density is that of torch at the same noise, not at the rounded sample.
    exact_z = made[0].double() + (scale_tril(made).double() @ eps.double()[..., None])[..., 0]
    assert_same(log_q, made, lambda q, p: q.log_prob(exact_z.to(p[0])))
    assert z.requires_grad
    assert log_q.requires_grad


@every_impl
@every_kind
@every_case
def test_log_prob_of_foreign_points(batch, features, kind, impl):
    made = parameters(kind, batch, features, device=device_of(impl))
    z = torch.randn(3, *batch, features).to(made[0])
    assert_same(posterior(made, impl).log_prob(z), made, lambda q, p: q.log_prob(z.to(p[0])))


@every_kind
@every_case
def test_moments(batch, features, kind):
    made = parameters(kind, batch, features)
    q = posterior(made)
    assert_same(q.entropy(), made, lambda q, _: q.entropy())
    assert_same(q.mean, made, lambda q, _: q.mean)
    assert_same(q.mode, made, lambda q, _: q.mode)
    assert_same(q.variance, made, lambda q, _: q.variance)
    assert_same(q.stddev, made, lambda q, _: q.stddev)
    assert q.loc is q.mu
    for name in ("scale_tril", "covariance_matrix", "precision_matrix"):
        assert_same(getattr(q, name), made, lambda _, p, name=name: getattr(of_torch_full(p), name))


@every_kind
def test_matrices(kind):
    made = parameters(kind, (2,), 3, torch.float64)
    names = ("scale_tril", "covariance_matrix", "precision_matrix")

    def matrices(*own):
        return tuple(getattr(posterior(own), name) for name in names)

    assert torch.autograd.gradcheck(matrices, [t.detach().nan_to_num().requires_grad_() for t in made])
    gradients = torch.autograd.grad(sum(t.sum() for t in matrices(*made)), made, materialize_grads=True)
    if kind == "dense":
        assert (gradients[2].triu() == 0).all()
        assert gradients[2].isfinite().all()

    half = [t.detach().bfloat16() for t in made]
    for name, actual in zip(names, matrices(*half), strict=True):
        assert actual.dtype == torch.bfloat16
        expected = getattr(posterior([t.float() for t in half]), name)
        torch.testing.assert_close(actual.float(), expected, rtol=0.03, atol=0.03)
    single = [t.detach().float() for t in made]
    with torch.autocast("cpu", torch.bfloat16):
        under = matrices(*single)
    assert all(torch.equal(a, b) for a, b in zip(under, matrices(*single), strict=True))
    assert posterior(parameters(kind, (0,), 3)).precision_matrix.shape == (0, 3, 3)


@pytest.mark.parametrize("impl", ["reference", "cpp"])
@every_kind
def test_gradcheck(kind, impl):
    made = parameters(kind, (2,), 3, torch.float64)
    if kind == "dense":
        made[2] = made[2].detach().nan_to_num().requires_grad_()
    eps = torch.randn(2, 2, 3, dtype=torch.float64)
    prior = parameters("diagonal", (2,), 3, torch.float64)
    point = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)

    def everything(*inputs):
        *own, prior_mu, prior_log_sigma, z = inputs
        q = posterior(own, impl)
        return (
            *q.rsample_with_log_prob((2,), eps=eps),
            q.log_prob(z),
            q.entropy(),
            q.variance,
            kl_divergence(q, StandardNormal(3)),
            kl_divergence(q, DiagonalGaussian(prior_mu, prior_log_sigma, impl=impl)),
        )

    assert torch.autograd.gradcheck(everything, (*made, *prior, point))


@every_impl
@every_kind
def test_empty_batch(kind, impl):
    """Which torch.distributions cannot do."""
    made = parameters(kind, (0,), 4, device=device_of(impl))
    q = posterior(made, impl)
    z, log_q = q.rsample_with_log_prob((3,))
    results = [
        log_q,
        q.log_prob(z),
        kl_divergence(q, StandardNormal(4)),
        kl_divergence(q, posterior(made[:2])),
    ]
    assert z.shape == (3, 0, 4)
    assert [t.shape for t in results] == [(3, 0), (3, 0), (0,), (0,)]
    gradients = torch.autograd.grad(z.sum() + sum(t.sum() for t in results), made)
    assert [g.shape for g in gradients] == [t.shape for t in made]


@every_kind
def test_samples_have_the_moments(kind):
    q = posterior(parameters(kind, (), 3))
    with torch.no_grad():
        z = q.rsample((200_000,))
        if kind == "diagonal":
            covariance = torch.diag(q.variance)
        else:
            covariance = q.covariance_matrix
    deviation = (covariance.diagonal() / 200_000).sqrt()
    assert ((z.mean(0) - q.mean).abs() <= 5 * deviation).all()
    # Var(s_ij) = (c_ii c_jj + c_ij^2) / n for Gaussians.
    spread = (covariance.diagonal().outer(covariance.diagonal()) + covariance.square()) / 200_000
    assert ((z.T.cov() - covariance).abs() <= 5 * spread.sqrt()).all()


@every_impl
@every_kind
def test_generator_and_row_offset(kind, impl):
    device = device_of(impl)
    made = [t.detach() for t in parameters(kind, (8,), 5, device=device)]

    def draw(rows, **kwargs):
        q = posterior([t[rows] for t in made], impl)
        generator = torch.Generator(device).manual_seed(7)
        return q.rsample_with_log_prob((3,), generator=generator, **kwargs)

    whole = draw(slice(None))
    again = draw(slice(None))
    assert torch.equal(whole[0], again[0])
    if impl != "reference":
        shards = [draw(slice(0, 3)), draw(slice(3, 8), row_offset=3)]
        for i in (0, 1):
            torch.testing.assert_close(torch.cat([shard[i] for shard in shards], 1), whole[i], rtol=0, atol=0)


@every_impl
@every_kind
def test_sample_and_rsample(kind, impl):
    q = posterior(parameters(kind, (2, 3), 5, device=device_of(impl)), impl)
    for sample_shape in ((), (4,), torch.Size([4, 1])):
        for draw in (q.rsample, q.sample):
            torch.manual_seed(1)
            z = draw(sample_shape)
            assert z.shape == (*sample_shape, 2, 3, 5)
            torch.manual_seed(1)
            assert torch.equal(z, q.rsample_with_log_prob(sample_shape)[0])
    assert q.rsample().requires_grad
    assert not q.sample().requires_grad


@every_impl
@every_kind
def test_expand(kind, impl):
    made = parameters(kind, (3,), 5, device=device_of(impl))
    q = posterior(made, impl)
    large = q.expand((2, 3))
    assert type(large) is type(q)
    assert (large.batch_shape, large.event_shape, large.impl) == ((2, 3), (5,), impl)
    assert large.mu.untyped_storage().data_ptr() == made[0].untyped_storage().data_ptr()
    torch.testing.assert_close(large.entropy(), q.entropy().expand(2, 3))
    z = torch.randn(4, 2, 3, 5).to(made[0])
    torch.testing.assert_close(large.log_prob(z), q.log_prob(z))
    torch.testing.assert_close(
        kl_divergence(large, StandardNormal(5)), kl_divergence(q, StandardNormal(5)).expand(2, 3)
    )
    eps = torch.randn(2, 3, 5).to(made[0])
    sample, log_q = large.rsample_with_log_prob(eps=eps)
    expected, expected_log_q = q.rsample_with_log_prob((2,), eps=eps)
    torch.testing.assert_close((sample, log_q), (expected, expected_log_q))
    d_expanded = torch.autograd.grad(sample.square().sum() + log_q.sum(), made)
    d_expected = torch.autograd.grad(expected.square().sum() + expected_log_q.sum(), made)
    torch.testing.assert_close(d_expanded, d_expected)
    assert large.expand((7, 2, 3)).batch_shape == (7, 2, 3)


@every_kind
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(kind, dtype):
    made = parameters(kind, (16,), 8, dtype)
    q = posterior(made)
    z, log_q = q.rsample_with_log_prob((2,))
    assert z.dtype == dtype
    wide = posterior([t.detach().float() for t in made])
    for actual, expected in (
        (q.entropy(), wide.entropy()),
        (q.log_prob(z), wide.log_prob(z.float())),
        (kl_divergence(q, StandardNormal(8)), kl_divergence(wide, StandardNormal(8))),
        (
            kl_divergence(q, posterior(made[:2])),
            kl_divergence(wide, posterior([t.float() for t in made[:2]])),
        ),
    ):
        assert actual.dtype == torch.float32
        torch.testing.assert_close(actual.detach(), expected.detach(), rtol=1e-5, atol=1e-5)
    assert log_q.dtype == torch.float32
    assert [g.dtype for g in torch.autograd.grad(log_q.sum() + z.sum(), made)] == [dtype] * len(made)


@every_impl
@every_kind
def test_extreme_scales(kind, impl):
    made = parameters(kind, (4,), 5, device=device_of(impl))
    with torch.no_grad():
        made[1][:2] = -30.0
        made[1][2:] = 30.0
        if kind != "diagonal":
            # A large triangle over a tiny diagonal has no accurate solve in any implementation.
            made[2].mul_(1e-13)
    q = posterior(made, impl)
    z, log_q = q.rsample_with_log_prob()
    assert z.isfinite().all()
    torch.testing.assert_close(log_q[:2] - log_q[2:], torch.full((2,), 300.0).to(log_q), rtol=0.2, atol=0)
    torch.testing.assert_close(q.entropy(), (5 * 0.5 * math.log(2 * math.pi * math.e) + made[1].sum(-1)))
    assert all(g.isfinite().all() or kind == "dense" for g in torch.autograd.grad(log_q.sum() + z.sum(), made))


@every_kind
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_non_finite_parameters_stay_in_their_row(kind, value):
    made = parameters(kind, (3,), 4)
    with torch.no_grad():
        made[0][1, 2] = value
    q = posterior(made)
    z, log_q = q.rsample_with_log_prob()
    assert not z[1, 2].isfinite()
    assert z[[0, 2]].isfinite().all()
    assert log_q[[0, 2]].isfinite().all()
    kl = kl_divergence(q, StandardNormal(4))
    assert not kl[1].isfinite()
    assert kl[[0, 2]].isfinite().all()


def test_packed_and_dense_triangles_of_the_same_width():
    """With three features a matrix can be a batch of packed triangles; extra dimensions decide."""
    zero, tril = torch.zeros(3, 3), torch.randn(3, 3)
    packed = TriangularGaussian(zero, zero, tril)
    torch.testing.assert_close(packed.scale_tril, scale_tril([zero, zero, tril]))
    dense = TriangularGaussian(zero[0], zero[0], tril)
    torch.testing.assert_close(dense.scale_tril, torch.eye(3) + tril.tril(-1))


def test_parameters_broadcast():
    q = TriangularGaussian(torch.zeros(4, 1, 3), torch.zeros(3), torch.randn(2, 3))
    assert q.batch_shape == (4, 2)
    assert q.rsample((5,)).shape == (5, 4, 2, 3)


ZERO = torch.zeros(2, 3)
Q = DiagonalGaussian(ZERO, ZERO)


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: DiagonalGaussian([0.0], ZERO), TypeError, "mu must be a tensor, got list"),
        (lambda: DiagonalGaussian(ZERO, ZERO.double()), TypeError, "log_sigma must have the dtype of mu"),
        (lambda: DiagonalGaussian(ZERO.long(), ZERO), TypeError, "mu must be float16.*got torch.int64"),
        (
            lambda: DiagonalGaussian(ZERO, ZERO[:, :2]),
            ValueError,
            r"log_sigma must have as many features as mu, 3",
        ),
        (
            lambda: DiagonalGaussian(ZERO, torch.zeros(5, 3)),
            ValueError,
            "batch shapes of mu, log_sigma must broadcast",
        ),
        (lambda: DiagonalGaussian(torch.tensor(0.0), ZERO), ValueError, r"mu must have shape \(\*, D\)"),
        (
            lambda: TriangularGaussian(ZERO, ZERO, torch.zeros(2, 4)),
            ValueError,
            r"tril must have shape \(\*, 3\)",
        ),
        (
            lambda: DiagonalGaussian(ZERO, ZERO, impl="cuda").rsample(),
            ValueError,
            "impl must be one of .*'cuda'",
        ),
        (lambda: Q.rsample(3), TypeError, r"sample_shape must be a sequence of sizes such as \(3,\)"),
        (
            lambda: Q.rsample_with_log_prob(eps=torch.zeros(2, 4)),
            ValueError,
            r"eps must .*\(2, 3\), got \(2, 4\)",
        ),
        (lambda: Q.log_prob(torch.zeros(2, 4)), ValueError, "z must have as many features as mu, 3"),
        (lambda: Q.expand((5, 3)), RuntimeError, "expand"),
        (lambda: StandardNormal(0), ValueError, "features must be >= 1, got 0"),
    ],
)
def test_bad_arguments(call, error, match):
    with pytest.raises(error, match=match):
        call()
