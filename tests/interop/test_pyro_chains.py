"""Compositions of Pyro's transforms as flows."""

import pytest
import torch
from torch.distributions import AffineTransform as TorchAffine
from torch.distributions import ComposeTransform

from fastvae.interop import from_pyro
from fastvae.nn import AffineTransform, FlowSequence, InverseAutoregressiveFlow, MaskedAutoregressiveFlow, Permutation

try:
    import pyro.distributions as dist
    import pyro.distributions.transforms as transforms
    from pyro.distributions.conditional import ConditionalComposeTransformModule
    from pyro.distributions.torch_transform import ComposeTransformModule
    from pyro.nn import AutoRegressiveNN, ConditionalAutoRegressiveNN
except ImportError:
    pytest.skip("needs the extra peers: pyro-ppl", allow_module_level=True)

D, C = 5, 3
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}
dtypes = pytest.mark.parametrize("dtype", TOLERANCE)


@pytest.fixture(autouse=True)
def default_dtype(request):
    """Pyro's inverse starts from zeros of the default dtype."""
    torch.set_default_dtype(request.getfixturevalue("dtype") if "dtype" in request.fixturenames else torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def step(**settings):
    return transforms.AffineAutoregressive(AutoRegressiveNN(D, [16, 12]), **settings)


def conditional_step(**settings):
    return transforms.ConditionalAffineAutoregressive(ConditionalAutoRegressiveNN(D, C, [16, 12]), **settings)


def permute():
    return transforms.Permute(torch.randperm(D))


def base():
    return dist.Normal(torch.zeros(D), torch.ones(D)).to_event(1)


def compare(theirs, context=None, conditioned=None):
    """``theirs`` is a list or a transform; ``conditioned`` what it is with the context."""
    flow, z, tolerance = from_pyro(theirs), torch.randn(6, D), TOLERANCE[torch.get_default_dtype()]
    parts = conditioned if conditioned is not None else theirs
    whole = ComposeTransform(parts) if isinstance(parts, list) else parts
    y, (out, log_det) = whole(z), flow(z, context)
    torch.testing.assert_close(out, y, atol=tolerance, rtol=tolerance)
    ladj = whole.log_abs_det_jacobian(z, y)
    torch.testing.assert_close(log_det, ladj if ladj.dim() == 1 else ladj.sum(-1), atol=tolerance, rtol=tolerance)
    x = torch.randn(6, D)
    back, minus_log_det = flow.inverse(x, context)
    torch.testing.assert_close(back, whole.inv(x.clone()), atol=20 * tolerance, rtol=20 * tolerance)
    density = base().log_prob(back) + minus_log_det
    distribution = dist.TransformedDistribution(base(), parts if isinstance(parts, list) else [parts])
    torch.testing.assert_close(density, distribution.log_prob(x.clone()), atol=50 * tolerance, rtol=20 * tolerance)
    return flow


@dtypes
@pytest.mark.parametrize("stable", [False, True])
@pytest.mark.parametrize("steps", [1, 3])
def test_steps_and_permutations(steps, stable, dtype):
    parts = [part for _ in range(steps) for part in (step(stable=stable), permute())]
    flow = compare(parts)
    assert [type(part) for part in flow] == [InverseAutoregressiveFlow, Permutation]
    assert len(flow[0].networks) == steps


def test_permutations_that_cancel_leave_one_flow():
    one = permute()
    flow = compare([step(), one, step(), one.inv, step()])
    assert isinstance(flow, InverseAutoregressiveFlow)
    assert len(flow.networks) == 3


@dtypes
@pytest.mark.parametrize("kind", [list, ComposeTransform, ComposeTransformModule])
def test_compositions(kind, dtype):
    compare(kind([step(), permute(), step()]))


@dtypes
def test_nested_and_inverted(dtype):
    inner = ComposeTransform([step(), permute(), step(stable=True)])
    parts = [inner, permute(), inner.inv, TorchAffine(torch.randn(D), torch.rand(D) + 0.5), step(), step().inv]
    flow = compare(parts)
    assert [type(part) for part in flow] == [
        *(InverseAutoregressiveFlow, InverseAutoregressiveFlow),  # of two kinds
        *(MaskedAutoregressiveFlow, MaskedAutoregressiveFlow),
        AffineTransform,
        InverseAutoregressiveFlow,
        MaskedAutoregressiveFlow,
        Permutation,
    ]


def test_inverse_of_one_step():
    assert isinstance(compare(step().inv), MaskedAutoregressiveFlow)
    assert isinstance(compare(step().inv.inv), InverseAutoregressiveFlow)


def test_affine_with_numbers():
    flow = compare([step(), TorchAffine(0.5, -2.0, event_dim=1), permute().inv, step()])
    assert flow[1].loc.tolist() == [0.5] * D


@dtypes
def test_conditional(dtype):
    parts, context = [conditional_step(), permute(), conditional_step(stable=True).inv, step()], torch.randn(6, C)
    composed = ConditionalComposeTransformModule(parts)
    conditioned = [t.condition(context) if isinstance(t, dist.conditional.ConditionalTransform) else t for t in parts]
    for theirs in (parts, composed):
        flow = compare(theirs, context, conditioned)
        assert [type(part) for part in flow] == [
            InverseAutoregressiveFlow,
            MaskedAutoregressiveFlow,
            InverseAutoregressiveFlow,
            Permutation,
        ]
    compare(composed.inv, context, composed.condition(context).inv)


@dtypes
def test_distribution(dtype):
    parts = [step(), permute(), step()]
    normal, x = base(), torch.randn(6, D)
    for own in (normal, dist.Normal(0.0, 1.0).expand([D]), dist.Normal(torch.zeros(4, D), torch.ones(4, D))):
        flow = from_pyro(dist.TransformedDistribution(own, parts))
        z, log_det = flow.inverse(x)
        expected = dist.TransformedDistribution(normal, parts).log_prob(x.clone())
        tolerance = 20 * TOLERANCE[dtype]
        torch.testing.assert_close(normal.log_prob(z) + log_det, expected, atol=tolerance, rtol=tolerance)


def test_conditional_distribution():
    parts, context, x = [conditional_step(), permute(), conditional_step()], torch.randn(6, C), torch.randn(6, D)
    theirs = dist.ConditionalTransformedDistribution(base(), parts)
    z, log_det = from_pyro(theirs).inverse(x, context)
    torch.testing.assert_close(base().log_prob(z) + log_det, theirs.condition(context).log_prob(x.clone()))


def test_gradients_reach_every_parameter():
    flow = from_pyro([step(), permute(), step().inv, TorchAffine(torch.nn.Parameter(torch.zeros(D)), 2.0)])
    out, log_det = flow(torch.randn(6, D))
    (out.square().sum() + log_det.sum()).backward()
    assert all(p.grad is not None for p in flow.parameters())
    assert isinstance(flow[2].loc, torch.nn.Parameter)


def test_empty():
    flow = from_pyro([])
    assert isinstance(flow, FlowSequence)
    assert len(flow) == 0


@pytest.mark.parametrize(
    ("own", "message"),
    [
        (lambda: dist.Normal(torch.zeros(D), 2.0 * torch.ones(D)), "must have loc 0 and scale 1: put an AffineTrans"),
        (lambda: dist.Normal(torch.ones(D), torch.ones(D)), "must have loc 0 and scale 1"),
        (lambda: dist.StudentT(3.0 * torch.ones(D)), "must be a standard normal one, got StudentT"),
    ],
)
def test_other_bases(own, message):
    with pytest.raises(ValueError, match=message):
        from_pyro(dist.TransformedDistribution(own(), [step()]))


@pytest.mark.parametrize(
    ("part", "error", "message"),
    [
        (lambda: transforms.planar(D), ValueError, r"transform 1 \(Planar\) cannot be expressed, only Pyro's Affine"),
        (lambda: transforms.ExpTransform(), ValueError, r"transform 1 \(ExpTransform\) cannot be expressed"),
        (lambda: [step(), transforms.planar(D).inv], ValueError, r"transform 1.1 \(Planar\) cannot be expressed"),
        (lambda: step(log_scale_min_clip=-2.0), ValueError, "transform 1: log_scale_min_clip and"),
        (lambda: conditional_step().condition(torch.randn(C)), TypeError, "transform 1: transform's network must be"),
        (lambda: transforms.Permute(torch.arange(D), dim=-2), ValueError, "transform 1: dim of Permute must be -1"),
        (lambda: transforms.Permute(torch.arange(4)), ValueError, r"the same number of features, got \[4, 5\]"),
    ],
)
def test_what_cannot_be_expressed(part, error, message):
    with pytest.raises(error, match=message):
        from_pyro([step(), part()])
