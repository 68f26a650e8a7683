"""Flows from normflows."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from fastvae.interop import from_normflows
from fastvae.nn import InverseAutoregressiveFlow, PlanarFlow, check_autoregressive

try:
    from normflows.flows import MaskedAffineAutoregressive, Planar, Radial
    from normflows.nets.made import MADE
except ImportError:
    pytest.skip("needs the extra peers: normflows", allow_module_level=True)

D, C = 5, 3


def flow_of(features=D, hidden=24, **settings):
    flow = MaskedAffineAutoregressive(features, hidden, **settings)
    with torch.no_grad():  # blocks start at zero
        for p in flow.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return flow


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("blocks", [0, 1, 2, 3])
@pytest.mark.parametrize("activation", [functional.relu, torch.tanh])
@pytest.mark.parametrize("features", [1, 2, D])
def test_from_normflows(features, residual, blocks, activation):
    theirs = flow_of(features, num_blocks=blocks, use_residual_blocks=residual, activation=activation)
    ours, z = from_normflows(theirs), torch.randn(6, features, requires_grad=True)
    assert isinstance(ours, InverseAutoregressiveFlow)
    expected, actual = theirs(z), ours(z)
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e, atol=1e-5, rtol=1e-5)
    for a, e in zip(ours.inverse(actual[0].detach()), theirs.inverse(expected[0].detach()), strict=True):
        torch.testing.assert_close(a, e, atol=1e-4, rtol=1e-4)
    gradients = [
        torch.autograd.grad(y.square().sum() + ld.sum(), z, retain_graph=True)[0] for y, ld in (actual, expected)
    ]
    torch.testing.assert_close(*gradients, atol=1e-4, rtol=1e-4)
    (actual[0].square().sum() + actual[1].sum()).backward()
    assert all(p.grad is not None for p in ours.parameters())
    check_autoregressive(ours)


@pytest.mark.parametrize("residual", [False, True])
def test_permuted_masks(residual):
    theirs, z = flow_of(use_residual_blocks=residual), torch.randn(6, D)
    theirs.autoregressive_net = MADE(D, 24, output_multiplier=2, permute_mask=True, use_residual_blocks=residual)
    for a, e in zip(from_normflows(theirs)(z), theirs(z), strict=True):
        torch.testing.assert_close(a, e, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"context_features": C}, "context_features cannot be expressed: normflows gates every block"),
        ({"use_batch_norm": True}, "use_batch_norm=True cannot be expressed"),
        ({"dropout_probability": 0.5}, "dropout_probability must be 0: a MADE has no dropout, got 0.5"),
        ({"activation": functional.leaky_relu}, "the activation leaky_relu cannot be expressed"),
    ],
)
def test_what_cannot_be_expressed(settings, message):
    with pytest.raises(ValueError, match=message):
        from_normflows(flow_of(**settings))


def test_preprocessing():
    theirs = flow_of()
    theirs.autoregressive_net.preprocessing = nn.Tanh()
    with pytest.raises(ValueError, match="preprocessing cannot be expressed, got Tanh"):
        from_normflows(theirs)


@pytest.mark.parametrize("act", ["tanh", "leaky_relu"])
@pytest.mark.parametrize("features", [1, 2, D])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_planar(act, features, dtype):
    theirs = Planar((features,), act=act).to(dtype)
    with torch.no_grad():
        theirs.b.add_(torch.randn(1, dtype=dtype))
    if act == "leaky_relu" and dtype == torch.float64:
        theirs.h.negative_slope = 0.25  # normflows computes slopes in float32, where 0.2 is another number
    ours, z = from_normflows(theirs), torch.randn(50, features, dtype=dtype)
    assert isinstance(ours, PlanarFlow)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-10
    (out, log_det), (expected, expected_log_det) = ours(z), theirs(z)
    torch.testing.assert_close(out, expected, atol=tolerance, rtol=tolerance)
    exact = tolerance if expected_log_det.dtype == dtype else 1e-6  # that of the leaky ReLU is float32 there
    torch.testing.assert_close(log_det, expected_log_det, atol=exact, rtol=exact, check_dtype=False)
    if act == "tanh":
        assert not hasattr(ours, "inverse")
        return
    for a, e in zip(ours.inverse(z), theirs.inverse(z), strict=True):
        torch.testing.assert_close(a, e, atol=10 * tolerance, rtol=10 * tolerance)
    torch.testing.assert_close(ours.inverse(ours(z)[0])[0], z, atol=10 * tolerance, rtol=10 * tolerance)


def test_planar_of_images():
    with pytest.raises(ValueError, match=r"shape of a Planar must be \(D,\), got \(2, 3\)"):
        from_normflows(Planar((2, 3)))


def test_other_flows():
    with pytest.raises(TypeError, match="flow must be normflows' MaskedAffineAutoregressive or Planar, got Radial"):
        from_normflows(Radial((2,)))
