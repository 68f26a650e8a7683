"""Streaming log-mean-exp and the importance-sampled log p(x)."""

import copy
import itertools
import math
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.distributions import Normal

from fastvae.distributions import DiagonalGaussian
from fastvae.objectives import LogMeanExp, importance_log_prob, monte_carlo_elbo, standard_normal_log_prob


def exact(log_w):
    log_w = log_w.double()
    return torch.logsumexp(log_w, 0) - math.log(len(log_w))


def stream(*chunks):
    accumulator = LogMeanExp()
    for chunk in chunks:
        accumulator.update(chunk)
    return accumulator


def assert_as_good(value, log_w):
    """Error within twice that of torch.logsumexp, plus one rounding of the log-weights themselves."""
    plain = torch.logsumexp(log_w, 0) - math.log(len(log_w))
    allowed = 2 * (plain.double() - exact(log_w)).abs().max() + torch.finfo(value.dtype).eps * log_w.abs().max()
    assert (value.double() - exact(log_w)).abs().max() <= allowed


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("scale", [0.1, 5.0, 100.0])
@pytest.mark.parametrize("chunk_size", [1, 7, 500, 5000])
def test_equals_logsumexp_of_everything(dtype, scale, chunk_size):
    log_w = (scale * torch.randn(5000, 6) - 90).to(dtype)
    accumulator = stream(*log_w.split(chunk_size))
    assert accumulator.count == 5000
    assert accumulator.value().dtype == dtype
    assert_as_good(accumulator.value(), log_w)
    weights = log_w.double().softmax(0)
    torch.testing.assert_close(
        accumulator.effective_sample_size().double(), 1 / weights.square().sum(0), rtol=1e-4, atol=0
    )


@given(st.lists(st.integers(0, 6), min_size=1, max_size=6).filter(any), st.randoms(use_true_random=False))
def test_merging_in_any_order(sizes, random):
    generator = torch.Generator().manual_seed(random.randrange(2**31))
    log_w = 30 * torch.randn(sum(sizes), 3, generator=generator) - 90
    parts = [stream(chunk) for chunk in log_w.split(sizes)]
    while len(parts) > 1:
        first = parts.pop(random.randrange(len(parts)))
        parts[random.randrange(len(parts))].merge(first)
    assert parts[0].count == len(log_w)
    assert_as_good(parts[0].value(), log_w)


@pytest.mark.parametrize("chunking", ["at once", "one by one", "merged"])
def test_infinities_and_nan_are_those_of_logsumexp(chunking):
    values = [-math.inf, math.inf, math.nan, -1000.0, 1000.0, 0.0]
    log_w = torch.tensor(list(itertools.product(values, repeat=3))).T
    if chunking == "at once":
        accumulator = stream(log_w)
    elif chunking == "one by one":
        accumulator = stream(*log_w.split(1))
    else:
        accumulator = stream(log_w[:1]).merge(stream(log_w[1:]))
    torch.testing.assert_close(
        accumulator.value(), torch.logsumexp(log_w, 0) - math.log(3), equal_nan=True, rtol=1e-6, atol=0
    )


def test_effective_sample_size_of_the_extremes():
    equal = stream(torch.full((128, 2), -1000.0))
    torch.testing.assert_close(equal.effective_sample_size(), torch.full((2,), 128.0))
    one = stream(torch.tensor([[0.0], [-1000.0]]), torch.tensor([[-500.0]]))
    assert one.effective_sample_size().item() == 1.0


def test_half_precision_is_accumulated_in_float32():
    log_w = (torch.randn(5000, 3) - 90).bfloat16()
    accumulator = stream(*log_w.split(100))
    assert accumulator.value().dtype == torch.float32
    assert_as_good(accumulator.value(), log_w.float())


def test_float64_is_kept_once_seen():
    accumulator = stream(torch.zeros(2, 3), torch.zeros(2, 3, dtype=torch.float64))
    assert accumulator.value().dtype == torch.float64


def test_samples_along_any_dimension():
    log_w = torch.randn(4, 5, 6)
    for dim in (0, 1, 2, -1):
        value = LogMeanExp().update(log_w, dim).value()
        torch.testing.assert_close(value, torch.logsumexp(log_w, dim) - math.log(log_w.shape[dim]))


def test_state_is_bounded_and_without_gradient():
    log_w = torch.randn(50, 3, requires_grad=True)
    accumulator = stream(*log_w.split(10))
    tensors = [value for value in vars(accumulator).values() if isinstance(value, torch.Tensor)]
    assert [t.numel() for t in tensors] == [3, 3, 3]
    assert not any(t.requires_grad for t in tensors)


def test_empty_chunks_and_batches():
    accumulator = stream(torch.zeros(0, 3))
    with pytest.raises(RuntimeError, match="seen no samples"):
        accumulator.value()
    assert torch.equal(accumulator.update(torch.full((2, 3), -5.0)).value(), torch.full((3,), -5.0))
    assert stream(torch.zeros(4, 0)).value().shape == (0,)


