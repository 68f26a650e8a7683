"""Kernels keep the tolerance of all tests where elementary functions err as the instructions of a GPU do.

The interpreter computes them exactly. Here every float32 result of the functions below is moved by up to one unit in
the last place.
"""

import numpy as np
import pytest
import torch
from triton.runtime.interpreter import InterpreterBuilder

import fastvae.functional as F
from fastvae.sampling import CausalSampler
from tests.gpu.problems import PROBLEMS
from tests.support.causal_stacks import scale_weights, stacks
from tests.support.decoders import Decoder
from tests.support.gaussians import problems
from tests.support.implementations import device_of
from tests.support.oracle import Problem, check
from tests.support.windows import window_problem, written_problem

LOG2_E = np.float32(1.4426950408889634)
INEXACT = ("create_exp", "create_exp2", "create_fdiv", "create_sqrt")


def move(values, random):
    """Each float32 by one unit in the last place up, down, or not at all; zeros and what is not finite stay."""
    steps = random.integers(-1, 2, values.shape)
    moved = np.nextafter(values, np.where(steps < 0, -np.inf, np.inf).astype(np.float32))
    return np.where((steps == 0) | (values == 0) | ~np.isfinite(values), values, moved)


@pytest.fixture(autouse=True)
def inexact(monkeypatch):
    random = np.random.default_rng(0)

    def spoil(name):
        exact = getattr(InterpreterBuilder, name)

        def run(builder, *operands):
            result = exact(builder, *operands)
            if result.data.dtype != np.float32:
                return result
            x = operands[0].data
            if name == "create_exp":  # 2 to the power of a rounded product
                result.data = np.exp2(x * LOG2_E)
            moved = move(result.data, random)
            # Whole powers of two are exact: their argument goes to the exponent.
            result.data = np.where(x == np.floor(x), result.data, moved) if name == "create_exp2" else moved
            return result

        return run

    for name in INEXACT:
        monkeypatch.setattr(InterpreterBuilder, name, spoil(name))


def decoder_problem(entry):
    decoder = Decoder((4, 9, 7), "tanh")
    x, points = torch.rand(3, 7) < 0.4, 1 + (entry == "latent_hessian_product")

    def call(impl, p):
        layers = [t.to(p[0]) for t in decoder.tensors]
        found = getattr(F, entry)(*p, *decoder.split(layers), x.to(p[0].device), **decoder.named, impl=impl)
        return found if isinstance(found, tuple) else (found,)

    return Problem(call, [torch.randn(3, 4).requires_grad_() for _ in range(points)])


def layer_problem():
    x = torch.rand(3, 7) < 0.4
    inputs = [torch.randn(shape).requires_grad_() for shape in ((3, 5), (7, 5), (7,))]
    return Problem(lambda impl, p: (F.linear_bernoulli_log_prob(*p, x.to(p[0].device), impl=impl),), inputs)


# Smaller than those for a GPU, or beside them.
MORE = {
    "attention_window": lambda: window_problem((3,), 2, (9, 7), images=2),
    "attention_window, written": lambda: written_problem((3,), 3, (9, 7)),
    "diag_gaussian with kl": lambda: problems("diag_gaussian", (5,), 34)["with_kl"],
    "tril_gaussian with kl": lambda: problems("tril_gaussian", (5,), 10)["with_kl_of_dimensions"],
    "linear_bernoulli": layer_problem,
    "latent_gradient": lambda: decoder_problem("latent_gradient"),
    "latent_hessian_product": lambda: decoder_problem("latent_hessian_product"),
}
ALL = PROBLEMS | MORE


@pytest.mark.parametrize("name", ALL)
def test_as_close_as_eager(name):
    check(ALL[name], "triton", torch.float32)


def test_sampler():
    """The parameters of a given image: a number near the edge between two levels may be drawn as either."""
    stack = stacks()["gated"]
    network, image = scale_weights(stack.make()), torch.tensor([[[[1.0, 0.0]]]])
    found = [
        CausalSampler(network.to(device_of(impl)), stack.likelihood, impl=impl)
        .parameters(image.to(device_of(impl)))
        .cpu()
        for impl in ("triton", "reference")
    ]
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-5)
