"""Gaussians as Pyro's distributions."""

import copy
import pickle

import pytest
import torch
from torch.distributions import kl_divergence

from fastvae.distributions import DiagonalGaussian, StandardNormal, TriangularGaussian
from fastvae.interop import to_pyro
from tests.support.posteriors import every_kind, of_torch_full, parameters, posterior

try:
    import pyro
    import pyro.distributions as dist
    from pyro import poutine
    from pyro.infer import SVI, Trace_ELBO, TraceMeanField_ELBO
except ImportError:
    pytest.skip("needs the extra peers: pyro-ppl", allow_module_level=True)

N, D = 4, 3


@pytest.fixture(autouse=True)
def validate():
    pyro.clear_param_store()
    with pyro.validation_enabled(True):
        yield
    pyro.clear_param_store()


def gaussian(kind, batch=(N,)):
    made = parameters(kind, batch, D)
    if kind == "dense":
        made[2] = made[2].detach().nan_to_num().requires_grad_()
    return posterior(made), made


@every_kind
def test_is_the_same_gaussian(kind):
    q, made = gaussian(kind)
    theirs = to_pyro(q)
    assert isinstance(theirs, type(q))
    assert isinstance(theirs, dist.torch_distribution.TorchDistributionMixin)
    assert to_pyro(theirs) is theirs
    assert theirs.has_rsample
    assert (theirs.batch_shape, theirs.event_shape, theirs.event_dim) == ((N,), (D,), 1)
    assert theirs.shape((2,)) == (2, N, D)
    assert theirs.arg_constraints is q.arg_constraints
    torch.manual_seed(1)
    z = theirs((2,))
    torch.manual_seed(1)
    assert torch.equal(z, q.rsample((2,)))
    assert torch.equal(theirs.log_prob(z), q.log_prob(z))
    expected = torch.autograd.grad(q.log_prob(z.detach()).sum(), made)
    torch.testing.assert_close(torch.autograd.grad(theirs.log_prob(z.detach()).sum(), made), expected)
    for twin in (
        copy.deepcopy(to_pyro(posterior([t.detach() for t in made]))),
        pickle.loads(pickle.dumps(to_pyro(posterior([t.detach() for t in made])))),
    ):
        assert type(twin) is type(theirs)
        torch.testing.assert_close(twin.log_prob(z), q.log_prob(z))


@every_kind
def test_shapes_as_pyro_has_them(kind):
    q, _ = gaussian(kind, (5, N))
    z = torch.randn(5, N, D)
    theirs = to_pyro(q)
    event = theirs.to_event(1)
    assert (event.batch_shape, event.event_shape) == ((5,), (N, D))
    torch.testing.assert_close(event.log_prob(z), q.log_prob(z).sum(-1))
    assert event.to_event(-1) is theirs
    for large in (theirs.expand((2, 5, N)), theirs.expand_by((2,))):
        assert type(large) is type(theirs)
        assert large().shape == (2, 5, N, D)
    masked = theirs.mask(torch.arange(N) > 0)
    assert (masked.log_prob(z)[:, 0] == 0).all()
    assert masked().shape == (5, N, D)
    torch.testing.assert_close(
        kl_divergence(event, to_pyro(StandardNormal(D, (5, N))).to_event(1)),
        kl_divergence(q, StandardNormal(D)).sum(-1),
    )
    normal = dist.Normal(torch.zeros(5, N, D), torch.ones(5, N, D)).to_event(2)
    torch.testing.assert_close(kl_divergence(event, normal), kl_divergence(q, StandardNormal(D)).sum(-1))
    torch.testing.assert_close(kl_divergence(dist.Delta(z, event_dim=1), theirs), -q.log_prob(z))


def test_settings_are_kept():
    q = to_pyro(posterior([torch.zeros(N, D), torch.zeros(N, D)], "reference", validate_args=True))
    assert q.impl == "reference"
    with pytest.raises(ValueError, match="within the support"):
        q.log_prob(torch.full((N, D), float("nan")))
    prior = to_pyro(StandardNormal(D))
    assert isinstance(prior.expand((N,)), StandardNormal)
    assert isinstance(prior.expand((N,)), dist.torch_distribution.TorchDistributionMixin)

    class Own(DiagonalGaussian):
        pass

    assert isinstance(to_pyro(Own(torch.zeros(D), torch.zeros(D))), DiagonalGaussian)


PRIORS = {
    "standard": lambda: to_pyro(StandardNormal(D)),
    "diagonal": lambda: to_pyro(DiagonalGaussian(torch.ones(D), torch.full((D,), -0.5))),
    "triangular": lambda: to_pyro(TriangularGaussian(torch.ones(D), torch.full((D,), -0.5), torch.ones(D))),
    "normal": lambda: dist.Normal(torch.ones(D), 0.5).to_event(1),
    "multivariate": lambda: dist.MultivariateNormal(torch.ones(D), scale_tril=torch.eye(D) + torch.ones(D, D).tril(-1)),
}
X, NOISE = torch.linspace(-1.0, 2.0, N * D).view(N, D), 0.7


