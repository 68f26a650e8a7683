"""Flows for and from Pyro."""

import copy
import pickle

import pytest
import torch

from fastvae.interop import from_pyro, to_pyro
from fastvae.nn import HouseholderFlow, InverseAutoregressiveFlow, PlanarFlow, check_autoregressive

try:
    import pyro
    import pyro.distributions as dist
    import pyro.distributions.transforms as transforms
    from pyro.nn import AutoRegressiveNN, ConditionalAutoRegressiveNN
except ImportError:
    pytest.skip("needs the extra peers: pyro-ppl", allow_module_level=True)

D, C = 5, 3


def transform(conditional=False, stable=False, widths=(20, 15), network=None, **settings):
    permutation = torch.tensor([3, 0, 4, 1, 2])
    options = {"permutation": permutation, **(network or {})}
    if conditional:
        made = ConditionalAutoRegressiveNN(D, C, list(widths), **options)
        return transforms.ConditionalAffineAutoregressive(made, stable=stable, **settings)
    return transforms.AffineAutoregressive(AutoRegressiveNN(D, list(widths), **options), stable=stable, **settings)


@pytest.mark.parametrize("conditional", [False, True])
@pytest.mark.parametrize("stable", [False, True])
@pytest.mark.parametrize("widths", [(20,), (20, 15), (7, 5, 9)])
def test_from_pyro(conditional, stable, widths):
    theirs, z = transform(conditional, stable, widths), torch.randn(6, D, requires_grad=True)
    context = torch.randn(6, C) if conditional else None
    flow = from_pyro(theirs)
    assert isinstance(flow, InverseAutoregressiveFlow)
    conditioned = theirs.condition(context) if conditional else theirs
    y, (out, log_det) = conditioned(z), flow(z, context)
    expected_log_det = conditioned.log_abs_det_jacobian(z, y)
    torch.testing.assert_close(out, y, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(log_det, expected_log_det, atol=1e-5, rtol=1e-5)
    back, minus_log_det = flow.inverse(y.detach(), context)
    torch.testing.assert_close(back, z, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(minus_log_det, -log_det, atol=1e-4, rtol=1e-4)
    # Gradients with respect to the input, and that parameters have some.
    (theirs_d_z,) = torch.autograd.grad(y.square().sum() + expected_log_det.sum(), z, retain_graph=True)
    (ours_d_z,) = torch.autograd.grad(out.square().sum() + log_det.sum(), z, retain_graph=True)
    torch.testing.assert_close(ours_d_z, theirs_d_z, atol=1e-4, rtol=1e-4)
    (out.sum() + log_det.sum()).backward()
    assert all(p.grad is not None for p in flow.parameters())
    check_autoregressive(flow, require_used=min(widths) >= 2 * D)


def test_copies_weights():
    theirs, z = transform(), torch.randn(6, D)
    flow = from_pyro(theirs)
    expected = theirs(z)
    with torch.no_grad():
        for p in flow.parameters():
            p.zero_()
    torch.testing.assert_close(theirs(z.clone()), expected)


def test_beyond_the_clamp():
    theirs, z = transform(), torch.randn(6, D)
    with torch.no_grad():
        theirs.arn.layers[-1].bias.mul_(50.0)
    y, (out, log_det) = theirs(z), from_pyro(theirs)(z)
    torch.testing.assert_close(out, y)
    torch.testing.assert_close(log_det, theirs.log_abs_det_jacobian(z, y))
    assert (log_det.abs() > 3).any()


def test_double():
    theirs, z = transform(stable=True, sigmoid_bias=1.5).double(), torch.randn(6, D).double()
    flow = from_pyro(theirs)
    assert next(flow.parameters()).dtype == torch.float64
    torch.testing.assert_close(flow(z)[0], theirs(z))


@pytest.mark.parametrize("name", ["elu", "tanh", "softplus"])
def test_activations(name):
    modules = {"elu": torch.nn.ELU(), "tanh": torch.nn.Tanh(), "softplus": torch.nn.Softplus()}
    theirs, z = transform(network={"nonlinearity": modules[name]}), torch.randn(6, D)
    flow = from_pyro(theirs)
    assert flow.networks[0].structure.activation == name
    torch.testing.assert_close(flow(z)[0], theirs(z))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"network": {"skip_connections": True}}, "skip_connections=True cannot be expressed"),
        ({"network": {"param_dims": [2, 3]}}, r"param_dims must be \[1, 1\], mean and log-scale, got \[2, 3\]"),
        (
            {"network": {"nonlinearity": torch.nn.ELU(alpha=0.5)}},
            r"activation ELU\(alpha=0.5\) cannot be expressed",
        ),
        (
            {"network": {"nonlinearity": torch.nn.Sigmoid()}},
            r"activation Sigmoid\(\) cannot be expressed, only elu",
        ),
        ({"log_scale_min_clip": -2.0}, r"log_scale_max_clip must be \(-5.0, 3.0\), got \(-2.0"),
    ],
)
@pytest.mark.parametrize("conditional", [False, True])
def test_what_cannot_be_expressed(arguments, message, conditional):
    with pytest.raises(ValueError, match=message):
        from_pyro(transform(conditional, **arguments))


