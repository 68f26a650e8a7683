"""Tensors of more than 2^31 elements, in half types: their end is what the same rows alone give.

Gradients come from the last rows only, so that those of weights are known as well.
"""

import gc

import pytest
import torch

import fastvae.functional as F
from fastvae.nn import InverseAutoregressiveFlow

ROWS, WIDTH = 65537, 32768
LAST = 3
CLOSE = {torch.bfloat16: 3e-2, torch.float16: 4e-3}


@pytest.fixture(autouse=True)
def room():
    """Memory for tensors of 4 GiB; filling them with NaN would only take time."""
    poisoned = torch.utils.deterministic.fill_uninitialized_memory
    torch.utils.deterministic.fill_uninitialized_memory = False
    yield
    torch.utils.deterministic.fill_uninitialized_memory = poisoned
    gc.collect()
    torch.cuda.empty_cache()


def normal(*shape, dtype):
    return torch.empty(shape, dtype=dtype, device="cuda").normal_()


def check(call, rows, shared=()):
    """``call(impl, *rows, *shared)`` at the end of tensors of many rows, with all gradients."""
    assert max(t.numel() for t in rows) > 2**31
    dtype = rows[0].dtype
    leaves = [t.requires_grad_() for t in (*rows, *shared)]
    outputs = call("triton", *leaves)
    upstream = [torch.zeros_like(o) for o in outputs]
    for u in upstream:
        u[-LAST:].normal_()
    gradients = torch.autograd.grad(outputs, leaves, upstream)
    alone = [t.detach()[-LAST:].float() for t in rows] + [t.detach().float() for t in shared]
    alone = [t.requires_grad_() for t in alone]
    expected = call("reference", *alone)
    wanted = torch.autograd.grad(expected, alone, [u[-LAST:].to(e) for u, e in zip(upstream, expected, strict=True)])
    got = [o.detach()[-LAST:] for o in outputs]
    got += [g[-LAST:] if i < len(rows) else g for i, g in enumerate(gradients)]
    for i, (a, e) in enumerate(zip(got, (*expected, *wanted), strict=True)):
        error, scale = (a.float() - e.detach()).abs().max().item(), e.detach().abs().max().item()
        assert error <= CLOSE[dtype] * scale, f"result {i}: error {error:.3e} at a scale of {scale:.3e}"


half = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])


@half
def test_diag_gaussian_draws_its_last_rows(dtype):
    mu = normal(ROWS, WIDTH, dtype=dtype).requires_grad_()
    log_sigma = (normal(ROWS, WIDTH, dtype=dtype) * 0.1).requires_grad_()
    seeded = [torch.Generator("cuda").manual_seed(5) for _ in range(2)]
    z, log_q = F.diag_gaussian_rsample(mu, log_sigma, generator=seeded[0], impl="triton")
    last = [t.detach()[-LAST:].clone().requires_grad_() for t in (mu, log_sigma)]
    end = F.diag_gaussian_rsample(*last, generator=seeded[1], row_offset=ROWS - LAST, impl="triton")
    assert torch.equal(z[-LAST:], end[0])
    torch.testing.assert_close(log_q[-LAST:], end[1])
    d_z = torch.zeros_like(z)
    d_z[-LAST:].normal_()
    gradients = torch.autograd.grad(z, (mu, log_sigma), d_z)
    expected = torch.autograd.grad(end[0], last, d_z[-LAST:])
    for got, wanted in zip(gradients, expected, strict=True):
        torch.testing.assert_close(got[-LAST:], wanted)


@half
def test_diag_gaussian_log_prob(dtype):
    rows = [normal(ROWS, WIDTH, dtype=dtype) for _ in range(3)]
    rows[2].mul_(0.1)
    check(lambda impl, *t: (F.diag_gaussian_log_prob(*t, impl=impl),), rows)


