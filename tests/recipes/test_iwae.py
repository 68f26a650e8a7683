"""The system ``iwae``."""

import math

import pytest
import torch

from fastvae.distributions import DiagonalGaussian
from fastvae.objectives import monte_carlo_elbo, standard_normal_log_prob
from fastvae.recipes.systems.iwae.config import IWAEConfig, IWAETrainConfig
from fastvae.recipes.systems.iwae.model import IWAE, GaussianBlock
from fastvae.recipes.systems.iwae.task import training_bounds


def training_bound(*arguments, **noise):
    return training_bounds(*arguments, **noise)[0]


SMALL = {1: IWAEConfig(1, (3,), (6,), data_features=12), 2: IWAEConfig(2, (4, 3), (6, 5), data_features=12)}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(params=[1, 2])
def model(request):
    torch.manual_seed(request.param)
    return IWAE(SMALL[request.param]).double()


@pytest.fixture
def x():
    return torch.rand(5, 12, generator=seeded(3), dtype=torch.float64).round()


@pytest.mark.parametrize("layers", [1, 2])
def test_one_sample_is_the_vae_bit_for_bit(layers):
    model = IWAE(SMALL[layers])
    x = torch.rand(9, 12, generator=seeded(3)).round()
    gradients = {}
    for objective in ("iwae", "vae"):
        bound = training_bound(model, x, 1, objective, generator=seeded())
        gradients[objective] = bound, *torch.autograd.grad(bound.mean(), list(model.parameters()))
    assert all(map(torch.equal, gradients["iwae"], gradients["vae"]))
    if layers == 1:
        q = model.encode(x)
        z, log_q = q.rsample_with_log_prob((1,), generator=seeded())
        elbo = monte_carlo_elbo(model.log_likelihood(x, z), standard_normal_log_prob(z), log_q)
        assert torch.equal(elbo[0], gradients["vae"][0])


def test_log_weights_by_hand(model, x):
    q = model.encode(x)
    sizes = model.config.latent_features
    eps = torch.randn(7, 5, sum(sizes), generator=seeded(1), dtype=torch.float64)
    first = eps[..., : sizes[0]]
    z = q.mu + q.log_sigma.exp() * first
    expected = normal(z, q) * -1
    if len(sizes) == 2:
        upper = model.encoders[1](z)
        above = upper.mu + upper.log_sigma.exp() * eps[..., sizes[0] :]
        expected = expected - normal(above, upper) + normal(z, model.priors[0](above))
        z_top = above
    else:
        z_top = z
    logits = model.decode(z)
    expected = expected - 0.5 * (z_top.square() + math.log(2 * math.pi)).sum(-1)
    expected = expected + (x * logits - torch.nn.functional.softplus(logits)).sum(-1)
    torch.testing.assert_close(model.log_weights(x, q, 7, eps=eps), expected)
    torch.testing.assert_close(monte_carlo_elbo(*model.weigh_by_path(x, q, 7, eps=eps)[0]), expected)


def normal(z, q):
    return (-0.5 * ((z - q.mu) / q.log_sigma.exp()).square() - q.log_sigma - 0.5 * math.log(2 * math.pi)).sum(-1)


def test_measured_terms_have_the_mean_of_the_log_weights(model, x):
    rows = x[:1].expand(20_000, 12)
    with torch.no_grad():
        q = model.encode(rows)
        log_p_x, kl = model.measure(rows, q, generator=seeded(4))
        log_w = model.log_weights(rows, q, 1, generator=seeded(5))[0]
    assert kl.shape == (20_000, model.config.layers)
    bound = log_p_x - kl.sum(-1)
    error = ((bound.var() + log_w.var()) / len(rows)).sqrt()
    assert abs(bound.mean() - log_w.mean()) < 4 * error


@pytest.mark.parametrize("objective", ["iwae", "vae", "dreg"])
def test_warm_up_weights_the_divergence_of_every_sample(objective, model, x):
    terms = model.weigh(x, model.encode(x), 4, generator=seeded())
    log_w = terms.log_p_x + 0.3 * (terms.log_p_z - terms.log_q)
    expected = log_w.mean(0) if objective == "vae" else log_w.logsumexp(0) - math.log(4)
    bound, elbo = training_bounds(model, x, 4, objective, beta=0.3, generator=seeded())
    torch.testing.assert_close(bound, expected)
    torch.testing.assert_close(elbo, (terms.log_p_x + terms.log_p_z - terms.log_q).mean(0))
    assert not elbo.requires_grad


@pytest.mark.parametrize("beta", [1.0, 0.4])
def test_doubly_reparameterised_gradients_have_the_usual_expectation(beta, model, x):
    found = {}
    draws = 3000
    for objective, seed in (("iwae", 1), ("dreg", 2)):
        rows = x.repeat(draws, 1)
        bound = training_bound(model, rows, 3, objective, beta=beta, generator=seeded(seed))
        bound = bound.unflatten(0, (draws, len(x))).mean(1)
        batches = bound.unflatten(0, (30, -1)).mean(1)
        encoder = list(model.encoders.parameters())
        gradients = [
            torch.cat([g.flatten() for g in torch.autograd.grad(b, encoder, retain_graph=True)]) for b in batches
        ]
        found[objective] = torch.stack(gradients)
    difference = found["iwae"].mean(0) - found["dreg"].mean(0)
    error = ((found["iwae"].var(0) + found["dreg"].var(0)) / 30).sqrt()
    used = error > 1e-12
    # Of several hundred numbers, each a mean of 30 batches.
    z = difference[used] / error[used]
    assert z.abs().max() < 5.5
    assert 0.7 < z.square().mean() < 1.4


