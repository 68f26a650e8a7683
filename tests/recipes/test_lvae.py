"""The system ``lvae``."""

import math

import pytest
import torch

from fastvae.distributions import DiagonalGaussian
from fastvae.recipes import RecipeError
from fastvae.recipes.systems.loading import find_system
from fastvae.recipes.systems.lvae.config import LVAEConfig, LVAETrainConfig
from fastvae.recipes.systems.lvae.model import LVAE
from tests.recipes.training_support import assert_same_weights

INFERENCES = ("ladder", "bottom-up")


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(params=INFERENCES)
def model(request):
    torch.manual_seed(2)
    return LVAE(LVAEConfig(request.param, (4, 3, 2), (8, 6, 5), data_features=12)).double().eval()


@pytest.fixture
def x():
    return torch.rand(5, 12, generator=seeded(3), dtype=torch.float64).round()


def normal(z, mu, log_sigma):
    return (-0.5 * ((z - mu) / log_sigma.exp()).square() - log_sigma - 0.5 * math.log(2 * math.pi)).sum(-1)


def merge(first, prior):
    """By precisions, as the paper writes it."""
    (mu, log_sigma), (prior_mu, prior_log_sigma) = first, prior
    precision, prior_precision = (-2 * log_sigma).exp(), (-2 * prior_log_sigma).exp()
    variance = 1 / (precision + prior_precision)
    return variance * (mu * precision + prior_mu * prior_precision), 0.5 * variance.log()


def test_log_weights_by_hand(model, x):
    sizes = model.config.latent_features
    eps = torch.randn(7, 5, sum(sizes), generator=seeded(1), dtype=torch.float64)
    parts = eps.split(sizes, -1)
    posterior = model.encode(x)
    latents, log_q = [None] * 3, 0.0
    for level in (2, 1, 0) if model.config.inference == "ladder" else (0, 1, 2):
        if model.config.inference == "ladder":
            q = posterior[level] if level == 2 else merge(posterior[level], model.prior_of(level, latents[level + 1]))
        else:
            q = posterior[0] if level == 0 else model.up_heads[level](model.up[level](latents[level - 1]))
        latents[level] = q[0] + q[1].exp() * parts[level]
        log_q = log_q + normal(latents[level], *q)
    zero = torch.zeros_like(latents[2])
    log_p = normal(latents[2], zero, zero)
    log_p = log_p + sum(normal(latents[level], *model.prior_of(level, latents[level + 1])) for level in (0, 1))
    logits = model.decode(latents[0])
    log_p = log_p + (x * logits - torch.nn.functional.softplus(logits)).sum(-1)
    torch.testing.assert_close(model.log_weights(x, posterior, 7, eps=eps), log_p - log_q)


def test_measured_terms_have_the_mean_of_the_log_weights(model, x):
    rows = x[:1].expand(20_000, 12)
    with torch.no_grad():
        log_p_x, kl = model.measure(rows, generator=seeded(4))
        log_w = model.log_weights(rows, model.encode(rows), 1, generator=seeded(5))[0]
    assert kl.shape == (20_000, 3)
    bound = log_p_x - kl.sum(-1)
    error = ((bound.var() + log_w.var()) / len(rows)).sqrt()
    assert abs(bound.mean() - log_w.mean()) < 4 * error


def test_samples_do_not_depend_on_the_shares_of_a_batch(model, x):
    whole = model.log_weights(x, model.encode(x), 4, generator=seeded(7))
    parts = [
        model.log_weights(x[rows], model.encode(x[rows]), 4, generator=seeded(7), row_offset=rows.start)
        for rows in (slice(0, 2), slice(2, 5))
    ]
    torch.testing.assert_close(torch.cat(parts, 1), whole)


class Fixed(torch.nn.Module):
    """A head that takes its mean from an affine map of its input, with a scale of its own."""

    def __init__(self, slope, log_sigma):
        super().__init__()
        self.slope, self.log_sigma = slope, log_sigma

    def forward(self, x):
        mu = x * self.slope
        return mu, self.log_sigma.expand_as(mu)