def test_tril_gaussian_dense():
    rows, features, dtype = 32769, 256, torch.bfloat16
    mu, log_sigma = (0.1 * normal(rows, features, dtype=dtype) for _ in range(2))
    tril = normal(rows, features, features, dtype=dtype).mul_(0.02)
    eps = normal(rows, features, dtype=dtype)

    def call(impl, *t):
        return F.tril_gaussian_rsample(*t, eps=eps[-len(t[0]) :].to(t[0]), impl=impl)

    check(call, [mu, log_sigma, tril])


@half
def test_masked_linear_inputs(dtype):
    inputs, outputs = 16384, 64
    ins, outs = torch.arange(inputs, device="cuda") // 256, torch.arange(outputs, device="cuda")
    x = normal(2 * ROWS, inputs, dtype=dtype)
    weight, bias = normal(outputs, inputs, dtype=dtype).mul_(inputs**-0.5), normal(outputs, dtype=dtype)

    def call(impl, *t):
        return (F.masked_linear(*t, in_degrees=ins, out_degrees=outs, impl=impl),)

    check(call, [x], [weight, bias])


def test_masked_linear_outputs():
    inputs, outputs, dtype = 64, 16384, torch.bfloat16
    ins, outs = torch.arange(inputs, device="cuda"), torch.arange(outputs, device="cuda") // 256
    x = normal(2 * ROWS, inputs, dtype=dtype)
    weight = normal(outputs, inputs, dtype=dtype).mul_(inputs**-0.5)
    y = F.masked_linear(x, weight, in_degrees=ins, out_degrees=outs, activation="elu", impl="triton")
    assert y.numel() > 2**31
    alone = F.masked_linear(
        x[-LAST:].float(), weight.float(), in_degrees=ins, out_degrees=outs, activation="elu", impl="reference"
    )
    torch.testing.assert_close(y[-LAST:].float(), alone, rtol=3e-2, atol=3e-2)


def test_affine_flow():
    rows = [normal(ROWS, WIDTH, dtype=torch.bfloat16) for _ in range(3)]
    check(lambda impl, *t: F.affine_flow(*t, impl=impl), rows)


@pytest.mark.parametrize("channels_last", [False, True])
def test_masked_conv2d(channels_last):
    dtype = torch.bfloat16
    layout = torch.channels_last if channels_last else torch.contiguous_format
    x = torch.empty((2049, 64, 128, 128), dtype=dtype, device="cuda", memory_format=layout).normal_()
    weight, bias = normal(64, 64, 3, 3, dtype=dtype).mul_(0.05), normal(64, dtype=dtype)

    def call(impl, *t):
        return (F.masked_conv2d(*t, mask_type="B", padding=1, impl=impl),)

    check(call, [x], [weight, bias])


def test_gated_activation():
    x = normal(2049, 64, 128, 128, dtype=torch.bfloat16)
    condition = normal(2049, 64, 1, 1, dtype=torch.bfloat16)
    check(lambda impl, *t: (F.gated_activation(*t, impl=impl),), [x, condition])


def test_logistic_mixture():
    rows = 21000
    x = torch.randint(256, (rows, 3, 32, 32), device="cuda", dtype=torch.uint8) * (2.0 / 255) - 1.0
    params = normal(rows, 100, 32, 32, dtype=torch.bfloat16)
    check(lambda impl, p: (F.logistic_mixture_log_prob(x[-len(p) :], p, impl=impl),), [params])


def test_autoregressive_flow():
    features, dtype = 64, torch.bfloat16
    flows = {
        impl: InverseAutoregressiveFlow(features, (64,), impl=impl, device="cuda") for impl in ("triton", "reference")
    }
    names, tensors = zip(*flows["triton"].to(dtype).named_parameters(), strict=True)

    def call(impl, z, *parameters):
        return torch.func.functional_call(flows[impl], dict(zip(names, parameters, strict=True)), (z,))

    check(call, [normal(2**25 + 1, features, dtype=dtype)], [t.detach().clone() for t in tensors])