def test_gradients_of_the_models_weights_are_the_usual(model, x):
    generative = [*model.priors.parameters(), *model.decoder.parameters()]
    found = [
        torch.autograd.grad(training_bound(model, x, 4, name, generator=seeded()).sum(), generative)
        for name in ("iwae", "dreg")
    ]
    torch.testing.assert_close(*found)


class Affine(torch.nn.Module):
    """A block whose mean is affine and whose scale is fixed."""

    def __init__(self, weight, bias, log_sigma):
        super().__init__()
        self.weight, self.bias, self.log_sigma = (torch.nn.Parameter(t) for t in (weight, bias, log_sigma))

    def forward(self, x):
        mu = x @ self.weight.T + self.bias
        return DiagonalGaussian(mu, self.log_sigma.expand_as(mu))


class Chain(IWAE):
    """z2 ~ N(0, I), z1 ~ N(A z2, S1), x ~ N(B z1, Sx), all diagonal, with the exact q(z1 | x) and q(z2 | z1)."""

    def __init__(self):
        super().__init__(IWAEConfig(2, (2, 2), (2, 2), data_features=2))
        generator = seeded(9)
        a, b = (torch.randn(2, generator=generator, dtype=torch.float64) for _ in range(2))
        s1, sx = 0.3 + torch.rand(2, 2, generator=generator, dtype=torch.float64)
        above = a.square() + s1.square()
        self.total = (b.square() * above + sx.square()).sqrt()
        zero = torch.zeros(2, dtype=torch.float64)
        self.likelihood = torch.diag(b), sx.log()
        self.priors = torch.nn.ModuleList([Affine(torch.diag(a), zero, s1.log())])
        self.encoders = torch.nn.ModuleList([self.invert(b, sx, above.sqrt()), self.invert(a, s1, torch.ones_like(a))])

    @staticmethod
    def invert(slope, noise, prior):
        precision = 1 / prior.square() + (slope / noise).square()
        return Affine(torch.diag(slope / noise.square() / precision), torch.zeros_like(slope), -0.5 * precision.log())

    def log_likelihood(self, x, z):
        weight, log_sigma = self.likelihood
        return DiagonalGaussian(z @ weight.T, log_sigma.expand_as(z)).log_prob(x.expand_as(z))

    def exact(self, x):
        return DiagonalGaussian(torch.zeros_like(x), self.total.log().expand_as(x)).log_prob(x)


def test_chain_with_exact_conditionals_gives_log_p():
    model, x = Chain(), torch.randn(6, 2, generator=seeded(), dtype=torch.float64)
    log_w = model.log_weights(x, model.encode(x), 5, generator=seeded(1))
    torch.testing.assert_close(log_w, model.exact(x).expand(5, 6), rtol=1e-12, atol=1e-12)
    bound = training_bound(model, x, 5, "dreg", generator=seeded(2))
    encoder = list(model.encoders.parameters())
    assert max(g.abs().max() for g in torch.autograd.grad(bound.sum(), encoder)) < 1e-12
    usual = training_bound(model, x, 5, "iwae", generator=seeded(2))
    assert max(g.abs().max() for g in torch.autograd.grad(usual.sum(), encoder)) > 1e-3


def test_bound_rises_with_the_number_of_samples():
    model, x = Chain(), torch.randn(40, 2, generator=seeded(), dtype=torch.float64)
    with torch.no_grad():
        for parameter in model.encoders.parameters():
            parameter += 0.2
        means = []
        for samples in (1, 5, 50):
            rows = x.repeat(200, 1)
            means.append(training_bound(model, rows, samples, "iwae", generator=seeded(samples)).mean())
    assert means[0] + 0.02 < means[1] < means[2] - 0.001
    assert means[2] < model.exact(x).mean()


def test_noise_does_not_depend_on_the_shares_of_a_batch(model, x):
    q = model.encode(x)
    whole = model.log_weights(x, q, 4, generator=seeded(7))
    parts = []
    for rows in (slice(0, 2), slice(2, 5)):
        share = model.encode(x[rows])
        parts.append(model.log_weights(x[rows], share, 4, generator=seeded(7), row_offset=rows.start))
    torch.testing.assert_close(torch.cat(parts, 1), whole)


def test_blocks_start_as_in_the_paper():
    block = GaussianBlock(300, 200, 4, "auto")
    bound = math.sqrt(6 / 500)
    weight = block.hidden[0].weight
    assert weight.abs().max() <= bound
    assert weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.02)


def test_settings():
    assert IWAEConfig().latent_features == (50,)
    assert IWAEConfig(2).hidden_features == (200, 100)
    with pytest.raises(
        ValueError, match=r"latent_features must be one size for each of 2 stochastic layers, got \(5,\)"
    ):
        IWAEConfig(2, (5,))
    with pytest.raises(ValueError, match="importance_samples must be >= 1, got 0"):
        IWAETrainConfig(importance_samples=0)
    with pytest.raises(ValueError, match=r"final_learning_rate must be between 0 and learning_rate=0.001, got 0.1"):
        IWAETrainConfig(final_learning_rate=0.1)