def model_and_guide(prior, made):
    """z from the prior, x = z + noise; the guide's parameters are those of a Gaussian for every row of x."""

    def model():
        with pyro.plate("data", N):
            z = pyro.sample("z", prior())
            pyro.sample("x", dist.Normal(z, NOISE).to_event(1), obs=X)

    def guide():
        own = [pyro.param(name, t.detach().clone()) for name, t in zip(("mu", "log_sigma", "tril"), made, strict=False)]
        with pyro.plate("data", N):
            pyro.sample("z", to_pyro(posterior(own)))

    return model, guide


def analytic_loss(prior, made):
    """The negative ELBO in closed form."""
    q, p = of_torch_full(made), prior()
    if isinstance(p, StandardNormal):
        p = of_torch_full([torch.zeros(D), torch.zeros(D)])
    elif isinstance(p, DiagonalGaussian | TriangularGaussian):
        p = dist.MultivariateNormal(p.loc, scale_tril=p.scale_tril)
    elif isinstance(p, torch.distributions.Independent):
        p = of_torch_full([p.base_dist.loc, p.base_dist.scale.log()])
    expected_log_likelihood = dist.Normal(q.mean, NOISE).log_prob(X) - 0.5 * q.variance / NOISE**2
    return kl_divergence(q, p).sum() - expected_log_likelihood.sum()


def over_particles(function, particles=20_000):
    def call():
        with poutine.scale(scale=1.0 / particles), pyro.plate("particles", particles, dim=-2):
            function()

    return call


@pytest.mark.parametrize("prior", PRIORS.values(), ids=PRIORS)
@every_kind
def test_elbo(kind, prior):
    _, made = gaussian(kind)
    model, guide = model_and_guide(prior, made)
    expected = analytic_loss(prior, made)
    # Particles are a plate here, so that one run of the guide expands all Gaussians to (particles, N).
    for elbo in (Trace_ELBO(), TraceMeanField_ELBO()):
        loss = elbo.differentiable_loss(over_particles(model), over_particles(guide))
        torch.testing.assert_close(loss.detach(), expected.detach(), rtol=0.01, atol=0.05)


@pytest.mark.parametrize("prior", PRIORS.values(), ids=PRIORS)
@every_kind
def test_divergence_of_the_mean_field_elbo(kind, prior):
    """With nothing observed the loss is the divergence, exactly: no sample enters it."""
    q, made = gaussian(kind)

    def model():
        with pyro.plate("data", N):
            pyro.sample("z", prior())

    _, guide = model_and_guide(prior, made)
    loss = TraceMeanField_ELBO().loss(model, guide)
    assert loss == pytest.approx(kl_divergence(q, prior()).sum().item(), rel=1e-5)
    assert loss == TraceMeanField_ELBO().loss(model, guide)


@pytest.mark.parametrize("elbo", [Trace_ELBO, TraceMeanField_ELBO])
@every_kind
def test_training_finds_the_posterior(kind, elbo):
    """The posterior of x = z + noise under N(0, I) is Gaussian: after training its moments are the guide's."""
    pyro.set_rng_seed(0)
    made = [torch.zeros_like(t) for t in gaussian(kind)[1]]
    model, guide = model_and_guide(PRIORS["standard"], made)
    svi = SVI(model, guide, pyro.optim.ClippedAdam({"lr": 0.05, "lrd": 0.99}), elbo(num_particles=4))
    losses = [svi.step() for _ in range(300)]
    own = [pyro.param(name).detach() for name in ("mu", "log_sigma", "tril")[: len(made)]]
    variance = 1.0 / (1.0 + 1.0 / NOISE**2)
    q = posterior(own)
    torch.testing.assert_close(q.mean, variance * X / NOISE**2, atol=0.1, rtol=0)
    torch.testing.assert_close(q.covariance_matrix, (variance * torch.eye(D)).expand(N, D, D), atol=0.1, rtol=0)
    assert losses[-1] < losses[0]


@every_kind
def test_one_step_of_svi(kind):
    """Gradients of a step are those of the closed form, up to the noise of the particles."""
    _, made = gaussian(kind)
    model, guide = model_and_guide(PRIORS["standard"], made)
    model, guide = over_particles(model), over_particles(guide)
    svi = SVI(model, guide, pyro.optim.SGD({"lr": 1.0}), TraceMeanField_ELBO())
    loss = svi.step()
    expected = analytic_loss(PRIORS["standard"], made)
    assert loss == pytest.approx(expected.item(), rel=0.01)
    gradients = torch.autograd.grad(expected, made)
    for name, t, g in zip(("mu", "log_sigma", "tril"), made, gradients, strict=False):
        torch.testing.assert_close(pyro.param(name).detach(), (t - g).detach(), atol=0.1, rtol=0.02)
