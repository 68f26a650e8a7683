"""The rule of errors for long sums: over rows, samples, pixels and features, of numbers whose mean is not zero."""

import pytest
import torch
import triton.language as tl
from torch import Tensor

import fastvae.functional as F
from fastvae.kernels import diag_gaussian, diag_gaussian_density, tril_gaussian
from fastvae.kernels._launch import forget_rules
from fastvae.kernels._tiles import BLOCK_TERMS, SampleTile
from tests.support.gaussians import packed_size
from tests.support.implementations import GPU, device_of
from tests.support.long_sums import PROBLEMS, SAMPLES, errors
from tests.support.oracle import Problem


def check(problem: Problem, impl: str) -> None:
    for i, (error, eager, rounding) in enumerate(errors(problem, impl)):
        assert error <= 2.0 * (eager + rounding), f"result {i}: {error / (eager + rounding):.2f} times eager's error"


@pytest.mark.parametrize("name", PROBLEMS)
def test_errors(name):
    check(PROBLEMS[name](), "cpp")


def sum_of_samples(name: str, terms: Tensor) -> list[Tensor]:
    """Gradients of Triton's kernels that are sums of `terms`, one for each sample."""
    features, samples, device = 16, len(terms), device_of("triton")
    mu, log_sigma = (torch.zeros(1, features, device=device, requires_grad=True) for _ in range(2))
    tril = torch.zeros(1, packed_size(features), device=device, requires_grad=True)
    ones, terms = torch.ones(samples, 1, features, device=device), terms.to(device)
    if name == "diag_gaussian, density":
        log_q = F.diag_gaussian_log_prob(ones, mu, log_sigma, impl="triton")
        return list(torch.autograd.grad(log_q, mu, terms[:, None]))
    parameters = [mu, log_sigma] if name == "diag_gaussian" else [mu, log_sigma, tril]
    function = F.diag_gaussian_rsample if name == "diag_gaussian" else F.tril_gaussian_rsample
    z, _ = function(*parameters, (samples,), eps=ones, impl="triton")
    return list(torch.autograd.grad(z, parameters, terms[:, None, None].expand_as(z)))


@pytest.mark.parametrize("name", ["diag_gaussian", "diag_gaussian, density", "tril_gaussian"])
def test_blocks_of_triton(name, monkeypatch, request):
    """The first number is so large that the ones of its own block vanish in it, and no others."""
    block = BLOCK_TERMS.value
    if not GPU:  # the interpreter takes milliseconds for a sample
        block = 8
        for module in (diag_gaussian, diag_gaussian_density, tril_gaussian):
            monkeypatch.setattr(module, "BLOCK_TERMS", tl.constexpr(block))
    for module in (diag_gaussian, diag_gaussian_density):
        monkeypatch.setattr(module, "sum_tile", lambda *_: SampleTile(1, 1, 16, 1))
    forget_rules()
    request.addfinalizer(forget_rules)
    terms = torch.ones(3 * block)
    terms[0] = 2.0**24
    for gradient in sum_of_samples(name, terms):
        assert torch.equal(gradient, torch.full_like(gradient, 2.0**24 + 2 * block))


@pytest.mark.parametrize("name", SAMPLES)
def test_infinite_terms(name):
    """Where a term is infinite the sum is what eager PyTorch makes of it."""
    problem = SAMPLES[name]()
    outputs = [problem.outputs(impl) for impl in ("cpp", "reference")]
    upstream = [torch.ones_like(o) for o in outputs[1]]
    upstream[-1][1000, 0] = float("inf")
    got, expected = (torch.autograd.grad(o, problem.inputs, upstream) for o in outputs)
    for a, b in zip(got, expected, strict=True):
        assert torch.equal(a.isfinite(), b.isfinite())
