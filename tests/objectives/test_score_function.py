"""Estimators of the gradient of four Bernoulli units, against all sixteen configurations, in float64.

What depends on the units alone is enumerated: its mean is exact, and so is its variance. What depends on uniform
numbers has a z-test with 4e5 samples.
"""

import itertools
import math

import pytest
import torch

import fastvae.functional as F
from fastvae.nn import InputBaseline
from fastvae.objectives import (
    RunningBaseline,
    antithetic_gradient,
    concrete_sample,
    iwae_bound,
    leave_one_out,
    rebar,
    score_function,
    vimco_bound,
)

UNITS, DRAWS = 4, 400_000
ALL = torch.tensor(list(itertools.product((0.0, 1.0), repeat=UNITS)), dtype=torch.float64)


class Toy:
    """p(x, b) of one image x, of linear and quadratic terms of b, and q(b) of independent units.

    Scales and offset are such that one estimate has a variance of 44 without a baseline, and of 5.7 with the best one.
    """

    def __init__(self):
        generator = torch.Generator().manual_seed(5)
        self.logits = torch.randn(UNITS, dtype=torch.float64, generator=generator)
        self.linear = 1.09 * torch.randn(UNITS, dtype=torch.float64, generator=generator)
        self.quadratic = 1.635 * torch.randn(UNITS, UNITS, dtype=torch.float64, generator=generator)

    def log_joint(self, b):
        return -7.0 + b @ self.linear + ((b @ self.quadratic) * b).sum(-1)

    def log_q(self, b, logits=None):
        """Of relaxed units, too."""
        logits = self.logits if logits is None else logits
        return (b * logits - torch.nn.functional.softplus(logits, threshold=50)).sum(-1)

    def signal(self, b):
        return self.log_joint(b) - self.log_q(b)

    def gradient(self, function=None):
        """The exact gradient of the mean of a function of b that does not depend on the logits itself."""
        logits = self.logits.clone().requires_grad_()
        log_q = self.log_q(ALL, logits)
        return torch.autograd.grad((log_q.exp() * (function or self.signal)(ALL)).sum(), logits)[0]

    def probabilities(self):
        return self.log_q(ALL).exp()


TOY = Toy()


def gradients(surrogate, count):
    """The gradient of each of ``count`` estimates, (count, D): ``surrogate(logits)`` has one for each row."""
    logits = TOY.logits.expand(count, UNITS).clone().requires_grad_()
    return torch.autograd.grad(surrogate(logits).sum(), logits)[0]


def moments_of_samples(estimator, samples):
    """Mean and total variance of an estimate from K samples, over all configurations of the K."""
    rows = torch.cartesian_prod(*[torch.arange(16)] * samples).view(-1, samples)
    b = ALL[rows].transpose(0, 1)  # (K, 16^K, D)
    found = gradients(lambda logits: estimator(b, TOY.log_q(b, logits)), len(rows))
    weight = TOY.probabilities()[rows].prod(1)
    mean = weight @ found
    return mean, (weight @ (found - mean).square()).sum().item()


def reinforce(baseline):
    return lambda b, log_q: score_function(log_q, TOY.signal(b), baseline=baseline).mean(0)


def with_leave_one_out(b, log_q):
    signal = TOY.signal(b)
    return score_function(log_q, signal, baseline=leave_one_out(signal)).mean(0)


def test_reinforce_is_unbiased_with_any_constant():
    exact, mean = TOY.gradient(), (TOY.probabilities() @ TOY.signal(ALL)).item()
    variances = []
    for baseline in (None, mean, torch.tensor(3.0)):
        found, variance = moments_of_samples(reinforce(baseline), 1)
        torch.testing.assert_close(found, exact)
        variances.append(variance)
    assert variances[:2] == pytest.approx([44.1, 5.7], rel=0.03)


def test_leave_one_out_is_unbiased_and_gains_with_each_sample():
    variances = []
    for samples in (2, 3, 4):
        found, variance = moments_of_samples(with_leave_one_out, samples)
        torch.testing.assert_close(found, TOY.gradient())
        variances.append(variance)
    assert variances == pytest.approx([7.1, 3.3, 2.1], rel=0.03)


