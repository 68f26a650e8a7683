"""ELBO, importance-weighted bound and its checkpointed form."""

import math

import pytest
import torch
from torch.distributions import Normal

from fastvae.distributions import DiagonalGaussian
from fastvae.likelihoods import bernoulli_log_prob
from fastvae.objectives import (
    checkpointed_iwae_bound,
    elbo,
    iwae_bound,
    monte_carlo_elbo,
    standard_normal_log_prob,
)
from tests.support.implementations import IMPLEMENTATIONS, device_of


def test_elbo():
    log_p_x, kl = torch.randn(5, 3), torch.rand(3)
    torch.testing.assert_close(elbo(log_p_x, kl), log_p_x - kl)
    torch.testing.assert_close(elbo(log_p_x, kl, beta=0.25), log_p_x - 0.25 * kl)
    torch.testing.assert_close(elbo(log_p_x, kl[0], beta=torch.tensor(2.0)), log_p_x - 2.0 * kl[0])


def test_monte_carlo_elbo():
    log_p_x, log_p_z, log_q = torch.randn(3, 5, 4).unbind()
    torch.testing.assert_close(monte_carlo_elbo(log_p_x, log_p_z, log_q), log_p_x + log_p_z - log_q)
    torch.testing.assert_close(monte_carlo_elbo(log_p_x, log_p_z, log_q, beta=0.5), log_p_x + 0.5 * (log_p_z - log_q))


def test_monte_carlo_elbo_is_unbiased():
    q = DiagonalGaussian(torch.tensor([0.5, -1.0]), torch.tensor([-0.5, 0.2]))
    z, log_q = q.rsample_with_log_prob((100_000,))
    kl = -monte_carlo_elbo(torch.zeros(100_000), standard_normal_log_prob(z), log_q)
    exact = 0.5 * (q.mu.square() + (2 * q.log_sigma).exp() - 1 - 2 * q.log_sigma).sum()
    assert (kl.mean() - exact).abs() <= 5 * kl.std() / math.sqrt(100_000)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_standard_normal_log_prob(dtype):
    z = (3 * torch.randn(4, 3, 17)).to(dtype)
    log_p_z = standard_normal_log_prob(z)
    assert log_p_z.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(log_p_z.double(), Normal(0.0, 1.0).log_prob(z.double()).sum(-1), rtol=1e-6, atol=0)
    assert standard_normal_log_prob(z[:0]).shape == (0, 3)


def test_standard_normal_log_prob_gradcheck():
    assert torch.autograd.gradcheck(standard_normal_log_prob, torch.randn(3, 4, dtype=torch.float64).requires_grad_())


@pytest.mark.parametrize("dim", [0, 1, -1])
def test_iwae_bound(dim):
    log_w = (5 * torch.randn(6, 7) - 90).requires_grad_()
    bound = iwae_bound(log_w, dim)
    torch.testing.assert_close(bound, log_w.exp().mean(dim).log())
    upstream = torch.randn_like(bound)
    (d_log_w,) = torch.autograd.grad(bound, log_w, upstream)
    torch.testing.assert_close(d_log_w, log_w.softmax(dim) * upstream.unsqueeze(dim))


def test_iwae_bound_gradcheck():
    log_w = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(iwae_bound, (log_w,))


def test_iwae_bound_of_one_sample_is_the_elbo():
    log_w = torch.randn(1, 3) * 100
    assert torch.equal(iwae_bound(log_w), log_w[0])


def test_iwae_bound_extremes():
    log_w = torch.tensor([[-1e4, 1e4, -math.inf], [-1e4, -1e4, -1e4]], requires_grad=True)
    bound = iwae_bound(log_w)
    torch.testing.assert_close(bound, torch.tensor([-1e4, 1e4, -1e4]) - torch.tensor([0.0, 1.0, 1.0]) * math.log(2))
    (d_log_w,) = torch.autograd.grad(bound.sum(), log_w)
    assert torch.equal(d_log_w, torch.tensor([[0.5, 1.0, 0.0], [0.5, 0.0, 1.0]]))


def test_iwae_bound_accumulates_in_float32():
    log_w = torch.zeros(5000, 2, dtype=torch.bfloat16, requires_grad=True)
    bound = iwae_bound(log_w)
    assert bound.dtype == torch.float32
    assert bound.abs().max() <= 1e-6
    assert torch.autograd.grad(bound.sum(), log_w)[0].dtype == torch.bfloat16


def small_model(device="cpu"):
    encoder, decoder = (
        torch.nn.Linear(12, 6),
        torch.nn.Sequential(torch.nn.Linear(3, 32), torch.nn.Tanh(), torch.nn.Dropout(0.5), torch.nn.Linear(32, 12)),
    )
    return encoder.to(device), decoder.to(device), (torch.rand(4, 12) < 0.5).float().to(device)


