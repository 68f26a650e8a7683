"""Divergences of every pair of Gaussians, ours and torch's, against torch's own of the equal MultivariateNormals."""

import itertools
import math
import warnings

import pytest
import torch
from torch.distributions import Independent, MultivariateNormal, Normal, StudentT, kl_divergence
from torch.distributions.kl import _dispatch_kl

from fastvae.distributions import DiagonalGaussian, StandardNormal, TriangularGaussian
from tests.support.oracle import assert_as_close_as_eager
from tests.support.posteriors import of_torch_full, parameters, posterior

OURS = ("diagonal", "packed", "dense")
ALL = (*OURS, "normal", "multivariate")
PAIRS = [(p, q) for p, q in itertools.product(ALL, ALL) if p in OURS or q in OURS]
# These have no op of their own: plain PyTorch, and differentiable twice.
PLAIN = [pair for pair in PAIRS if not set(pair) <= {"diagonal", "normal"}]

every_pair = pytest.mark.parametrize(("p_kind", "q_kind"), PAIRS)


def leaves(kind, batch, features, dtype=torch.float64):
    kind = {"normal": "diagonal", "multivariate": "packed"}.get(kind, kind)
    return parameters(kind, batch, features, dtype)


def gaussian(kind, made):
    if kind == "normal":
        return Independent(Normal(made[0], made[1].exp(), validate_args=False), 1, validate_args=False)
    return of_torch_full(made) if kind == "multivariate" else posterior(made)


def cast(made, dtype):
    return [t.detach().to(dtype).requires_grad_() for t in made]


@every_pair
@pytest.mark.parametrize("features", [1, 2, 3, 7])
def test_value_and_gradients(p_kind, q_kind, features):
    p, q = leaves(p_kind, (4,), features), leaves(q_kind, (4,), features)
    oracle = kl_divergence(of_torch_full(p), of_torch_full(q))
    actual = kl_divergence(gaussian(p_kind, p), gaussian(q_kind, q))
    torch.testing.assert_close(actual, oracle, rtol=1e-10, atol=1e-10)
    upstream = torch.randn_like(oracle)
    d_actual = torch.autograd.grad(actual, (*p, *q), upstream)
    d_oracle = torch.autograd.grad(oracle, (*p, *q), upstream)
    torch.testing.assert_close(d_actual, d_oracle, rtol=1e-9, atol=1e-9)

    p32, q32 = cast(p, torch.float32), cast(q, torch.float32)
    eager = kl_divergence(of_torch_full(p32), of_torch_full(q32))
    oracle = kl_divergence(of_torch_full(cast(p32, torch.float64)), of_torch_full(cast(q32, torch.float64)))
    actual = kl_divergence(gaussian(p_kind, p32), gaussian(q_kind, q32))
    assert_as_close_as_eager(actual.detach(), eager.detach(), oracle.detach(), "kl")


@pytest.mark.parametrize("p_kind", ALL)
def test_to_the_standard_normal(p_kind):
    for features in (1, 2, 3, 7):
        p = leaves(p_kind, (4,), features)
        zero = torch.zeros(features, dtype=torch.float64)
        oracle = kl_divergence(of_torch_full(p), of_torch_full([zero, zero]))
        actual = kl_divergence(gaussian(p_kind, p), StandardNormal(features))
        torch.testing.assert_close(actual, oracle, rtol=1e-10, atol=1e-10)
        assert kl_divergence(gaussian(p_kind, p), StandardNormal(features, (5, 1))).shape == (5, 4)
        torch.testing.assert_close(
            kl_divergence(StandardNormal(features, dtype=torch.float64), gaussian(p_kind, p)),
            kl_divergence(of_torch_full([zero, zero]), of_torch_full(p)),
        )


