"""The model, its bound and its evaluation."""

from dataclasses import replace

import pytest
import torch

import fastvae.functional as F
from fastvae.recipes.data.batches import binarize_fixed
from fastvae.recipes.evaluation.bounds import evaluate, spread
from fastvae.recipes.evaluation.config import EvaluationConfig
from fastvae.recipes.systems.vae.config import POSTERIORS, VAEConfig, VAETrainConfig
from fastvae.recipes.systems.vae.model import VAE
from fastvae.recipes.uses.demo import DemoConfig

SMALL = VAEConfig(latent_features=3, hidden_features=(16, 12), width=8)
GAUSSIANS = ("diagonal", "triangular")


def small(posterior="diagonal", **changes):
    return VAE(replace(SMALL, posterior=posterior, **changes))


def a_posterior_that_matters(model):
    """Spread-out means and correlations, where a new head is close to the prior."""
    with torch.no_grad():
        model.head.linear.weight.copy_(0.3 * torch.randn_like(model.head.linear.weight))
    return model


@pytest.mark.parametrize("posterior", GAUSSIANS)
def test_shapes(posterior, tiny):
    model, x = small(posterior), binarize_fixed(tiny.x_test)
    q = model.encode(x)
    assert q.batch_shape == (60,)
    assert q.event_shape == (3,)
    z, log_q = q.rsample_with_log_prob((5,))
    assert model.decode(z).shape == (5, 60, 784)
    assert log_q.shape == (5, 60)
    assert model.bound(x).shape == (60,)
    widths = [m.out_features for m in model.modules() if isinstance(m, torch.nn.Linear)]
    parameters = {"diagonal": 6, "triangular": 9}[posterior]
    assert widths == [16, 12, parameters, 12, 16, 784]


@pytest.mark.parametrize("posterior", GAUSSIANS)
@pytest.mark.parametrize("kl", ["analytic", "monte-carlo"])
@pytest.mark.parametrize("beta", [1.0, 0.3])
def test_bound_is_the_formula(posterior, kl, beta, tiny):
    model = a_posterior_that_matters(small(posterior, kl=kl)).double()
    x, eps = binarize_fixed(tiny.x_test).double(), torch.randn(60, 3, dtype=torch.float64)
    parameters = model.head.posterior_parameters(model.encoder(x))
    mu, log_sigma = parameters[:2]
    scale = torch.diag_embed(log_sigma.exp())
    if posterior == "triangular":
        row, column = torch.tril_indices(3, 3, -1)
        scale[:, row, column] = model.config.tril_scale * parameters[2]
    q = torch.distributions.MultivariateNormal(mu, scale_tril=scale)
    prior = torch.distributions.MultivariateNormal(torch.zeros_like(mu), torch.eye(3, dtype=torch.float64))
    z = mu + (scale @ eps[..., None])[..., 0]
    if kl == "analytic":
        divergence = torch.distributions.kl_divergence(q, prior)
    else:
        divergence = q.log_prob(z) - prior.log_prob(z)
    log_p_x = torch.distributions.Bernoulli(logits=model.decode(z)).log_prob(x).sum(-1)
    torch.testing.assert_close(model.bound(x, beta=beta, eps=eps), log_p_x - beta * divergence)


@pytest.mark.parametrize("kl", ["analytic", "monte-carlo"])
def test_bound_of_a_flow_is_the_formula(kl, tiny):
    """Whatever the KL term, a flow's is that of the sample, by the change of variables."""
    model = a_posterior_that_matters(small("iaf", kl=kl)).double()
    x, eps = binarize_fixed(tiny.x_test).double(), torch.randn(60, 3, dtype=torch.float64)
    features = model.encoder(x)
    mu, log_sigma = model.head.posterior_parameters(features)[:2]
    base = torch.distributions.Normal(mu, log_sigma.exp())
    start = mu + log_sigma.exp() * eps
    z, log_det = model.flow(start, features)
    back, _ = model.flow.inverse(z, features)
    torch.testing.assert_close(back, start)
    log_q = base.log_prob(start).sum(-1) - log_det
    log_p_z = torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(-1)
    log_p_x = torch.distributions.Bernoulli(logits=model.decode(z)).log_prob(x).sum(-1)
    torch.testing.assert_close(model.bound(x, beta=0.3, eps=eps), log_p_x - 0.3 * (log_q - log_p_z))


@pytest.mark.parametrize("posterior", POSTERIORS)
def test_implementations_train_the_same_model(posterior, tiny):
    x, eps = binarize_fixed(tiny.x_test).double(), torch.randn(60, 3, dtype=torch.float64)
    gradients = []
    for impl in ("auto", "reference"):
        torch.manual_seed(0)
        model = a_posterior_that_matters(small(posterior, impl=impl)).double()
        model.bound(x, eps=eps).sum().backward()
        gradients.append([p.grad for p in model.parameters()])
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("posterior", POSTERIORS)
def test_a_step_along_the_gradient_raises_the_bound(posterior, tiny):
    model, x = small(posterior), binarize_fixed(tiny.x_test)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)

    def bound():
        return model.bound(x, generator=torch.Generator().manual_seed(0)).mean()

    before = bound()
    (-before).backward()
    optimizer.step()
    assert bound() > before


def test_start_at_pixel_means():
    model = small()
    torch.nn.init.zeros_(model.to_logits.weight)
    means = torch.linspace(0, 1, 784)
    model.start_at(means)
    started = model.decode(torch.randn(3)).sigmoid()
    torch.testing.assert_close(started, means.clamp(1e-3, 1 - 1e-3))