def test_other_transforms():
    with pytest.raises(TypeError, match=r"transform must be Pyro's AffineAutoregressive or .*, got Planar"):
        from_pyro(transforms.planar(3))
    conditioned = transform(conditional=True).condition(torch.randn(C))
    with pytest.raises(TypeError, match=r"network must be Pyro's AutoRegressiveNN or .*, got partial"):
        from_pyro(conditioned)


def base(*batch):
    return dist.Normal(torch.zeros(*batch, D), torch.ones(*batch, D)).to_event(1)


def test_to_pyro():
    flow = InverseAutoregressiveFlow(D, (16,), steps=2)
    t = to_pyro(flow)
    assert isinstance(t, dist.torch_transform.TransformModule)
    assert {id(p) for p in t.parameters()} == {id(p) for p in flow.parameters()}
    q = dist.TransformedDistribution(base(), [t])
    x = q.rsample((6,))
    torch.testing.assert_close(q.log_prob(x), q.log_prob(x.clone()), atol=1e-4, rtol=1e-4)
    z = torch.randn(6, D)
    torch.testing.assert_close(t(z), flow(z)[0])
    torch.testing.assert_close(t.inv(t(z.clone()).clone()), z, atol=1e-4, rtol=1e-4)
    assert t.with_cache(0)._cache_size == 0
    for twin in (copy.deepcopy(t), pickle.loads(pickle.dumps(t))):
        torch.testing.assert_close(twin(z), flow(z)[0])
    assert len({t, t}) == 1


def test_to_pyro_conditional():
    flow = InverseAutoregressiveFlow(D, (16,), context_features=C)
    t, context = to_pyro(flow), torch.randn(6, C)
    assert isinstance(t, dist.conditional.ConditionalTransformModule)
    assert {id(p) for p in t.parameters()} == {id(p) for p in flow.parameters()}
    q = dist.ConditionalTransformedDistribution(base(), [t]).condition(context)
    x = q.rsample((2,))
    assert (x.shape, q.log_prob(x).shape) == ((2, 6, D), (2, 6))
    z = torch.randn(6, D)
    torch.testing.assert_close(t.condition(context)(z), flow(z, context)[0])


@pytest.mark.parametrize("flow", [InverseAutoregressiveFlow(D, (16,)), PlanarFlow(D), HouseholderFlow(D, 2)])
def test_a_guide_learns(flow):
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    mean = torch.linspace(-1.0, 1.0, D)

    def model():
        pyro.sample("z", dist.Normal(mean, 0.5).to_event(1))

    t = to_pyro(flow)

    def guide():
        pyro.module("flow", t)
        loc, log_scale = pyro.param("loc", torch.zeros(D)), pyro.param("log_scale", torch.zeros(D))
        pyro.sample("z", dist.TransformedDistribution(dist.Normal(loc, log_scale.exp()).to_event(1), [t]))

    svi = pyro.infer.SVI(model, guide, pyro.optim.Adam({"lr": 0.02}), pyro.infer.Trace_ELBO(num_particles=4))
    losses = [svi.step() for _ in range(150)]
    assert sum(losses[-20:]) < 0.5 * sum(losses[:20])


def test_type_errors():
    message = r"flow must be a module with .*, a DiagonalGaussian or a TriangularGaussian, got (function|Normal)"
    for other in (lambda z: z, torch.distributions.Normal(0.0, 1.0)):
        with pytest.raises(TypeError, match=message):
            to_pyro(other)
