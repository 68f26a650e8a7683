"""Points that need no gradient, as those of data: no C++ kernel computes it, and the others keep their bits."""

from __future__ import annotations

from unittest import mock

import pytest
import torch

from fastvae.nn import MADE, MaskedAutoregressiveFlow, MaskedLinear
from fastvae.ops._library import extension
from tests.support.implementations import GPU

pytestmark = pytest.mark.skipif(GPU, reason="a GPU's kernels give every gradient")

HALF = torch.bfloat16
ONE, MANY = "autoregressive_flow_bwd", "autoregressive_flow_steps_bwd"
SUBJECTS = {
    "layer": ("masked_linear_bwd", lambda: MaskedLinear(6, 5, torch.arange(6), torch.arange(5)), torch.float32),
    "layer in a half type": ("masked_linear_bwd", lambda: MaskedLinear(6, 5, torch.arange(6), torch.arange(5)), HALF),
    "network": (ONE, lambda: MADE(6, (9, 9)), torch.float64),
    "network in a half type": (ONE, lambda: MADE(6, (9, 9)), HALF),
    "step": (ONE, lambda: MaskedAutoregressiveFlow(6, (9, 9)), torch.float32),
    "steps": (MANY, lambda: MaskedAutoregressiveFlow(6, (9, 9), steps=3), torch.float32),
}


@pytest.mark.parametrize(("name", "build", "dtype"), SUBJECTS.values(), ids=SUBJECTS)
def test_no_kernel_computes_it(name, build, dtype):
    module = build().to(dtype)
    call = getattr(module, "inverse", module)
    x, kernel, found, gradients = torch.randn(70, 6).to(dtype), getattr(extension(), name), [], []

    def observed(*args):
        found.append(kernel(*args))
        return found[-1]

    for needed in (True, False):
        x.requires_grad_(needed)
        with mock.patch.object(extension(), name, observed):
            out = call(x)
            sum(o.float().square().sum() for o in (out if isinstance(out, tuple) else (out,))).backward()
        gradients.append([p.grad for p in module.parameters()])
        module.zero_grad()
    assert [result[0] is None for result in found] == [False, True]
    for with_x, without_x in zip(*gradients, strict=True):
        assert torch.equal(with_x, without_x)
