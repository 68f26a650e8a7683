"""Whole flows in each implementation: outputs, log-determinants and every gradient agree."""

from __future__ import annotations

import pytest
import torch

from fastvae.nn import InverseAutoregressiveFlow, MaskedAutoregressiveFlow
from tests.support import GPU

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