def log_weights_of(encoder, decoder, x, impl):
    q = DiagonalGaussian(*encoder(x).chunk(2, -1), impl=impl)

    def log_weights(k):
        z, log_q = q.rsample_with_log_prob((k,))
        return monte_carlo_elbo(bernoulli_log_prob(x, decoder(z)), standard_normal_log_prob(z), log_q)

    return log_weights


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_checkpointed_iwae_bound_is_the_plain_one(impl):
    device = device_of(impl)
    encoder, decoder, x = small_model(device)
    parameters = [*encoder.parameters(), *decoder.parameters()]
    torch.manual_seed(1)
    log_weights = log_weights_of(encoder, decoder, x, impl)
    plain = iwae_bound(torch.cat([log_weights(k) for k in (4, 4, 2)]))
    expected = torch.autograd.grad(plain.sum(), parameters)
    after = torch.rand(1, device=device)

    torch.manual_seed(1)
    bound = checkpointed_iwae_bound(log_weights_of(encoder, decoder, x, impl), 10, 4)
    assert torch.equal(bound, plain)
    # Going back, the generator is restored for the second pass and then left where it was.
    torch.testing.assert_close(torch.autograd.grad(bound.sum(), parameters), expected)
    assert torch.equal(torch.rand(1, device=device), after)


def test_checkpointed_iwae_bound_keeps_one_number_a_sample():
    encoder, decoder, x = small_model()
    q = DiagonalGaussian(*encoder(x).chunk(2, -1))

    def count_kept(bound):
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()), id):
            bound(log_weights_of(encoder, decoder, x, "auto"))
        return sum(sizes)

    assert q.batch_shape == (4,)
    few = count_kept(lambda f: checkpointed_iwae_bound(f, 10, 10))
    many = count_kept(lambda f: checkpointed_iwae_bound(f, 100, 10))
    # logsumexp saves its argument and the checkpoints their empty device markers.
    assert many - few == 90 * len(x)
    assert count_kept(lambda f: iwae_bound(f(100))) > 10 * many


def test_chunks_are_drawn_as_asked():
    asked = []

    def log_weights(k):
        asked.append(k)
        return torch.zeros(k, 2, requires_grad=True)

    checkpointed_iwae_bound(log_weights, 10, 4)
    assert asked == [4, 4, 2]


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: elbo(0.0, torch.zeros(2)), TypeError, "log_p_x must be a tensor, got float"),
        (
            lambda: elbo(torch.zeros(2), torch.zeros(2, dtype=torch.int64)),
            TypeError,
            "kl must be floating.*int64",
        ),
        (lambda: elbo(torch.zeros(3), torch.zeros(3, 1)), ValueError, r"kl must .*\(3,\).*got \(3, 1\)"),
        (lambda: elbo(torch.zeros(3, 2), torch.zeros(1)), ValueError, r"kl must .*got \(1,\)"),
        (
            lambda: monte_carlo_elbo(torch.zeros(5, 3), torch.zeros(5, 3), torch.zeros(3)),
            ValueError,
            r"log_q must have the shape of log_p_x, \(5, 3\), got \(3,\)",
        ),
        (
            lambda: monte_carlo_elbo(torch.zeros(3), torch.zeros(3, 1), torch.zeros(3)),
            ValueError,
            r"log_p_z must .*got \(3, 1\)",
        ),
        (lambda: standard_normal_log_prob(torch.tensor(0.0)), ValueError, r"z must have shape \(\*, D\)"),
        (lambda: standard_normal_log_prob(torch.tensor([1])), TypeError, "z must be floating point"),
        (lambda: iwae_bound(torch.tensor(0.0)), ValueError, "log_w must have a dimension of samples"),
        (lambda: iwae_bound(torch.zeros(0, 3)), ValueError, r"at least one sample along dim 0, got \(0, 3\)"),
        (lambda: iwae_bound(torch.zeros(2, 3), 2), ValueError, r"dim must be a dimension .*got 2"),
        (lambda: checkpointed_iwae_bound(torch.zeros, 0, 1), ValueError, "num_samples must be >= 1, got 0"),
        (lambda: checkpointed_iwae_bound(torch.zeros, 4, 0), ValueError, "chunk_size must be >= 1, got 0"),
        (
            lambda: checkpointed_iwae_bound(torch.zeros, 4, 1.5),
            TypeError,
            "chunk_size must be an int, got float",
        ),
        (
            lambda: checkpointed_iwae_bound(lambda k: torch.zeros(k + 1), 4, 2),
            ValueError,
            r"log_weights\(2\) must return shape \(2, \*\), got \(3,\)",
        ),
        (
            lambda: checkpointed_iwae_bound(lambda k: torch.zeros(k, device="meta"), 4, 2),
            ValueError,
            "device must be that of the noise of log_weights, which returns meta; got cpu",
        ),
    ],
)
def test_bad_arguments(call, error, match):
    with pytest.raises(error, match=match):
        call()
