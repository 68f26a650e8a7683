"""Masked networks as models of discrete features: probabilities by enumeration, and samples in one sweep."""

import itertools
import math

import pytest
import torch

from fastvae.nn import MADE

D = 4
NETWORKS = {
    "bits": lambda: MADE(D, (12, 10), params_per_feature=1),
    "bits with a context, residual": lambda: MADE(
        D, (9, 9, 9), params_per_feature=1, context_features=2, residual=True, order=[2, 0, 3, 1]
    ),
    "three categories": lambda: MADE(D, (12,), params_per_feature=3, layout="interleaved"),
    "three categories, normalised": lambda: MADE(
        D, (12, 12), params_per_feature=3, weight_norm=True, context_features=2
    ),
    "one feature": lambda: MADE(1, (5,), params_per_feature=4),
}


def make_net(name):
    net = NETWORKS[name]().double().eval()
    with torch.no_grad():
        for layer in net.layers:
            layer.weight.mul_(3.0)
    levels = max(net.structure.params_per_feature, 2)
    context = torch.randn(2, dtype=torch.float64) if net.context_features else None
    return net, levels, context


def everything(net, levels):
    return torch.tensor(list(itertools.product(range(levels), repeat=net.features)))


@pytest.mark.parametrize("name", NETWORKS)
def test_probabilities_sum_up_to_one(name):
    net, levels, context = make_net(name)
    log_p = net.log_prob(everything(net, levels), context)
    torch.testing.assert_close(log_p.exp().sum(), torch.tensor(1.0, dtype=torch.float64))
    assert log_p.std() > 0.1


@pytest.mark.parametrize("name", NETWORKS)
def test_codes_and_their_values_have_one_probability(name):
    net, levels, context = make_net(name)
    codes = everything(net, levels)
    values = codes.double() / (levels - 1)
    torch.testing.assert_close(net.log_prob(codes, context), net.log_prob(values, context))
    torch.testing.assert_close(net.log_prob(codes.to(torch.uint8), context), net.log_prob(values, context))


@pytest.mark.parametrize("name", NETWORKS)
def test_samples_have_the_probabilities(name):
    """Pearson's statistic of 40 000 samples over all states stays below the mean plus five deviations."""
    net, levels, context = make_net(name)
    n, states = 40_000, everything(net, levels)
    x = net.sample(n, context, generator=torch.Generator().manual_seed(3))
    assert (x.shape, x.dtype) == ((n, net.features), torch.float64)
    codes = (x * (levels - 1)).round().long()
    index = (codes * levels ** torch.arange(net.features - 1, -1, -1)).sum(-1)
    expected = n * net.log_prob(states, context).exp()
    found = torch.bincount(index, minlength=len(states)).double()
    statistic = ((found - expected).square() / expected).sum().item()
    freedom = len(states) - 1
    rare = (1 / expected).sum().item()
    assert statistic < freedom + 5 * math.sqrt(2 * freedom + rare)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_sweep_draws_what_calls_of_the_network_draw(name):
    """Hooks make the network be called once for every feature; the noise, and so the sample, is the same."""
    net, _, context = make_net(name)
    swept = net.sample(50, context, generator=torch.Generator().manual_seed(5))
    net.layers[0].register_forward_hook(lambda *_: None)
    assert torch.equal(net.sample(50, context, generator=torch.Generator().manual_seed(5)), swept)


def test_shards_draw_the_noise_of_the_whole():
    net, *_ = make_net("three categories")
    whole = net.sample(10, generator=torch.Generator().manual_seed(1))
    part = net.sample(4, generator=torch.Generator().manual_seed(1), row_offset=6)
    assert torch.equal(whole[6:], part)


def test_a_low_temperature_draws_the_likeliest():
    net, levels, _ = make_net("three categories")
    x = net.sample(20, temperature=1e-6)
    assert (x == x[0]).all()
    first = net(torch.zeros(1, D, dtype=torch.float64))[0, :, 0].argmax()
    assert x[0, 0] == first / (levels - 1)


def test_gradients_reach_weights_and_context():
    net, levels, _ = make_net("bits with a context, residual")
    context = torch.randn(2, dtype=torch.float64, requires_grad=True)
    net.log_prob(everything(net, levels), context).sum().backward()
    assert context.grad.abs().sum() > 0
    assert all(p.grad is not None for p in net.parameters())


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (
            lambda: make_net("bits")[0].log_prob(torch.full((2, D), 2)),
            ValueError,
            "x must hold integers 0 to 1 .* got 2",
        ),
        (lambda: make_net("bits")[0].log_prob(torch.full((2, D), 0.5)), ValueError, "the values k / 1, got 0.5"),
        (
            lambda: make_net("three categories")[0].log_prob(torch.full((1, D), float("nan"))),
            ValueError,
            "got nan",
        ),
        (
            lambda: MADE(2, (4,), params_per_feature=600).log_prob(torch.zeros(1, 2, dtype=torch.bfloat16)),
            ValueError,
            r"x must have a dtype that tells levels=600 .* got torch.bfloat16",
        ),
        (lambda: make_net("bits")[0].sample(-1), ValueError, "n must be >= 0, got -1"),
        (
            lambda: make_net("bits")[0].sample(2, temperature=0.0),
            ValueError,
            "temperature must be a finite number > 0",
        ),
        (
            lambda: make_net("bits with a context, residual")[0].sample(3, torch.zeros(2, 2)),
            ValueError,
            r"context must have shape \(3, 2\)",
        ),
    ],
)
def test_errors_name_the_argument(call, error, match):
    with pytest.raises(error, match=match):
        call()
