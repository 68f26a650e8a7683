"""Two runs are equal to the last bit, at sizes that are shared out among many programs."""

import pytest
import torch

import fastvae.functional as F
from fastvae.sampling import CausalSampler
from tests.gpu.problems import PROBLEMS
from tests.support import mixtures
from tests.support.causal_stacks import scale_weights, stacks
from tests.support.convolutions import Form
from tests.support.gaussians import problems
from tests.support.masked_layers import DEGREES, layer_inputs, layer_problem
from tests.support.networks import network
from tests.support.oracle import run_with_gradients


def _flow(entry):
    made = network(16, (256, 256))
    return made.problem(entry, made.tensors((512,)))


def _large_layer():
    return layer_problem(layer_inputs((4096,), 512, 384), DEGREES["staircase"](512, 384), activation="silu")


LARGE = {
    "diag_gaussian, samples": lambda: problems("diag_gaussian", (64,), 512, (50,))["rsample"],
    "tril_gaussian, samples": lambda: problems("tril_gaussian", (64,), 64, (50,), True)["rsample"],
    "masked_linear": _large_layer,
    "autoregressive_flow": lambda: _flow("flow"),
    "autoregressive_inverse": lambda: _flow("inverse"),
    "masked_conv2d": lambda: Form(64, 64, image=(32, 32), batch=32, channels_last=True).problem(),
    "logistic_mixture": lambda: mixtures.problem(16, 3, 10, 32, 32),
}
ALL = PROBLEMS | {f"{name}, large": make for name, make in LARGE.items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ALL)
def test_same_bits(name, dtype):
    problem = ALL[name]().to(dtype, "cuda")
    upstream = [torch.randn_like(o) for o in problem.outputs("triton")]
    first, second = (run_with_gradients(problem, "triton", upstream) for _ in range(2))
    for i, (a, b) in enumerate(zip(first, second, strict=True)):
        assert torch.equal(a, b), f"result {i}"


@pytest.mark.parametrize("stem", ["diag_gaussian", "tril_gaussian"])
def test_same_seed_same_sample(stem):
    inputs = [t.detach().cuda() for t in problems(stem, (300,), 100)["rsample"].inputs]
    draw = getattr(F, f"{stem}_rsample")
    drawn = [draw(*inputs, generator=torch.Generator("cuda").manual_seed(5), impl="triton") for _ in range(2)]
    for a, b in zip(*drawn, strict=True):
        assert torch.equal(a, b)


def test_same_seed_same_images():
    stack = stacks()["gated"]
    sampler = CausalSampler(scale_weights(stack.make()).cuda(), stack.likelihood, impl="triton")
    first, second = (
        sampler.sample_with_parameters(37, (6, 7), generator=torch.Generator("cuda").manual_seed(5)) for _ in range(2)
    )
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a, b)