@pytest.mark.parametrize(("p_kind", "q_kind"), PLAIN)
def test_gradcheck(p_kind, q_kind):
    p, q = leaves(p_kind, (2,), 3), leaves(q_kind, (), 3)
    inputs = [t.detach().nan_to_num().requires_grad_() for t in (*p, *q)]

    def kl(*inputs):
        return kl_divergence(gaussian(p_kind, inputs[: len(p)]), gaussian(q_kind, inputs[len(p) :]))

    assert torch.autograd.gradcheck(kl, inputs, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(kl, inputs)


@every_pair
@pytest.mark.parametrize(
    ("p_batch", "q_batch"),
    [((4,), ()), ((), (4,)), ((4,), (5, 1)), ((5, 1), (4,)), ((2, 4), (1,)), ((0,), ()), ((3,), (0, 1))],
)
def test_batches_broadcast(p_kind, q_kind, p_batch, q_batch):
    # Three features: a matrix could also be a batch of packed triangles.
    p, q = leaves(p_kind, p_batch, 3), leaves(q_kind, q_batch, 3)
    actual = kl_divergence(gaussian(p_kind, p), gaussian(q_kind, q))
    batch = torch.broadcast_shapes(p_batch, q_batch)
    assert actual.shape == batch
    if 0 not in batch:
        whole = [
            of_torch_full(made).expand(batch)  # torch's own divergence does not broadcast every pair of batches
            for made in (p, q)
        ]
        torch.testing.assert_close(actual, kl_divergence(*whole))


@pytest.mark.parametrize("kind", OURS)
@pytest.mark.parametrize("reverse", [False, True])
def test_one_factor_for_many_means(kind, reverse):
    factor = of_torch_full(leaves("packed", (), 3)).scale_tril
    shared = MultivariateNormal(torch.randn(6, 3).double(), scale_tril=factor)
    made = leaves(kind, (6,), 3)
    pairs = [(posterior(made), shared), (of_torch_full(made), shared)]
    actual, expected = (kl_divergence(*(pair[::-1] if reverse else pair)) for pair in pairs)
    torch.testing.assert_close(actual, expected)
    if reverse:
        zero = torch.zeros(3, dtype=torch.float64)
        expected = kl_divergence(shared, of_torch_full([zero, zero]))
        torch.testing.assert_close(kl_divergence(shared, StandardNormal(3)), expected)


@every_pair
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_single(p_kind, q_kind, dtype):
    p, q = (cast(leaves(kind, (4,), 7), dtype) for kind in (p_kind, q_kind))
    # torch itself rounds to half precision what its Gaussians are made of.
    of_p, of_q = gaussian(p_kind, p), gaussian(q_kind, q)
    actual = kl_divergence(of_p, of_q)
    assert actual.dtype == torch.float32

    def wide(kind, made, distribution):
        if kind == "normal":
            loc, scale = distribution.base_dist.loc, distribution.base_dist.scale
            return Independent(Normal(loc.float(), scale.float()), 1)
        if kind == "multivariate":
            return MultivariateNormal(distribution.loc.float(), scale_tril=distribution.scale_tril.float())
        return posterior(cast(made, torch.float32))

    expected = kl_divergence(wide(p_kind, p, of_p), wide(q_kind, q, of_q))
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)
    gradients = torch.autograd.grad(actual.sum(), (*p, *q))
    assert all(g.dtype == dtype for g in gradients)
    assert all(g.isfinite().all() for g in gradients)


@every_pair
def test_autocast_changes_nothing(p_kind, q_kind):
    p, q = (cast(leaves(kind, (4,), 7), torch.float32) for kind in (p_kind, q_kind))
    of_p, of_q = gaussian(p_kind, p), gaussian(q_kind, q)
    expected = kl_divergence(of_p, of_q)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(kl_divergence(of_p, of_q), expected)


@pytest.mark.parametrize("other", ALL)
def test_nothing_above_the_diagonal_is_read(other):
    dense, others = cast(leaves("dense", (4,), 5), torch.float32), leaves(other, (4,), 5, torch.float32)
    upper = torch.ones(5, 5, dtype=torch.bool).triu()
    assert dense[2][:, upper].isnan().all()
    for pair in ((posterior(dense), gaussian(other, others)), (gaussian(other, others), posterior(dense))):
        kl = kl_divergence(*pair)
        assert kl.isfinite().all()
        gradients = torch.autograd.grad(kl.sum(), dense)
        assert all(g.isfinite().all() for g in gradients)
        assert (gradients[2][:, upper] == 0).all()
        assert (gradients[2][:, ~upper] != 0).any()


def test_a_row_that_is_not_finite_stays_alone():
    p, q = leaves("packed", (3,), 4), leaves("packed", (), 4)
    with torch.no_grad():
        p[0][1, 2] = math.nan
    kl = kl_divergence(posterior(p), posterior(q))
    assert kl.isfinite().tolist() == [True, False, True]