@pytest.mark.parametrize("posterior", GAUSSIANS)
def test_evaluation_of_a_model_whose_likelihood_is_known(posterior, tiny):
    # The decoder ignores z and the posterior is the prior: every weight is p(x) exactly.
    model, x = small(posterior).double(), binarize_fixed(tiny.x_test)
    for layer in (model.to_logits, model.head.linear):
        torch.nn.init.zeros_(layer.weight)
    torch.nn.init.zeros_(model.head.linear.bias)
    log_p = torch.distributions.Bernoulli(logits=model.to_logits.bias).log_prob(x.double()).sum(-1)
    found = evaluate(model, x, samples=7, log_p_images=50, image_chunk=20, sample_chunk=3)
    assert found.elbo == pytest.approx(log_p.mean().item())
    assert found.log_p == pytest.approx(spread(log_p, 50).mean().item())
    assert found.kl == pytest.approx(0)
    assert found.effective_samples == pytest.approx(7)
    assert (found.samples, found.elbo_images, found.log_p_images) == (7, 60, 50)


@pytest.mark.parametrize("posterior", POSTERIORS)
def test_log_p_of_a_linear_gaussian_problem(posterior):
    """Importance sampling agrees with quadrature over a one-dimensional latent."""
    torch.manual_seed(1)
    model = a_posterior_that_matters(
        VAE(VAEConfig(posterior, latent_features=1, hidden_features=(8,), data_features=6))
    ).double()
    x = (torch.rand(20, 6) < 0.5).float()
    z = torch.linspace(-8, 8, 4001, dtype=torch.float64)[:, None]
    log_p_x_z = torch.distributions.Bernoulli(logits=model.decode(z)[:, None]).log_prob(x.double()).sum(-1)
    log_prior = torch.distributions.Normal(0, 1).log_prob(z.double())
    exact = (log_p_x_z + log_prior).logsumexp(0) + torch.log(z[1] - z[0])
    samples = 20_000
    found = evaluate(model, x, samples=samples, sample_chunk=5000)
    # Relative variance of the mean weight is 1 / ESS - 1 / K; five standard errors.
    tolerance = 5 * (1 / found.effective_samples - 1 / samples) ** 0.5
    assert found.log_p == pytest.approx(exact.mean().item(), abs=tolerance)
    assert tolerance < 0.05
    if posterior in GAUSSIANS:  # the bound of a flow is noisy, as its KL divergence is estimated
        assert found.elbo < found.log_p


def test_evaluation_is_a_function_of_its_seed(tiny):
    model, x = a_posterior_that_matters(small()), binarize_fixed(tiny.x_test)
    assert evaluate(model, x, samples=4) == evaluate(model, x, samples=4)
    assert evaluate(model, x, samples=4).log_p != evaluate(model, x, samples=4, seed=1).log_p


def test_evaluation_leaves_no_gradient(tiny):
    model = small()
    evaluate(model, binarize_fixed(tiny.x_test), samples=2)
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize(
    ("config", "changes", "message"),
    [
        (VAEConfig, {"posterior": "full"}, "posterior must be one of diagonal, triangular, iaf, got 'full'"),
        (VAEConfig, {"kl": "exact"}, "kl must be one of analytic, monte-carlo, got 'exact'"),
        (VAEConfig, {"impl": "cuda"}, "impl must be one of .*reference, got 'cuda'"),
        (VAEConfig, {"latent_features": 0}, "latent_features must be >= 1, got 0"),
        (VAEConfig, {"tril_scale": 0.0}, "tril_scale must be > 0 and finite, got 0.0"),
        (VAEConfig, {"hidden_features": ()}, r"hidden_features must be one or more sizes >= 1, got \(\)"),
        (VAETrainConfig, {"epochs": 0}, "epochs must be >= 1, got 0"),
        (VAETrainConfig, {"batch_size": -1}, "batch_size must be >= 1, got -1"),
        (VAETrainConfig, {"learning_rate": float("nan")}, "learning_rate must be > 0 and finite, got nan"),
        (VAETrainConfig, {"kl_warmup": -0.5}, "kl_warmup must be >= 0, got -0.5"),
        (VAETrainConfig, {"precision": "8"}, "precision must be one of .*, got '8'"),
        (EvaluationConfig, {"samples": 0}, "samples must be >= 1, got 0"),
        (DemoConfig, {"manifold_epochs": 0}, "manifold_epochs must be >= 1, got 0"),
    ],
)
def test_bad_configuration(config, changes, message):
    with pytest.raises(ValueError, match=message):
        config(**changes)


def test_likelihood_and_posterior_come_from_the_library(tiny, monkeypatch):
    """The posterior's sample is drawn by the op itself: no second path that could drift."""
    called = []
    original = F.diag_gaussian_rsample_with_kl
    monkeypatch.setattr(F, "diag_gaussian_rsample_with_kl", lambda *a, **k: called.append(k) or original(*a, **k))
    small().bound(binarize_fixed(tiny.x_test), row_offset=5)
    assert called[0]["row_offset"] == 5


def test_latent_gradient_is_that_of_the_likelihood(tiny):
    model, x = small().double(), binarize_fixed(tiny.x_test).double()
    z = torch.randn(5, 60, 3, dtype=torch.float64, requires_grad=True)
    expected = model.log_likelihood(x, z)
    (expected_gradient,) = torch.autograd.grad(expected.sum(), z)
    log_p, gradient = model.latent_gradient(z, x)
    torch.testing.assert_close(log_p, expected)
    torch.testing.assert_close(gradient, expected_gradient)
