"""Flows for and from nflows."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from fastvae.interop import from_nflows, to_nflows
from fastvae.nn import (
    AutoregressiveError,
    InverseAutoregressiveFlow,
    MaskedAutoregressiveFlow,
    PlanarFlow,
    check_autoregressive,
)

try:
    from nflows.distributions import StandardNormal
    from nflows.flows import Flow
    from nflows.transforms import CompositeTransform, MaskedAffineAutoregressiveTransform, ReversePermutation
    from nflows.transforms.base import InverseNotAvailable
except ImportError:
    pytest.skip("needs the extra peers: nflows", allow_module_level=True)

D, C = 5, 3


def transform(features=D, hidden=24, **settings):
    made = MaskedAffineAutoregressiveTransform(features, hidden, **settings)
    with torch.no_grad():  # blocks start at zero
        for p in made.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return made


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("blocks", [0, 1, 2])
@pytest.mark.parametrize("activation", [functional.relu, functional.elu, torch.tanh, nn.SiLU()])
def test_from_nflows(residual, blocks, activation):
    theirs = transform(num_blocks=blocks, use_residual_blocks=residual, activation=activation)
    flow, x = from_nflows(theirs), torch.randn(6, D, requires_grad=True)
    assert isinstance(flow, MaskedAutoregressiveFlow)
    expected, ours = theirs(x), flow.inverse(x)
    for a, e in zip(ours, expected, strict=True):
        torch.testing.assert_close(a, e, atol=1e-5, rtol=1e-5)
    for a, e in zip(flow(ours[0].detach()), theirs.inverse(expected[0].detach()), strict=True):
        torch.testing.assert_close(a, e, atol=1e-4, rtol=1e-4)
    gradients = [
        torch.autograd.grad(y.square().sum() + ld.sum(), x, retain_graph=True)[0] for y, ld in (ours, expected)
    ]
    torch.testing.assert_close(*gradients, atol=1e-4, rtol=1e-4)
    (ours[0].square().sum() + ours[1].sum()).backward()
    assert all(p.grad is not None for p in flow.parameters())
    check_autoregressive(flow)


@pytest.mark.parametrize("features", [1, 2, 30])
def test_features(features):
    theirs, x = transform(features, 8), torch.randn(6, features)
    torch.testing.assert_close(from_nflows(theirs).inverse(x)[0], theirs(x)[0], atol=1e-5, rtol=1e-5)


def test_random_masks():
    theirs, x = transform(use_residual_blocks=False, random_mask=True), torch.randn(6, D)
    torch.testing.assert_close(from_nflows(theirs).inverse(x)[0], theirs(x)[0], atol=1e-5, rtol=1e-5)


def test_context_as_nflows_has_it():
    theirs = transform(context_features=C, use_residual_blocks=False)
    flow, x, context = from_nflows(theirs), torch.randn(6, D), torch.randn(6, C)
    for a, e in zip(flow.inverse(x, context), theirs(x, context), strict=True):
        torch.testing.assert_close(a, e, atol=1e-5, rtol=1e-5)
    # Both ignore it in the parameters of the first feature.
    with pytest.raises(AutoregressiveError, match=r"output 0 .*does not depend on the context"):
        check_autoregressive(flow)


@pytest.mark.parametrize("activation", [functional.relu, functional.elu, nn.ReLU()])
@pytest.mark.parametrize("blocks", [0, 1, 3])
@pytest.mark.parametrize("features", [1, 2, D])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_context_in_residual_blocks(activation, blocks, features, dtype):
    theirs = transform(features, context_features=C, num_blocks=blocks, activation=activation).to(dtype)
    flow, x, context = from_nflows(theirs), torch.randn(6, features, dtype=dtype), torch.randn(6, C, dtype=dtype)
    x.requires_grad_()
    tolerance = 1e-5 if dtype == torch.float32 else 1e-10
    ours, expected = flow.inverse(x, context), theirs(x, context)
    for a, e in zip(ours, expected, strict=True):
        torch.testing.assert_close(a, e, atol=tolerance, rtol=tolerance)
    for a, e in zip(flow(ours[0].detach(), context), theirs.inverse(ours[0].detach(), context), strict=True):
        torch.testing.assert_close(a, e, atol=10 * tolerance, rtol=10 * tolerance)
    gradients = [
        torch.autograd.grad(y.square().sum() + ld.sum(), x, retain_graph=True)[0] for y, ld in (ours, expected)
    ]
    torch.testing.assert_close(*gradients, atol=10 * tolerance, rtol=10 * tolerance)
    (ours[0].square().sum() + ours[1].sum()).backward()
    assert all(p.grad is not None for p in flow.parameters())


def test_training_may_connect_the_first_feature_to_the_context():
    theirs = transform(context_features=C).double()
    flow, x, context = from_nflows(theirs), torch.randn(6, D).double(), torch.randn(6, C).double().requires_grad_()
    for own in (flow.inverse, theirs):
        assert not torch.autograd.grad(own(x, context)[0][:, 0].sum(), context)[0].any()
    check_autoregressive(flow)


@pytest.mark.parametrize("residual", [False, True])
def test_check_finds_the_first_feature_without_context(residual):
    network = transform(context_features=C, use_residual_blocks=residual).autoregressive_net

    def parameters(x, context):
        return network.double()(x, context).unflatten(-1, (D, 2)).mT

    with pytest.raises(AutoregressiveError, match=r"output 0 \(parameter 0\) does not depend on the context"):
        check_autoregressive(parameters, D, context_features=C)
    ours = MaskedAutoregressiveFlow(D, (24, 24), context_features=C)
    check_autoregressive(ours)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"use_batch_norm": True}, "use_batch_norm=True cannot be expressed"),
        ({"use_batch_norm": True, "use_residual_blocks": False}, "use_batch_norm=True cannot be expressed"),
        ({"dropout_probability": 0.1}, "dropout_probability must be 0: a MADE has no dropout, got 0.1"),
        (
            {"context_features": C, "activation": torch.tanh},
            "context_features with use_residual_blocks=True needs the activation relu or elu, got tanh",
        ),
        ({"activation": torch.sigmoid}, "the activation sigmoid cannot be expressed"),
    ],
)
def test_what_cannot_be_expressed(settings, message):
    with pytest.raises(ValueError, match=message):
        from_nflows(transform(**settings))


def test_other_transforms():
    with pytest.raises(
        TypeError,
        match=r"transform must be nflows' MaskedAffineAutoregressiveTransform, .* or InverseTransform, got Linear",
    ):
        from_nflows(nn.Linear(2, 2))


@pytest.mark.parametrize("flow_class", [InverseAutoregressiveFlow, MaskedAutoregressiveFlow])
@pytest.mark.parametrize("context_features", [None, C])
def test_to_nflows(flow_class, context_features):
    flow = flow_class(D, (16,), context_features=context_features or 0)
    t, x = to_nflows(flow), torch.randn(6, D)
    context = None if context_features is None else torch.randn(6, C)
    for direction, own in ((t.forward, flow.inverse), (t.inverse, flow)):
        for actual, expected in zip(direction(x, context), own(x, context), strict=True):
            torch.testing.assert_close(actual, expected)
    model = Flow(CompositeTransform([t, ReversePermutation(D)]), StandardNormal([D]))
    assert {id(p) for p in flow.parameters()} <= {id(p) for p in model.parameters()}
    log_prob = model.log_prob(x, context)
    assert log_prob.shape == (6,)
    log_prob.sum().backward()
    assert all(p.grad is not None for p in flow.parameters())
    samples, densities = model.sample_and_log_prob(4, context)
    assert samples.shape == ((4, D) if context is None else (6, 4, D))
    rows = samples.reshape(-1, D).detach()
    again = model.log_prob(rows, None if context is None else context.repeat_interleave(4, 0))
    torch.testing.assert_close(again, densities.reshape(-1), atol=1e-3, rtol=1e-3)


def test_flow_without_inverse():
    with pytest.raises(InverseNotAvailable, match="PlanarFlow has none"):
        to_nflows(PlanarFlow(D))(torch.randn(2, D))
