"""A sample with its log-density and divergence in one call, against the two calls that it replaces."""

import pytest
import torch
from torch.distributions import kl_divergence

import fastvae.functional as F
from fastvae.distributions import DiagonalGaussian, StandardNormal, TriangularGaussian
from fastvae.objectives import free_bits
from tests.support.gaussians import gaussian_inputs, tril_input
from tests.support.implementations import IMPLEMENTATIONS, device_of

KINDS = ("diagonal", "packed", "dense")
every_kind = pytest.mark.parametrize("kind", KINDS)
every_impl = pytest.mark.parametrize("impl", IMPLEMENTATIONS)


def parameters(kind, n, d, dtype=torch.float32, device="cpu"):
    made = gaussian_inputs((n,), d)
    if kind != "diagonal":
        made.append(tril_input((n,), d, kind == "dense"))
    return [t.to(device, dtype).requires_grad_() for t in made]


def posterior(made, impl="auto"):
    return (DiagonalGaussian if len(made) == 2 else TriangularGaussian)(*made, impl=impl)


def both(made, impl, sample_shape=(), **noise):
    """One call, and the two calls: outputs of each."""
    q = posterior(made, impl)
    apart = *q.rsample_with_log_prob(sample_shape, **noise), kl_divergence(q, StandardNormal(made[0].shape[-1]))
    return q.rsample_with_kl(sample_shape, **noise), apart


@every_impl
@every_kind
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("sample_shape", [(), (3,)])
def test_sample_and_density_have_the_bits_of_the_plain_call(sample_shape, dtype, kind, impl):
    made = parameters(kind, 5, 37, dtype, device_of(impl))
    eps = torch.randn(*sample_shape, 5, 37, device=device_of(impl))
    together, apart = both(made, impl, sample_shape, eps=eps)
    for a, b in zip(together[:2], apart[:2], strict=True):
        assert torch.equal(a, b)
    torch.testing.assert_close(together[2], apart[2], rtol=1e-5, atol=1e-5)


@every_kind
@pytest.mark.parametrize(("n", "d"), [(128, 32), (3, 5), (17, 63), (40, 72)])
def test_one_sample_has_every_bit_of_the_two_calls(n, d, kind):
    """A training run does not notice which of both it makes; noise is drawn."""
    made = parameters(kind, n, d)
    q, (one, other) = posterior(made, "cpp"), (torch.Generator().manual_seed(7) for _ in range(2))
    together = q.rsample_with_kl(generator=one)
    apart = *q.rsample_with_log_prob(generator=other), kl_divergence(q, StandardNormal(d))
    for a, b in zip(together, apart, strict=True):
        assert torch.equal(a, b)
    upstream = [torch.randn_like(t) for t in apart]
    for used in ([0, 2], [0, 1, 2]):
        gradients = [
            torch.autograd.grad([outputs[i] for i in used], made, [upstream[i] for i in used], retain_graph=True)
            for outputs in (together, apart)
        ]
        for a, b in zip(*gradients, strict=True):
            assert torch.equal(a, b)


@every_impl
@every_kind
@pytest.mark.parametrize("used", [(0,), (1,), (2,), (0, 1), (0, 2), (1, 2)])
def test_outputs_that_nobody_uses(used, kind, impl):
    made = parameters(kind, 4, 9, device=device_of(impl))
    together, apart = both(made, impl, (2,), eps=torch.randn(2, 4, 9, device=device_of(impl)))
    upstream = [torch.randn_like(t) for t in apart]
    got, expected = (
        torch.autograd.grad([outputs[i] for i in used], made, [upstream[i] for i in used], allow_unused=True)
        for outputs in (together, apart)
    )
    for a, b in zip(got, expected, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@every_impl
@every_kind
def test_infinite_mean_and_an_unused_divergence(kind, impl):
    """Zero times infinity is NaN: what is not used has no gradient."""
    made = parameters(kind, 2, 4, device=device_of(impl))
    with torch.no_grad():
        made[0][0, 1] = float("inf")
    z, _, _ = posterior(made, impl).rsample_with_kl()
    for gradient in torch.autograd.grad(z, made, torch.ones_like(z)):
        assert gradient.isfinite().all()


@every_impl
@every_kind
@pytest.mark.parametrize(("n", "sample_shape"), [(0, ()), (0, (2,)), (3, (0,))])
def test_nothing_to_draw(n, sample_shape, kind, impl):
    made = parameters(kind, n, 5, device=device_of(impl))
    together, apart = both(made, impl, sample_shape)
    for a, b in zip(together, apart, strict=True):
        assert a.shape == b.shape
        torch.testing.assert_close(a, b)
    together[2].sum().backward()
    assert made[0].grad.shape == (n, 5)


@every_impl
@every_kind
def test_divergence_of_dimensions(kind, impl):
    """Parts that add up; for a triangular factor those of q(z_i | z_1 ... z_{i-1}), whose scale is sigma_i."""
    made = parameters(kind, 6, 9, torch.float64, device_of(impl))
    q = posterior(made, impl)
    *_, parts = q.rsample_with_kl((2,), kl="dimensions")
    assert parts.shape == (6, 9)
    torch.testing.assert_close(parts.sum(-1), kl_divergence(q, StandardNormal(9)))
    expected = 0.5 * (q.variance + q.mean.square() - 1.0) - q.log_sigma
    torch.testing.assert_close(parts, expected)
    loss = free_bits(parts, 0.5)
    for a, b in zip(torch.autograd.grad(loss, made), torch.autograd.grad(free_bits(expected, 0.5), made), strict=True):
        torch.testing.assert_close(a, b.nan_to_num())


@every_impl
@every_kind
def test_batches_of_any_dimension(kind, impl):
    made = [t.detach().view(2, 3, *t.shape[1:]).requires_grad_() for t in parameters(kind, 6, 5)]
    made = [t.detach().to(device_of(impl)).requires_grad_() for t in made]
    q = posterior(made, impl)
    shapes = [t.shape for t in q.rsample_with_kl((4,))]
    assert shapes == [(4, 2, 3, 5), (4, 2, 3), (2, 3)]
    assert q.rsample_with_kl(kl="dimensions")[2].shape == (2, 3, 5)


def test_rows_of_other_processes():
    """The rows of a shard draw the noise that they have in the whole batch."""
    made = parameters("packed", 6, 5)
    whole = posterior(made).rsample_with_kl(generator=torch.Generator().manual_seed(1))
    shard = posterior([t[2:] for t in made]).rsample_with_kl(generator=torch.Generator().manual_seed(1), row_offset=2)
    for a, b in zip(whole, shard, strict=True):
        assert torch.equal(a[2:], b)


def test_standard_normal_is_a_diagonal_gaussian():
    z, log_q, kl = StandardNormal(4, (3,)).rsample_with_kl()
    torch.testing.assert_close(log_q, StandardNormal(4).log_prob(z))
    assert torch.equal(kl, torch.zeros(3))


@pytest.mark.parametrize("kl", ["mean", None, True])
def test_unknown_kind_of_divergence(kl):
    mu = torch.zeros(2, 3)
    with pytest.raises(ValueError, match="kl must be 'sum' or 'dimensions', got"):
        F.diag_gaussian_rsample_with_kl(mu, mu, kl=kl)
    with pytest.raises(ValueError, match="kl must be 'sum' or 'dimensions', got"):
        F.tril_gaussian_rsample_with_kl(mu, mu, mu, kl=kl)
