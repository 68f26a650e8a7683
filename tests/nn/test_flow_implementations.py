"""Whole flows in each implementation: outputs, log-determinants and every gradient agree."""

from __future__ import annotations

import pytest
import torch

from fastvae.nn import MADE, InverseAutoregressiveFlow, MaskedAutoregressiveFlow
from tests.support.implementations import GPU

KERNELS = ("triton",) if GPU else ("cpp", "triton")
DEVICE = "cuda" if GPU else "cpu"


@pytest.mark.parametrize("direction", ["forward", "inverse"])
@pytest.mark.parametrize("flow_class", [InverseAutoregressiveFlow, MaskedAutoregressiveFlow])
@pytest.mark.parametrize(
    ("context_features", "residual", "weight_norm"),
    [(0, False, False), (3, False, True), (2, True, True)],
    ids=["plain", "context and weight norm", "residual"],
)
def test_implementations_agree(flow_class, direction, context_features, residual, weight_norm):
    options = {"context_features": context_features, "residual": residual, "weight_norm": weight_norm}
    flow = flow_class(5, (8, 8, 8), steps=2, **options).to(DEVICE)
    z = torch.randn(4, 5, device=DEVICE, requires_grad=True)
    context = torch.randn(4, context_features, device=DEVICE, requires_grad=True) if context_features else None
    with torch.no_grad():
        flow(z, context)  # data-dependent initialisation
    leaves = [t for t in (z, context, *flow.parameters()) if t is not None]
    upstream = torch.randn(4, 5, device=DEVICE), torch.randn(4, device=DEVICE)

    def run(impl):
        for module in flow.modules():
            if hasattr(module, "impl"):
                module.impl = impl
        outputs = getattr(flow, direction)(z, context)
        return [*outputs, *torch.autograd.grad(outputs, leaves, upstream)]

    expected = run("reference")
    for impl in KERNELS:
        for actual, wanted in zip(run(impl), expected, strict=True):
            torch.testing.assert_close(actual, wanted, rtol=1e-4, atol=2e-5)


def test_ready_networks_are_used_as_they_are():
    networks = [MADE(3, (8,), order=[2, 0, 1]), MADE(3, (8,), layout="interleaved")]
    flow = MaskedAutoregressiveFlow.from_networks(networks, kind="exp")
    assert flow.steps() == networks
    z = torch.randn(6, 3)
    x, log_det = flow(z)
    back, minus = flow.inverse(x)
    torch.testing.assert_close(back, z)
    torch.testing.assert_close(minus, -log_det)


@pytest.mark.parametrize(
    ("networks", "kind", "message"),
    [
        ([], "gated", "one network or more"),
        ([MADE(3, (8,))], "affine", "kind must be one of"),
        ([MADE(3, (8,)), MADE(4, (8,))], "gated", "must agree"),
        ([MADE(3, (8,))], "location_only", "params_per_feature=1"),
    ],
    ids=["none", "kind", "sizes", "parameters"],
)
def test_networks_that_do_not_fit_are_named(networks, kind, message):
    with pytest.raises(ValueError, match=message):
        InverseAutoregressiveFlow.from_networks(networks, kind=kind)