def test_pickle_and_deepcopy():
    accumulator = stream(torch.randn(5, 3))
    for twin in (pickle.loads(pickle.dumps(accumulator)), copy.deepcopy(accumulator)):
        assert torch.equal(twin.value(), accumulator.value())
        twin.update(torch.zeros(1, 3))
        assert (twin.count, accumulator.count) == (6, 5)
    assert repr(accumulator) == "LogMeanExp(count=5, shape=(3,))"


def conjugate_model(shift, dims=2):
    """p(z) = N(0, I), p(x | z) = N(z, I); q is ``shift`` away from the posterior N(x/2, 1/2)."""
    x = torch.randn(4, dims, dtype=torch.float64)
    q = DiagonalGaussian(x / 2 + shift, torch.full_like(x, -0.5 * math.log(2.0)))

    def log_weights(k):
        z, log_q = q.rsample_with_log_prob((k,))
        log_p_x = Normal(z, 1.0).log_prob(x).sum(-1)
        return monte_carlo_elbo(log_p_x, standard_normal_log_prob(z), log_q)

    return log_weights, Normal(0.0, math.sqrt(2.0)).log_prob(x).sum(-1)


@pytest.mark.parametrize(("num_samples", "chunk_size"), [(1, 1), (128, None), (5000, 500), (130, 128)])
def test_exact_posterior_gives_the_evidence(num_samples, chunk_size):
    log_weights, log_p_x = conjugate_model(shift=0.0)
    accumulator = LogMeanExp()
    actual = importance_log_prob(log_weights, num_samples, chunk_size, accumulator=accumulator)
    torch.testing.assert_close(actual, log_p_x)
    torch.testing.assert_close(accumulator.effective_sample_size(), torch.full_like(log_p_x, num_samples))


def test_converges_to_the_evidence():
    log_weights, log_p_x = conjugate_model(shift=0.5)
    accumulator = LogMeanExp()
    actual = importance_log_prob(log_weights, 50_000, 5000, accumulator=accumulator)
    # The delta method: Var(log mean w) = (K / ESS - 1) / K.
    deviation = (1 / accumulator.effective_sample_size() - 1 / 50_000).sqrt()
    assert ((actual - log_p_x).abs() <= 5 * deviation).all()
    single = importance_log_prob(log_weights, 1)
    assert (single != log_p_x).all()


def test_one_chunk_at_a_time_without_gradient():
    asked = []

    def log_weights(k):
        asked.append(k)
        assert not torch.is_grad_enabled()
        return torch.zeros(k, 3)

    importance_log_prob(log_weights, 5000, 2000)
    assert asked == [2000, 2000, 1000]


def test_iterable_of_chunks():
    log_w = torch.randn(10, 3)
    expected = importance_log_prob([log_w])
    torch.testing.assert_close(importance_log_prob(iter(log_w.split(4))), expected)
    torch.testing.assert_close(importance_log_prob((c for c in log_w.split(4)), num_samples=10), expected)


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: LogMeanExp().value(), RuntimeError, "seen no samples"),
        (lambda: LogMeanExp().effective_sample_size(), RuntimeError, "seen no samples"),
        (
            lambda: LogMeanExp().update(torch.tensor(0.0)),
            ValueError,
            "log_w must have a dimension of samples",
        ),
        (lambda: LogMeanExp().update(torch.tensor([1])), TypeError, "log_w must be floating point"),
        (lambda: LogMeanExp().update(torch.zeros(2), 1), ValueError, "dim must be a dimension of log_w"),
        (
            lambda: stream(torch.zeros(2, 3), torch.zeros(2, 4)),
            ValueError,
            r"log_w must hold log-weights of shape \(3,\) a sample, as before, got \(4,\)",
        ),
        (
            lambda: stream(torch.zeros(2, 3)).merge(stream(torch.zeros(2))),
            ValueError,
            r"other must hold .*got \(\)",
        ),
        (lambda: LogMeanExp().merge(torch.zeros(2)), TypeError, "other must be a LogMeanExp, got Tensor"),
        (lambda: importance_log_prob(torch.zeros), ValueError, "num_samples must be given"),
        (lambda: importance_log_prob(torch.zeros, 0), ValueError, "num_samples must be >= 1, got 0"),
        (lambda: importance_log_prob(torch.zeros, 5, 2.0), TypeError, "chunk_size must be an int, got float"),
        (lambda: importance_log_prob(3), TypeError, "log_weights must be a function or an iterable, got int"),
        (lambda: importance_log_prob([torch.zeros(2)], 2, 1), ValueError, "chunk_size must be None"),
        (lambda: importance_log_prob([torch.zeros(2)], 3), ValueError, "must hold num_samples=3, got 2"),
        (lambda: importance_log_prob([]), RuntimeError, "seen no samples"),
        (
            lambda: importance_log_prob(lambda k: torch.zeros(1), 4, 2),
            ValueError,
            r"must return shape \(2, \*\)",
        ),
    ],
)
def test_bad_arguments(call, error, match):
    with pytest.raises(error, match=match):
        call()
