"""Under autocast, masked layers run in its dtype as nn.Linear does; densities and samples keep float32."""

import inspect

import pytest
import torch

import fastvae.functional as F
from fastvae import backend, nn
from fastvae.kernels._launch import record_launches
from tests.support.implementations import device_of
from tests.support.subjects import SUBJECTS, tensors_of

HALVES = [torch.bfloat16, torch.float16]
DEGREES = [1, 2, 3], [0, 0, 1, 2]
# What multiplies matrices and hands the product out.
PRODUCTS = {
    "MaskedLinear": lambda **more: (nn.MaskedLinear(3, 4, *DEGREES, **more), torch.randn(5, 3)),
    "MaskedLinear normalised": lambda **more: (
        nn.MaskedLinear(3, 4, *DEGREES, weight_norm=True, **more),
        torch.randn(5, 3),
    ),
    "MADE": lambda **more: (nn.MADE(3, (8, 8), **more), torch.randn(5, 3)),
    "MADE normalised": lambda **more: (nn.MADE(3, (8,), weight_norm=True, **more).eval(), torch.randn(5, 3)),
    "MaskedConv2d": lambda **more: (nn.MaskedConv2d(2, 3, 3, padding=1, **more), torch.randn(2, 2, 4, 5)),
}


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("name", PRODUCTS)
@pytest.mark.parametrize("impl", ["auto", "reference"])
def test_products_have_the_dtype_of_autocast(name, dtype, impl):
    module, x = PRODUCTS[name](impl=impl)
    with torch.autocast("cpu", dtype=dtype):
        y, linear = module(x), torch.nn.Linear(3, 4)(torch.randn(5, 3))
    assert y.dtype == linear.dtype == dtype
    y.float().square().sum().backward()
    assert all(p.grad.dtype == torch.float32 for p in module.parameters())
    torch.testing.assert_close(y.float(), module(x), rtol=5e-2, atol=5e-2)


@pytest.mark.parametrize("name", PRODUCTS)
def test_float64_stays_float64_as_in_a_linear_layer(name):
    module, x = PRODUCTS[name]()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert module.double()(x.double()).dtype == torch.float64


@pytest.mark.parametrize("flow", [nn.InverseAutoregressiveFlow, nn.MaskedAutoregressiveFlow])
def test_flows_keep_the_dtype_of_their_points(flow):
    flow, z = flow(3, (8,), context_features=2), torch.randn(5, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for direction in (flow.forward, flow.inverse):
            out, log_det = direction(z, torch.randn(5, 2))
            assert out.dtype == log_det.dtype == torch.float32


@pytest.mark.parametrize("subject", SUBJECTS, ids=str)
@pytest.mark.parametrize("dtype", HALVES)
def test_kernels_follow_the_reference(subject, dtype):
    """Outputs have the dtypes of the reference, and its numbers up to the half type's rounding."""
    module, inputs = subject.draw()
    found = []
    for impl in ("auto", "reference"):
        with backend.use(impl), torch.autocast("cpu", dtype=dtype):
            found.append(subject.outputs(module, inputs))
    for ours, theirs in zip(*found, strict=True):
        assert ours.dtype == theirs.dtype
        torch.testing.assert_close(ours.float(), theirs.float(), rtol=4e-2, atol=4e-2)


def test_compilers_need_not_know_whether_a_device_has_autocast(monkeypatch):
    """Not every torch traces that question."""
    untraced = torch._dynamo.disable(torch.amp.is_autocast_available)
    monkeypatch.setattr(torch.amp, "is_autocast_available", untraced)
    parameters, eps = [torch.randn(4, 3) for _ in range(3)], torch.randn(4, 3)

    def draw(*p):
        return F.tril_gaussian_rsample(*p, eps=eps, impl="reference")

    torch._dynamo.reset()
    compiled = torch.compile(draw, fullgraph=True, backend="eager")
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            torch.testing.assert_close(compiled(*parameters), draw(*parameters), rtol=1e-5, atol=1e-5)


# What matrix kernels multiply, by their arguments' names.
OPERANDS = ("x_ptr", "weight_ptr", "d_pre_ptr")
FLOWS = {
    "InverseAutoregressiveFlow": lambda **more: (nn.InverseAutoregressiveFlow(3, (8,), **more), torch.randn(5, 3)),
}


@pytest.mark.parametrize("name", PRODUCTS | FLOWS)
def test_matrix_kernels_of_a_gpu_multiply_in_the_dtype_of_autocast(name):
    """Their launches are looked at and not made: the outputs hold nothing."""
    device = device_of("triton")
    module, x = (t.to(device) for t in (PRODUCTS | FLOWS)[name](impl="triton"))
    with record_launches(32) as launches:
        with torch.autocast(device, dtype=torch.float16):
            y = tensors_of(module(x))
        sum(t.float().sum() for t in y).backward()
    multiplied = set()
    for launch in launches:
        named = dict(zip(inspect.signature(launch.kernel.fn).parameters, launch.args, strict=False))
        if "PRECISION" in launch.meta:
            multiplied |= {named[operand].dtype for operand in OPERANDS if operand in named}
    assert multiplied == {torch.float16}
