"""Tensors of every kind, in every place: right, or refused in words."""

import re

import pytest

from tests.support.processes import run_module
from tests.support.subjects import FUNCTIONS
from tests.support.tensor_refusals import KINDS

# Integer images are codes, other numbers than the same levels as fractions; and two layers move numbers of any kind.
CODES = {"CodeEmbedding | 0", "PixelCNN | 0", "PixelCNNpp | 0", "PixelCNNpp log_prob | 0"}
MOVERS = {"Permutation | 0", "CodeEmbedding | weight"}
NOT_WRONG = {"integer": CODES, "complex": MOVERS}
# Inputs of functions, whose refusals name the argument and the way out, but where PyTorch's operators come first.
OF_FUNCTIONS = {f"{subject} | {place}" for subject in FUNCTIONS for place in range(4)}
TORCH_FIRST = {
    "diag_gaussian_rsample of two samples | 2",  # a stack
    "diag_gaussian_rsample_with_kl of dimensions | 2",
    "tril_gaussian_rsample dense | 3",
    "tril_gaussian_rsample_with_kl dense | 3",
    "class_linear | 0",
    "class_linear of labels | 0",
    "class_linear of labels | 1",
    "linear_bernoulli_log_prob | 0",  # WEIGHT.to(h)
    "linear_tril_gaussian_rsample_with_kl | 0",
    "mlp_bernoulli_log_prob | 0",
    "latent_gradient | 0",
    "latent_hessian_product | 0",
    "masked_linear | 0",
    "masked_linear with factors | 0",
    "masked_conv2d | 0",
    "gated_activation with a vector | 1",  # a view, which a freed storage refuses
    "logistic_mixture_sample | 0",
}
REFUSALS = ("TypeError", "ValueError", "RuntimeError", "NotImplementedError")


@pytest.mark.parametrize("kind", KINDS)
def test_what_no_kernel_can_read(kind):
    """An error, or the same as for the numbers that the tensor holds; never a crash, and never other numbers."""
    done = run_module("tensor_refusals", kind)
    lines = done.stdout.splitlines()
    assert done.returncode == 0, f"{kind}: {lines[-1]} ended the interpreter\n{done.stderr}"
    cases = dict(zip(lines[::2], (line.strip() for line in lines[1::2]), strict=True))
    assert len(cases) > 600
    for case, outcome in cases.items():
        place = case.partition(" | ")[2]
        fine = outcome in ("right", "no numbers") or outcome.startswith(REFUSALS)
        assert fine or (outcome.startswith("WRONG") and place in NOT_WRONG.get(kind, ())), f"{case}: {outcome}"
        if place in OF_FUNCTIONS and place not in TORCH_FIRST and outcome.startswith(REFUSALS):
            assert re.match(r"\w+: ([a-z_]+(\[\d\])? must |impl=)", outcome), f"{case} names no argument: {outcome}"
