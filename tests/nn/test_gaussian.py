"""Layers that map features to a posterior."""

import copy
import math
import pickle

import pytest
import torch
from torch.distributions import kl_divergence

import fastvae.functional as F
from fastvae.distributions import DiagonalGaussian, StandardNormal, TriangularGaussian
from fastvae.nn import DiagonalGaussianHead, TriangularGaussianHead
from fastvae.nn.gaussian import bound_log_sigma
from tests.support.implementations import IMPLEMENTATIONS, device_of

HEADS = (DiagonalGaussianHead, TriangularGaussianHead)
every_head = pytest.mark.parametrize("head_class", HEADS)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@every_head
@pytest.mark.parametrize("batch", [(7,), (2, 3), (), (0,)])
def test_posterior(head_class, batch, impl):
    device = device_of(impl)
    head = head_class(6, 5, impl=impl, device=device)
    features = torch.randn(*batch, 6, device=device)
    q = head(features)
    assert isinstance(q, DiagonalGaussian if head_class is DiagonalGaussianHead else TriangularGaussian)
    assert (q.batch_shape, q.event_shape, q.impl) == (batch, (5,), impl)
    z, log_q = q.rsample_with_log_prob((3,))
    assert (z.shape, log_q.shape) == ((3, *batch, 5), (3, *batch))
    loss = log_q.sum() + z.square().sum() + kl_divergence(q, StandardNormal(5)).sum()
    loss.backward()
    assert head.linear.weight.grad.isfinite().all()
    for actual, expected in zip(head.posterior_parameters(features), (q.mu, q.log_sigma), strict=False):
        assert torch.equal(actual, expected)


@every_head
def test_parameters_are_rows_of_one_layer(head_class):
    head, features = head_class(6, 5), torch.randn(7, 6)
    out = torch.nn.functional.linear(features, head.linear.weight, head.linear.bias)
    mu, log_sigma, *tril = head.posterior_parameters(features)
    assert [name for name, _ in head.named_parameters()] == ["linear.weight", "linear.bias"]
    torch.testing.assert_close(mu, out[:, :5])
    torch.testing.assert_close(log_sigma, out[:, 5:10])
    if tril:
        torch.testing.assert_close(tril[0], out[:, 10:])
    # mu and tril are views: nothing is copied between the layer and the kernels.
    assert all(t._is_view() and t._base.shape == out.shape for t in (mu, *tril))


def test_starts_at_the_diagonal_posterior():
    head, features = TriangularGaussianHead(6, 5), torch.randn(7, 6)
    q = head(features)
    assert (q.tril == 0).all()
    diagonal = DiagonalGaussian(q.mu, q.log_sigma)
    torch.testing.assert_close(kl_divergence(q, StandardNormal(5)), kl_divergence(diagonal, StandardNormal(5)))
    z, _ = q.rsample_with_log_prob()
    (z - 1.0).square().sum().backward()
    assert (head.linear.weight.grad[10:] != 0).any(-1).all()


def test_tril_init_scale():
    torch.manual_seed(1)
    plain = TriangularGaussianHead(6, 5, tril_init_scale=1.0).linear
    torch.manual_seed(1)
    scaled = TriangularGaussianHead(6, 5, tril_init_scale=0.25).linear
    for name in ("weight", "bias"):
        full, small = getattr(plain, name), getattr(scaled, name)
        assert torch.equal(small[:10], full[:10])
        assert torch.equal(small[10:], 0.25 * full[10:])


def test_reset_parameters():
    head = TriangularGaussianHead(6, 5)
    torch.nn.init.constant_(head.linear.weight, 3.0)
    head.reset_parameters()
    assert (head.linear.weight[:10] != 3.0).all()
    assert (head.linear.weight[10:] == 0).all()