def test_ill_conditioned_factors():
    """Factors of condition 1e4 and more: float32 does not hold their covariance matrices, of condition 1e8."""
    features, rows = 16, torch.tril_indices(16, 16, -1)
    factor_q = torch.randn(4, features, features).tril(-1) + 0.5 * torch.eye(features)
    ratio = 0.1 * torch.randn(4, features, features).tril(-1) + torch.diag_embed((0.2 * torch.randn(4, features)).exp())
    mu = torch.randn(4, features)
    shift = 0.3 * (factor_q @ torch.randn(4, features, 1)).squeeze(-1)
    p, q = (
        [mean, factor.diagonal(dim1=-2, dim2=-1).log(), factor[:, rows[0], rows[1]]]
        for mean, factor in ((mu + shift, factor_q @ ratio), (mu, factor_q))
    )
    assert (torch.linalg.cond(of_torch_full(q).scale_tril) > 3e3).all()
    wide = [[t.double() for t in made] for made in (p, q)]
    oracle = kl_divergence(*map(of_torch_full, wide))
    actual = kl_divergence(posterior(p), posterior(q))
    assert_as_close_as_eager(actual, kl_divergence(of_torch_full(p), of_torch_full(q)), oracle, "kl")
    torch.testing.assert_close(actual.double(), oracle, rtol=1e-2, atol=0)


@pytest.mark.parametrize("kind", ["packed", "dense"])
def test_near_equal_gaussians(kind):
    p = cast(leaves(kind, (3,), 7), torch.float32)
    assert (kl_divergence(posterior(p), posterior(p)).abs() < 1e-12).all()
    shifted = [p[0], p[1] + 1e-4, *p[2:]]
    kl = kl_divergence(posterior(p), posterior(shifted))
    wide = [[t.double() for t in made] for made in (p, shifted)]
    torch.testing.assert_close(kl.double(), kl_divergence(*map(posterior, wide)), rtol=0.05, atol=0)


class OwnDiagonal(DiagonalGaussian):
    pass


class OwnStandard(StandardNormal):
    pass


class OwnTriangular(TriangularGaussian):
    pass


class OwnMultivariate(MultivariateNormal):
    pass


def test_subclasses_are_not_ambiguous():
    ours = (DiagonalGaussian, StandardNormal, TriangularGaussian, OwnDiagonal, OwnStandard, OwnTriangular)
    theirs = (Independent, MultivariateNormal, OwnMultivariate)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for p, q in itertools.product(ours + theirs, ours + theirs):
            if p in ours or q in ours:
                assert _dispatch_kl(p, q) is not NotImplemented
    assert _dispatch_kl(OwnTriangular, OwnStandard) is _dispatch_kl(TriangularGaussian, StandardNormal)


DIAGONAL, TRIANGULAR = posterior(leaves("diagonal", (2,), 3)), posterior(leaves("packed", (2,), 3))
ONE = torch.ones(2, 3).double()
STUDENTS = Independent(StudentT(ONE), 1)
BATCH = Independent(Normal(ONE, ONE), 2)


@pytest.mark.parametrize("ours", [DIAGONAL, TRIANGULAR])
def test_unknown_pairs(ours):
    name = type(ours).__name__
    with pytest.raises(NotImplementedError, match=rf"of a {name} to Independent\(StudentT.* is not known; of the .*"):
        kl_divergence(ours, STUDENTS)
    with pytest.raises(NotImplementedError, match=rf"of Independent\(StudentT.* to a {name} is not known"):
        kl_divergence(STUDENTS, ours)
    with pytest.raises(NotImplementedError, match=r"it knows Independent\(Normal\(\.\.\.\), 1\)"):
        kl_divergence(ours, BATCH)
    with pytest.raises(NotImplementedError, match="to a StandardNormal is not known"):
        kl_divergence(STUDENTS, StandardNormal(3))


@pytest.mark.parametrize("ours", [DIAGONAL, TRIANGULAR])
@pytest.mark.parametrize("kind", ALL)
def test_shapes_that_do_not_fit(ours, kind):
    wide, long = gaussian(kind, leaves(kind, (2,), 4)), gaussian(kind, leaves(kind, (5,), 3))
    with pytest.raises(ValueError, match=r"one event shape, got \(3,\) and \(4,\)"):
        kl_divergence(ours, wide)
    with pytest.raises(ValueError, match=r"one event shape, got \(4,\) and \(3,\)"):
        kl_divergence(wide, ours)
    with pytest.raises(ValueError, match=r"batch shapes broadcast, got \(2,\) and \(5,\)"):
        kl_divergence(ours, long)


def test_nothing_is_read_back():
    """Meta tensors have no values: code that reads one raises."""
    for p_kind, q_kind in PAIRS:
        p, q = ([t.detach().to("meta") for t in leaves(kind, (4,), 5)] for kind in (p_kind, q_kind))
        assert kl_divergence(gaussian(p_kind, p), gaussian(q_kind, q)).shape == (4,)