def test_vimco_is_unbiased_and_varies_less_than_the_plain_bound():
    """Of three samples: the mean of L_3 over all 16^3 configurations, differentiated exactly."""

    def log_weights(b, log_q):
        return TOY.log_joint(b) - log_q

    def plain(b, log_q):
        bound = iwae_bound(log_weights(b, log_q))
        return bound + score_function(log_q.sum(0), bound)

    rows = torch.cartesian_prod(*[torch.arange(16)] * 3)
    logits = TOY.logits.clone().requires_grad_()
    log_q = TOY.log_q(ALL, logits)
    bounds = iwae_bound(log_weights(ALL, log_q)[rows], -1)
    (exact,) = torch.autograd.grad((log_q[rows].sum(1).exp() * bounds).sum(), logits)
    found, variance = moments_of_samples(lambda b, log_q: vimco_bound(log_weights(b, log_q), log_q), 3)
    torch.testing.assert_close(found, exact)
    found, of_plain = moments_of_samples(plain, 3)
    torch.testing.assert_close(found, exact)
    assert variance < of_plain / 5


def z_scores(found, exact):
    return ((found.mean(0) - exact) / (found.std(0) / math.sqrt(len(found)))).abs().max().item()


def uniforms(seed, draws=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(draws, DRAWS, UNITS, dtype=torch.float64, generator=generator)


def of_pair(kind):
    def estimate(logits):
        (u,) = uniforms(1)
        b, _ = F.bernoulli_sample(logits.detach(), uniforms=u, antithetic=True)
        drawn = {"b": b} if kind == "disarm" else {"uniforms": u}
        return antithetic_gradient(logits, TOY.signal(b), **drawn)

    return estimate


def of_op(logits):
    b, log_q = F.bernoulli_sample(logits, generator=torch.Generator().manual_seed(3))
    return score_function(log_q, TOY.signal(b), baseline=-6.0)


def of_input_baseline(logits):
    torch.manual_seed(4)
    b, log_q = F.bernoulli_sample(logits, generator=torch.Generator().manual_seed(5))
    predicted = InputBaseline(7).double()(torch.randn(DRAWS, 7, dtype=torch.float64))
    return score_function(log_q, TOY.signal(b), baseline=predicted)


UNBIASED = {
    "the op": of_op,
    "input baseline": of_input_baseline,
    "ARM": of_pair("arm"),
    "DisARM": of_pair("disarm"),
    "REBAR": lambda logits: rebar(TOY.signal, logits, temperature=0.5, uniforms=uniforms(2, 2)),
}


@pytest.mark.parametrize("name", UNBIASED)
def test_estimates_are_unbiased(name):
    found = gradients(UNBIASED[name], DRAWS)
    assert found.std(0).min() > 0
    assert z_scores(found, TOY.gradient()) < 4


def test_variances():
    """Two evaluations each: the pair of DisARM is ARM's without the noise of u. REBAR's control pays."""
    variance = {name: gradients(UNBIASED[name], DRAWS).var(0).sum().item() for name in ("ARM", "DisARM", "REBAR")}
    _, plain = moments_of_samples(reinforce(None), 1)
    assert variance["DisARM"] < variance["ARM"] < plain
    assert variance["REBAR"] < plain / 5


@pytest.mark.parametrize("temperature", [0.1, 0.5, 1.0])
def test_the_concrete_relaxation_is_biased(temperature):
    found = gradients(lambda logits: TOY.signal(concrete_sample(logits, temperature, uniforms=uniforms(6)[0])), DRAWS)
    assert z_scores(found, TOY.gradient()) > 5


def test_disarm_is_the_mean_of_arm_over_what_gives_the_same_pair():
    """Enumerated: units of a pair are both on, both off, or differ either way."""
    probability = TOY.logits.sigmoid()
    pairs = torch.tensor([(1, 1), (0, 0), (1, 0), (0, 1)], dtype=torch.float64)
    both, other = (2 * probability - 1).clamp(min=0), (1 - 2 * probability).clamp(min=0)
    differ = torch.minimum(probability, 1 - probability)
    of_unit = torch.stack([both, other, differ, differ], -1)
    rows = torch.cartesian_prod(*[torch.arange(4)] * UNITS)
    weight = of_unit.gather(1, rows.T).prod(0)
    b = pairs[rows].permute(2, 0, 1)
    found = gradients(lambda logits: antithetic_gradient(logits, TOY.signal(b), b=b), len(rows))
    torch.testing.assert_close(weight.sum(), torch.ones((), dtype=torch.float64))
    torch.testing.assert_close(weight @ found, TOY.gradient())


def test_leave_one_out_at_the_exact_posterior_is_zero():
    """There log p(x, b) - log q(b) is log p(x), whatever b is: equal numbers leave nothing, to the last bit."""
    b = ALL[torch.randint(16, (3, 50))]
    logits = torch.tensor([1.0, -2.0, 0.5, 0.0], dtype=torch.float64, requires_grad=True)
    log_q = (b * logits).sum(-1)
    exact = (log_q.detach() - 5.0) - log_q.detach()
    assert (exact == -5.0).all()
    (gradient,) = torch.autograd.grad(score_function(log_q, exact, baseline=leave_one_out(exact)).sum(), logits)
    assert (gradient == 0).all()
    for value in (0.1, -113.7, 1e-30):
        equal = torch.full((3, 5), value)
        assert torch.equal(leave_one_out(equal), equal)


def test_leave_one_out_is_the_mean_of_the_others():
    signal = torch.randn(5, 4, 3, dtype=torch.float64, requires_grad=True)
    baselines = leave_one_out(signal, 1)
    assert not baselines.requires_grad
    for k in range(4):
        others = [j for j in range(4) if j != k]
        torch.testing.assert_close(baselines[:, k], signal[:, others].mean(1))


def test_values_and_gradients_of_the_other_terms():
    """The surrogate is zero; the signal keeps its own gradient."""
    signal = torch.randn(3, 4, requires_grad=True)
    log_q = torch.randn(3, 4, requires_grad=True)
    total = signal + score_function(log_q, signal, baseline=leave_one_out(signal))
    assert torch.equal(total, signal)
    d_signal, d_log_q = torch.autograd.grad(total.sum(), (signal, log_q))
    assert (d_signal == 1).all()
    torch.testing.assert_close(d_log_q, (signal - leave_one_out(signal)).detach())
    assert torch.equal(vimco_bound(signal, log_q, 1), iwae_bound(signal, 1))


def test_rebar_leaves_the_direct_gradient():
    scale = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    u = torch.rand(2, 3, UNITS, dtype=torch.float64)
    bound = rebar(lambda b: scale * b.sum(-1), TOY.logits.expand(3, UNITS), uniforms=u)
    b, _ = F.bernoulli_sample(TOY.logits.expand(3, UNITS), uniforms=u[0])
    torch.testing.assert_close(bound, scale * b.sum(-1))
    assert torch.autograd.grad(bound.sum(), scale)[0] == b.sum()


def test_relaxed_units_of_rebar_agree_with_the_units():
    """z and z given b have one distribution: their relaxed units have the same mean, and those given b its side."""
    seen = []

    def function(s):
        seen.append(s.detach())
        return s.sum(-1)

    torch.manual_seed(0)
    rebar(function, TOY.logits.expand(20_000, UNITS), temperature=0.3)
    relaxed, conditional, b = seen
    for s in (relaxed, conditional):
        assert torch.equal((s > 0.5).to(b), b)
    spread = relaxed.std(0) / math.sqrt(len(relaxed))
    assert ((relaxed - conditional).mean(0).abs() < 6 * spread).all()
    assert torch.equal(
        (concrete_sample(TOY.logits, 1e-3, uniforms=torch.tensor([0.2, 0.9, 0.6, 0.4]).double()) > 0.5).double(),
        F.bernoulli_sample(TOY.logits, uniforms=torch.tensor([0.2, 0.9, 0.6, 0.4]).double())[0],
    )


def test_running_baseline():
    baseline = RunningBaseline(0.5)
    batches = [torch.tensor([2.0, 4.0]), torch.tensor([10.0]), torch.tensor([5.0, 5.0])]
    assert baseline(batches[0]) == 0
    assert baseline(batches[1]) == 3
    assert baseline(batches[2]).item() == pytest.approx((0.25 * 3 + 0.5 * 10) / 0.75)
    weights = torch.tensor([0.125, 0.25, 0.5], dtype=torch.float64)
    weights = weights / weights.sum()
    mean = weights @ torch.tensor([3.0, 10.0, 5.0]).double()
    square = weights @ torch.tensor([10.0, 100.0, 25.0]).double()
    signal = torch.tensor([7.0, -7.0])
    expected = (signal - mean) / (square - mean**2).sqrt()
    torch.testing.assert_close(baseline.normalise(signal), expected.float())
    again = RunningBaseline(0.5)
    again.load_state_dict(baseline.state_dict())
    again.eval()
    assert again(signal) == again(signal) == baseline.eval()(signal)


def test_a_small_spread_divides_nothing():
    baseline = RunningBaseline()
    assert baseline.normalise(torch.tensor([2.5])) == 2.5
    assert baseline.normalise(torch.tensor([3.0])) == 0.5


SIGNAL, PAIR = torch.zeros(2, 3), torch.zeros(2, 3, 4)
ERRORS = [
    (lambda: score_function(SIGNAL, SIGNAL[0]), ValueError, "signal must have the shape of log_q"),
    (lambda: score_function(SIGNAL.long(), SIGNAL), TypeError, "log_q must be floating point"),
    (lambda: score_function(SIGNAL, SIGNAL, baseline=SIGNAL[:, 0]), ValueError, "baseline must broadcast"),
    (lambda: score_function(SIGNAL[0], SIGNAL[0], baseline=SIGNAL), ValueError, "baseline must broadcast"),
    (lambda: leave_one_out(SIGNAL[:1]), ValueError, "signal must hold at least two samples along dim 0"),
    (lambda: leave_one_out(SIGNAL, 2), ValueError, "dim must be a dimension of signal"),
    (lambda: vimco_bound(SIGNAL[:1], SIGNAL[:1]), ValueError, "log_w must hold at least two samples"),
    (lambda: vimco_bound(SIGNAL, SIGNAL[0]), ValueError, "log_q must have the shape of log_w"),
    (lambda: antithetic_gradient(PAIR[0], SIGNAL), ValueError, "either b or uniforms must be given, got neither"),
    (lambda: antithetic_gradient(PAIR[0], SIGNAL[:1], b=PAIR), ValueError, r"signal must have shape \(2,"),
    (lambda: antithetic_gradient(PAIR[0], SIGNAL, b=PAIR[:1]), ValueError, "b must have shape"),
    (lambda: antithetic_gradient(PAIR[0], SIGNAL, uniforms=PAIR), ValueError, "uniforms must have shape"),
    (lambda: concrete_sample(PAIR, 0.0), ValueError, "temperature must be > 0"),
    (lambda: concrete_sample(PAIR, uniforms=PAIR[0]), ValueError, r"uniforms must have shape \(2, 3, 4\)"),
    (lambda: rebar(torch.sum, PAIR, scale=math.inf), ValueError, "scale must be finite"),
    (lambda: rebar(torch.sum, PAIR, uniforms=PAIR), ValueError, r"uniforms must have shape \(2, 2, 3, 4\)"),
    (lambda: RunningBaseline(1.0), ValueError, r"decay must lie in \(0, 1\)"),
    (lambda: RunningBaseline(all_processes=True)(SIGNAL), RuntimeError, "all_processes=True needs torch.distributed"),
    (lambda: InputBaseline(0), ValueError, "in_features must be >= 1"),
    (lambda: InputBaseline(3)(SIGNAL[:, :2]), ValueError, r"x must have shape \(\*, 3\)"),
]


@pytest.mark.parametrize(("call", "kind", "message"), ERRORS, ids=[message[:30] for *_, message in ERRORS])
def test_errors(call, kind, message):
    with pytest.raises(kind, match=message):
        call()