class Chain(LVAE):
    """z2 ~ N(0, I), z1 ~ N(a z2, s1^2), x ~ N(b z1, sx^2) by dimension, with the exact posterior as a ladder."""

    def __init__(self):
        super().__init__(LVAEConfig("ladder", (2, 2), (2, 2), data_features=2))
        a, b, s1, sx = torch.tensor([[0.8, -1.2], [1.3, 0.6], [0.7, 0.4], [0.5, 0.9]], dtype=torch.float64)
        # What x says of z1; of z2 it says it through z1.
        says = Fixed(1 / b, (sx / b.abs()).log())
        noise = (sx / b.abs()).square() + s1.square()
        precision = 1 + a.square() / noise
        top = Fixed(a / noise / precision / b, -0.5 * precision.log())
        identity = torch.nn.Identity
        self.up, self.up_heads = torch.nn.ModuleList([identity(), identity()]), torch.nn.ModuleList([says, top])
        self.down, self.down_heads = torch.nn.ModuleList([identity()]), torch.nn.ModuleList([Fixed(a, s1.log())])
        self.likelihood = b, sx.log()
        self.total = (b.square() * (a.square() + s1.square()) + sx.square()).sqrt()

    def encode(self, x):
        return [self.up_heads[0](x), self.up_heads[1](x)]

    def log_likelihood(self, x, z):
        b, log_sigma = self.likelihood
        return DiagonalGaussian(z * b, log_sigma.expand_as(z)).log_prob(x.expand_as(z))


def test_ladder_holds_the_exact_posterior_of_a_chain():
    """The merge of what x says of z1 with p(z1 | z2) is p(z1 | z2, x): every log-weight is log p(x)."""
    model, x = Chain(), torch.randn(6, 2, generator=seeded(), dtype=torch.float64)
    log_p = DiagonalGaussian(torch.zeros_like(x), model.total.log().expand_as(x)).log_prob(x)
    log_w = model.log_weights(x, model.encode(x), 5, generator=seeded(1))
    torch.testing.assert_close(log_w, log_p.expand(5, 6), rtol=1e-10, atol=1e-10)


def test_without_weight_of_the_divergence_it_has_no_gradient(x):
    torch.manual_seed(2)
    model = LVAE(LVAEConfig("ladder", (4, 3), (8, 6), data_features=12)).double()
    log_p_x, kl = model.measure(x, generator=seeded())
    weights = list(model.up_heads.parameters())
    with_divergence = torch.autograd.grad((log_p_x - 0.0 * kl.sum(-1)).sum(), weights, retain_graph=True)
    without = torch.autograd.grad(log_p_x.sum(), weights)
    torch.testing.assert_close(with_divergence, without)


def test_resumed_run_is_one_run(tiny, tmp_path):
    """Batch statistics are collected with noise that is a function of the step."""
    system = find_system("lvae")
    model = LVAEConfig("ladder", (3, 2), (8, 6), data_features=784)
    settings = system.settings(model=model, training=LVAETrainConfig(epochs=2, batch_size=60))
    options = {"images": tiny, "accelerator": "cpu", "progress": False}
    whole = system.run(settings, tmp_path / "whole", finish=False, **options)
    part = system.run(settings, tmp_path / "parts", limit_epochs=1, **options)
    torch.rand(3)
    found = system.run(settings, tmp_path / "parts", resume=part.checkpoint, finish=False, **options)
    assert_same_weights(found, whole)


def test_several_processes_are_refused(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    model = LVAE(LVAEConfig("ladder", (3, 2), (8, 6)))
    task = find_system("lvae").make_task(model, LVAETrainConfig(), tmp_path)
    with pytest.raises(RecipeError, match=r"lvae takes batch statistics .* it must run on 1 process"):
        task.setup("fit")


def test_settings():
    with pytest.raises(ValueError, match=r"hidden_features must be one size for each of 2 levels, got \(5,\)"):
        LVAEConfig("ladder", (3, 2), (5,))
    with pytest.raises(ValueError, match="batch_size must be >= 2, got 1"):
        LVAETrainConfig(batch_size=1)
    with pytest.raises(ValueError, match="inference must be one of ladder, bottom-up, got 'down'"):
        LVAEConfig("down")
