"""Models of images and classes: their bounds against exact densities and enumeration."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from fastvae.distributions import DiagonalGaussian
from fastvae.objectives import LogMeanExp
from fastvae.recipes.class_models.figures import (
    SemiSupervisedConfig,
    describe_semi_supervised,
    evaluate_semi_supervised,
)
from fastvae.recipes.class_models.semi_supervised import ClassPosterior, SemiSupervisedVAE
from fastvae.recipes.systems.cvae.config import CVAEConfig
from fastvae.recipes.systems.cvae.model import CVAE
from fastvae.recipes.systems.m2.config import M2Config
from fastvae.recipes.systems.m2.model import M2

CLASSES, LATENTS, PIXELS, ROWS = 3, 2, 6, 5
SIZES = {"latent_features": LATENTS, "hidden_features": (7, 5), "classes": CLASSES, "data_features": PIXELS}


class LinearGaussian(SemiSupervisedVAE):
    """x = A z + b_y + noise: every density has a closed form, and q is the exact posterior."""

    def __init__(self, sigma=0.7):
        config = SimpleNamespace(
            hidden_features=(4,), latent_features=LATENTS, classes=CLASSES, activation="relu", impl="auto"
        )
        super().__init__(config, PIXELS, PIXELS)
        self.double()
        # Orthogonal columns make the posterior diagonal.
        columns, _ = torch.linalg.qr(torch.randn(PIXELS, LATENTS, dtype=torch.float64))
        self.a, self.b, self.sigma = columns * torch.tensor([1.5, 0.4]), torch.randn(CLASSES, PIXELS).double(), sigma

    def residual(self, x, labels):
        return x[:, None] - self.b if labels is None else x - self.b[labels]

    def posterior(self, x, labels=None):
        precision = 1.0 + self.a.square().sum(0) / self.sigma**2
        mu = self.residual(x, labels) @ self.a / self.sigma**2 / precision
        return DiagonalGaussian(mu, (-0.5 * precision.log()).expand_as(mu))

    def log_likelihood(self, x, z, labels=None):
        error = self.residual(x, labels) - z @ self.a.T
        return torch.distributions.Normal(0.0, self.sigma).log_prob(error).sum(-1)

    def log_joint(self, x):
        covariance = self.a @ self.a.T + self.sigma**2 * torch.eye(PIXELS, dtype=torch.float64)
        density = torch.distributions.MultivariateNormal(self.b, covariance)
        return density.log_prob(x[:, None]) - math.log(CLASSES)

    def class_logits(self, x):
        return self.log_joint(x)


def points_of_a_normal(shape):
    """Points whose mean of any quadratic function is that of a standard normal vector."""
    for column in range(shape[-1]):
        for sign in (-1.0, 1.0):
            eps = torch.zeros(shape, dtype=torch.float64)
            eps[..., column] = sign * math.sqrt(shape[-1])
            yield eps


@pytest.fixture
def linear():
    torch.manual_seed(0)
    model = LinearGaussian()
    return model, torch.randn(ROWS, PIXELS, dtype=torch.float64)


def test_labelled_bound_of_an_exact_posterior_is_log_p(linear):
    model, x = linear
    labels = torch.arange(ROWS) % CLASSES
    found = [model.labelled_bound(x, labels, eps=eps) for eps in points_of_a_normal((ROWS, LATENTS))]
    expected = model.log_joint(x).gather(1, labels[:, None])[:, 0]
    torch.testing.assert_close(torch.stack(found).mean(0), expected)


def test_unlabelled_bound_of_exact_posteriors_is_log_p(linear):
    model, x = linear
    found = [model.unlabelled_bound(x, eps=eps) for eps in points_of_a_normal((ROWS, CLASSES, LATENTS))]
    torch.testing.assert_close(torch.stack(found).mean(0), model.log_joint(x).logsumexp(-1))
    measured = [model.measure(x, eps=eps) for eps in points_of_a_normal((ROWS, CLASSES, LATENTS))]
    bound = torch.stack([log_p_x - kl.sum(-1) for log_p_x, kl in measured]).mean(0)
    torch.testing.assert_close(bound, model.log_joint(x).logsumexp(-1))


def test_classes_by_importance_samples_of_an_exact_posterior(linear):
    """Every log-weight is the density itself, whatever the sample."""
    model, x = linear
    joint = LogMeanExp()
    found = model.infer_classes(x, 3, sample_chunk=2, joint=joint)
    torch.testing.assert_close(found, model.log_joint(x))
    torch.testing.assert_close(joint.value(), model.log_joint(x).logsumexp(-1))
    torch.testing.assert_close(joint.effective_sample_size(), torch.full((ROWS,), 3.0).double())


def a_model(kind=M2, **changes):
    torch.manual_seed(1)
    model = (M2(M2Config(**SIZES, **changes)) if kind is M2 else CVAE(CVAEConfig(**SIZES, **changes))).double()
    with torch.no_grad():
        model.head.linear.weight.copy_(0.3 * torch.randn_like(model.head.linear.weight))
    return model, torch.rand(ROWS, PIXELS).round().double()


@pytest.mark.parametrize("impl", ["auto", "reference"])
def test_gradients_equal_enumeration(impl):
    """One call with each class as the label, and the sum written out."""
    model, x = a_model(impl=impl)
    eps = torch.randn(ROWS, CLASSES, LATENTS, dtype=torch.float64)
    bound = model.unlabelled_bound(x, eps=eps)
    parameters = list(model.parameters())
    gradients = torch.autograd.grad(bound.sum(), parameters)
    q = model.class_logits(x).softmax(-1)
    expected = 0.0
    for label in range(CLASSES):
        of_label = model.labelled_bound(x, torch.full((ROWS,), label), eps=eps[:, label])
        expected = expected + q[:, label] * (of_label - q[:, label].log())
    torch.testing.assert_close(bound, expected)
    torch.testing.assert_close(gradients, torch.autograd.grad(expected.sum(), parameters))


def test_bound_of_a_certain_class_is_the_labelled_one():
    model, x = a_model()
    labels = torch.arange(ROWS) % CLASSES
    eps = torch.randn(ROWS, CLASSES, LATENTS, dtype=torch.float64)
    model.class_logits = lambda x: 1e6 * torch.nn.functional.one_hot(labels, CLASSES).double()
    own = eps[torch.arange(ROWS), labels]
    torch.testing.assert_close(model.unlabelled_bound(x, eps=eps), model.labelled_bound(x, labels, eps=own))


def test_order_of_classes_does_not_matter():
    model, x = a_model()
    eps, order = torch.randn(ROWS, CLASSES, LATENTS, dtype=torch.float64), torch.tensor([2, 0, 1])
    before = model.unlabelled_bound(x, eps=eps)
    with torch.no_grad():
        for first in (model.encoder_in, model.decoder_in):
            first.class_weight.copy_(first.class_weight[:, order])
        model.classifier[-1].weight.copy_(model.classifier[-1].weight[order])
        model.classifier[-1].bias.copy_(model.classifier[-1].bias[order])
    torch.testing.assert_close(model.unlabelled_bound(x, eps=eps[:, order]), before)


def test_labelled_bound_leaves_the_classifier_alone():
    """Without unlabelled images the classifier learns from its own term only."""
    model, x = a_model()
    bound = model.labelled_bound(x, torch.arange(ROWS) % CLASSES).sum()
    gradients = torch.autograd.grad(bound, list(model.classifier.parameters()), allow_unused=True)
    assert all(gradient is None for gradient in gradients)


@pytest.mark.parametrize("kind", [M2, CVAE])
def test_style_decoded_with_its_own_class_is_the_reconstruction(kind):
    model, x = a_model(kind)
    labels = torch.arange(ROWS) % CLASSES
    own = model.transfer(x, labels)[torch.arange(ROWS), labels]
    mean = model.posterior(x, labels).mu
    torch.testing.assert_close(own, model.decode(mean, labels).sigmoid().detach())
    # As reconstruct draws z, its mean over points of a normal vector is no help: the mean z is one of them.
    every = model.decode(mean[:, None].expand(-1, CLASSES, -1)).sigmoid()
    torch.testing.assert_close(model.transfer(x, labels), every.detach())


@pytest.mark.parametrize("prior", ["normal", "class"])
def test_conditional_bound_is_the_formula(prior):
    model, x = a_model(CVAE, prior=prior)
    labels, eps = torch.arange(ROWS) % CLASSES, torch.randn(ROWS, LATENTS, dtype=torch.float64)
    q = model.posterior(x, labels)
    own = torch.distributions.Normal(q.mu, q.log_sigma.exp())
    mu, log_sigma = model.prior[labels].chunk(2, -1) if prior == "class" else (torch.zeros_like(q.mu),) * 2
    divergence = torch.distributions.kl_divergence(own, torch.distributions.Normal(mu, log_sigma.exp())).sum(-1)
    logits = model.decode(q.mu + q.log_sigma.exp() * eps, labels)
    log_p_x = torch.distributions.Bernoulli(logits=logits).log_prob(x).sum(-1)
    torch.testing.assert_close(model.bound(x, labels, eps=eps), log_p_x - divergence)
    weights = model.log_weights(x, q, 4000, labels=labels, generator=torch.Generator().manual_seed(0))
    difference = weights.mean(0) - torch.stack(
        [model.bound(x, labels, eps=eps) for eps in torch.randn(2000, ROWS, LATENTS, dtype=torch.float64)]
    ).mean(0)
    assert (difference.abs() < 0.15).all()


def test_prior_of_a_class_is_what_is_drawn():
    model, _ = a_model(CVAE, prior="class")
    with torch.no_grad():
        model.prior.copy_(torch.tensor([[3.0, -3.0, -1.0, 0.5]]).expand(CLASSES, -1) * torch.arange(1, 4)[:, None] / 2)
    z = model.draw_prior(torch.full((20_000,), 1), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(z.mean(0), torch.tensor([3.0, -3.0]).double(), atol=0.05, rtol=0)
    torch.testing.assert_close(z.std(0), torch.tensor([-1.0, 0.5]).exp().double(), atol=0.05, rtol=0)


class Known:
    """A model whose p(y | x) is certain: class 1 where the first pixel is above a half; q(y | x) is the opposite."""

    config = type("Config", (), {"classes": 2})()

    def __init__(self):
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def parameters(self):
        yield self.weight

    def state_dict(self):
        return {}

    def encode(self, x):
        return ClassPosterior(None, -self.infer_classes(x, 1))

    def measure(self, x, posterior, **_):
        return torch.zeros(len(x)), torch.zeros(len(x), 2)

    def infer_classes(self, x, samples, *, joint=None, **_):
        if joint is not None:
            joint.update(torch.zeros(samples, len(x)))
        ink = x[:, 0] - 0.5
        return torch.stack([-ink, ink], 1)


def test_classes_are_inferred_of_the_intensities_where_they_are_given():
    x = torch.zeros(30, 3)
    labels = np.arange(30) % 2
    intensities = torch.from_numpy(labels).float()[:, None].expand(-1, 3) * 0.6
    intensities = intensities + torch.where(torch.arange(30)[:, None] == 4, 0.7, 0.0)
    how = {"config": SemiSupervisedConfig(samples=2, image_chunk=7, log_p_images=30)}
    binary = evaluate_semi_supervised(Known(), x, labels, **how)
    assert (binary.error, binary.posterior_error, binary.posterior_of) == (50.0, 50.0, "binary images")
    found = evaluate_semi_supervised(Known(), x, labels, **how, intensities=intensities)
    assert found.posterior_error == pytest.approx(100 / 30)
    assert found.posterior_of == "intensities"
    assert found.error == binary.error
    # The same evenly spread images, of which number 4 is none.
    few = {"config": SemiSupervisedConfig(samples=2, image_chunk=7, log_p_images=10)}
    assert evaluate_semi_supervised(Known(), x, labels, **few, intensities=intensities).posterior_error == 0.0
    assert "by p(y | x) of intensities" in "\n".join(describe_semi_supervised(found))


def test_network_that_was_never_trained_has_no_figure():
    """Imported weights have no q(y | x): the error is that of p(y | x), the bound that of the best q(y | x)."""
    torch.manual_seed(0)
    model, x, labels = M2(M2Config(2, (8,), classes=3, data_features=6)), torch.rand(40, 6).round(), np.arange(40) % 3
    assert model.knows_classes
    for parameter in model.classifier.parameters():
        torch.nn.init.zeros_(parameter)
    assert not model.knows_classes
    log_p_x, kl_terms = model.measure(x, generator=torch.Generator().manual_seed(1))
    of_classes, kl = model.measure_classes(x, generator=torch.Generator().manual_seed(1))
    expected = (of_classes - kl - math.log(3)).logsumexp(-1)
    torch.testing.assert_close(log_p_x - kl_terms.sum(-1), expected)
    figures = evaluate_semi_supervised(model, x, labels, SemiSupervisedConfig(samples=2, log_p_images=20))
    assert (figures.error, figures.error_by) == (figures.posterior_error, "p(y | x)")
    assert "q(y" not in "\n".join(describe_semi_supervised(figures))
    assert figures.elbo_images == 40
    generator = torch.Generator().manual_seed(2)
    likeliest = model.infer_classes(x, 1, generator=generator).argmax(-1)
    z, _ = model.posterior(x, likeliest).rsample_with_log_prob(generator=generator)
    found = model.reconstruct(x, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(found, model.to_intensities(model.decode(z, likeliest)))


@pytest.mark.parametrize("labels", [None, torch.arange(40) % CLASSES])
def test_start_of_a_new_model(labels):
    """Hidden features vary by 1 over the first batch and the classes that it is taken under."""
    model = M2(M2Config(**SIZES)).double()
    x = torch.rand(40, PIXELS, generator=torch.Generator().manual_seed(0)).round().double()
    shape = (40, LATENTS) if labels is not None else (40, CLASSES, LATENTS)
    eps, seen = torch.randn(shape, dtype=torch.float64), {}
    others = {name: value.clone() for name, value in model.state_dict().items()}
    model.initialize_from(x, labels, eps=eps)
    layers = [model.encoder_in, model.decoder_in, model.encoder[0], model.decoder[0]]
    layers += [layer for layer in model.classifier[:-1] if isinstance(layer, torch.nn.Linear)]
    for layer in layers:
        layer.register_forward_hook(lambda layer, args, output: seen.update({layer: output.flatten(0, -2)}))
    model.decode(model.posterior(x, labels).rsample_with_log_prob(eps=eps)[0], labels)
    model.class_logits(x)
    assert len(seen) == len(layers) == 6
    for layer, output in seen.items():
        # What the layer gives is seen before or after its softplus.
        if layer in layers[:2]:
            output = output.expm1().log()
        std, mean = torch.std_mean(output, 0, correction=0)
        torch.testing.assert_close(std, torch.ones_like(std), rtol=1e-9, atol=0)
        torch.testing.assert_close(mean, torch.zeros_like(mean), rtol=0, atol=1e-9)
    for name in ("head", "to_data", "classifier.4"):
        for key, value in model.state_dict().items():
            assert not key.startswith(name) or torch.equal(value, others[key]), key