@pytest.mark.parametrize("latent_features", [1, 3, 64])
def test_latent_sizes(latent_features):
    q = TriangularGaussianHead(6, latent_features)(torch.randn(4, 6))
    assert q.tril.shape == (4, latent_features * (latent_features - 1) // 2)
    z, log_q = q.rsample_with_log_prob()
    (z.sum() + log_q.sum()).backward()
    assert z.isfinite().all()


@every_head
def test_extreme_features_give_finite_gradients(head_class):
    head = head_class(1, 3)
    with torch.no_grad():
        head.linear.bias.zero_()
        head.linear.weight.fill_(1.0)
        head.linear.weight[6:] = 0.0
    features = torch.tensor([[1e4], [-1e4]])
    q = head(features)
    assert q.log_sigma.detach().unique().tolist() == [-7.0, 7.0]
    z, log_q = q.rsample_with_log_prob()
    loss = log_q.sum() + z.sum() + kl_divergence(q, StandardNormal(3)).sum()
    loss.backward()
    assert loss.isfinite()
    assert head.linear.weight.grad.isfinite().all()
    # The divergence pulls a log-sigma of 7 back down and one of -7 back up.
    assert (head.linear.weight.grad[3:6] != 0).all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_bound_values(dtype):
    s = torch.tensor([-1e4, -7.5, -7.0, 0.25, 7.0, 7.5, 1e4, math.inf, -math.inf, math.nan], dtype=dtype)
    expected = torch.tensor([-7.0, -7.0, -7.0, 0.25, 7.0, 7.0, 7.0, 7.0, -7.0, math.nan], dtype=dtype)
    torch.testing.assert_close(bound_log_sigma(s), expected, rtol=0, atol=0, equal_nan=True)
    assert bound_log_sigma(s, None) is s


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_bound_keeps_the_gradient_that_leads_back(dtype):
    s = torch.tensor([-1e4, -7.0, 0.0, 7.0, 1e4, math.inf], dtype=dtype, requires_grad=True)
    for upstream, expected in (
        (1.0, [0.0, 1.0, 1.0, 1.0, 1.0, 1.0]),
        (-1.0, [-1.0, -1.0, -1.0, -1.0, 0.0, 0.0]),
    ):
        (d_s,) = torch.autograd.grad(bound_log_sigma(s), s, torch.full_like(s, upstream))
        assert d_s.tolist() == expected


def test_a_unit_that_overshot_comes_back():
    s = torch.tensor([1e4, -1e4], requires_grad=True)
    optimiser = torch.optim.Adam([s], lr=100.0)
    for _ in range(300):
        optimiser.zero_grad()
        F.diag_gaussian_kl(torch.zeros(2, 1), bound_log_sigma(s)[:, None]).sum().backward()
        optimiser.step()
    assert (s.detach().abs() < 9000).all()


def test_bound_gradcheck():
    s = torch.linspace(-6.9, 6.9, 7, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(bound_log_sigma, s)
    assert torch.autograd.gradgradcheck(bound_log_sigma, s)


def test_bound_under_transforms():
    s = torch.tensor([[-9.0, 0.0, 9.0]] * 2)

    def apply_sign(s, sign):
        return (sign * bound_log_sigma(s)).sum()

    gradient = torch.func.vmap(torch.func.grad(apply_sign))(s, torch.tensor([1.0, -1.0]))
    assert gradient.tolist() == [[0.0, 1.0, 1.0], [-1.0, -1.0, 0.0]]
    _, tangent = torch.func.jvp(bound_log_sigma, (s,), (torch.ones_like(s),))
    assert tangent.tolist() == [[0.0, 1.0, 0.0]] * 2


@every_head
def test_gradients_of_each_example(head_class):
    """vmap(grad) over a head, as per-example gradients need it, against a loop."""
    head, features = head_class(4, 3), torch.randn(5, 4)
    weights = {name: p.detach() for name, p in head.named_parameters()}

    def loss(weights, features):
        q = torch.func.functional_call(head, weights, (features,))
        return kl_divergence(q, StandardNormal(3)).sum()

    together = torch.func.vmap(torch.func.grad(loss), (None, 0))(weights, features)
    for n in range(5):
        expected = torch.autograd.grad(head_kl(head, features[n]), list(head.parameters()))
        torch.testing.assert_close(together["linear.weight"][n], expected[0])
        torch.testing.assert_close(together["linear.bias"][n], expected[1])


def head_kl(head, features):
    return kl_divergence(head(features), StandardNormal(head.latent_features)).sum()


@every_head
def test_unbounded(head_class):
    head = head_class(1, 2, log_sigma_bounds=None)
    torch.nn.init.constant_(head.linear.bias, 9.0)
    torch.nn.init.zeros_(head.linear.weight)
    assert (head(torch.zeros(3, 1)).log_sigma == 9.0).all()


@every_head
def test_bfloat16_and_autocast(head_class):
    features = torch.randn(7, 6)
    q = head_class(6, 5, dtype=torch.bfloat16)(features.bfloat16())
    assert q.mu.dtype == torch.bfloat16
    with torch.autocast("cpu", torch.bfloat16):
        q = head_class(6, 5)(features)
        z, log_q = q.rsample_with_log_prob()
    assert (z.dtype, log_q.dtype) == (torch.bfloat16, torch.float32)


@every_head
def test_pickle_deepcopy_and_state_dict(head_class):
    head, features = head_class(6, 5, log_sigma_bounds=(-2.0, 1.0)), 100 * torch.randn(7, 6)
    expected = head(features)
    fresh = head_class(6, 5, log_sigma_bounds=(-2.0, 1.0))
    fresh.load_state_dict(head.state_dict())
    for twin in (pickle.loads(pickle.dumps(head)), copy.deepcopy(head), fresh):
        q = twin(features)
        assert torch.equal(q.mu, expected.mu)
        assert torch.equal(q.log_sigma, expected.log_sigma)
        assert repr(twin) == repr(head)
    assert expected.log_sigma.detach().aminmax() == (-2.0, 1.0)


@every_head
def test_compile(head_class):
    head, features, eps = head_class(6, 5), torch.randn(7, 6), torch.randn(7, 5)

    def step(features):
        return head(features).rsample_with_log_prob(eps=eps)

    torch._dynamo.reset()
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(features), step(features))
    actual, expected = (
        torch.autograd.grad(sum(t.sum() for t in f(features)), head.linear.weight) for f in (compiled, step)
    )
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: DiagonalGaussianHead(0, 5), ValueError, "in_features must be >= 1, got 0"),
        (lambda: TriangularGaussianHead(6, 0), ValueError, "latent_features must be >= 1, got 0"),
        (lambda: DiagonalGaussianHead(6, 5, log_sigma_bounds=(1.0, 1.0)), ValueError, "must be increasing"),
        (
            lambda: DiagonalGaussianHead(6, 5, log_sigma_bounds=(math.nan, 1.0)),
            ValueError,
            "must be increasing",
        ),
        (
            lambda: DiagonalGaussianHead(6, 5, log_sigma_bounds=7.0),
            ValueError,
            "must be a pair of numbers or None",
        ),
        (
            lambda: DiagonalGaussianHead(6, 5, log_sigma_bounds=(1, 2, 3)),
            ValueError,
            "must be a pair of numbers",
        ),
        (
            lambda: TriangularGaussianHead(6, 5, tril_init_scale=-1.0),
            ValueError,
            "tril_init_scale must be >= 0",
        ),
        (
            lambda: DiagonalGaussianHead(6, 5)(torch.zeros(7, 5)),
            ValueError,
            r"features .*\(\*, 6\), got \(7, 5\)",
        ),
        (
            lambda: DiagonalGaussianHead(6, 5)(torch.tensor(0.0)),
            ValueError,
            r"features must have shape \(\*, 6\)",
        ),
        (lambda: DiagonalGaussianHead(6, 5)([0.0]), TypeError, "features must be a tensor, got list"),
    ],
)
def test_bad_arguments(call, error, match):
    with pytest.raises(error, match=match):
        call()
