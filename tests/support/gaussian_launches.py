"""Rows and triangles that launchers get, and the formulas of Gaussians in float64 to hold their results against."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from fastvae.kernels import diag_gaussian
from tests.support.oracle import assert_as_close_as_eager

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


# Rows, columns, and how rows lie in memory.
CASES = [
    (0, 5, "contiguous"),
    (9, 1, "contiguous"),
    (9, 2, "strided"),
    (5, 3, "broadcast"),
    (2, 63, "strided"),
    (2, 64, "contiguous"),
    (2, 65, "broadcast"),
    (1, 130, "contiguous"),
]


# A block of columns less one, a whole one, and three of them.
_THOROUGH = {63, 64, 130}
cases = pytest.mark.parametrize(
    ("n", "d", "layout"),
    [pytest.param(*case, marks=pytest.mark.thorough if case[1] in _THOROUGH else ()) for case in CASES],
)


samples_of = pytest.mark.parametrize("samples", [1, 4])


noises = pytest.mark.parametrize("given", [False, True], ids=["seed", "eps"])


draws = pytest.mark.parametrize(("samples", "given"), [(1, False), (3, False), (4, True)])


def rows(n: int, *shape: int, layout: str = "contiguous", scale: float = 1.0) -> Tensor:
    """Random rows whose innermost stride is 1 and whose other strides are those of `layout`."""
    if layout == "broadcast":
        return (scale * torch.randn(1, *shape)).expand(n, *shape)
    if layout == "strided":
        wide = scale * torch.randn(n, *(size + 3 for size in shape))
        return wide[(slice(None), *(slice(1, size + 1) for size in shape))]
    return scale * torch.randn(n, *shape)


def move_to_device(t: Tensor, dtype: torch.dtype) -> Tensor:
    """`t` on the device, with its strides, in `dtype`."""
    strides = t.stride()
    base = torch.as_strided(t, (t.untyped_storage().size() // t.element_size(),), (1,), 0)
    return torch.as_strided(base.to(DEVICE, dtype), t.shape, strides, t.storage_offset())


def standard_log_prob(eps: Tensor) -> Tensor:
    return (-0.5 * eps**2 - 0.5 * math.log(2 * math.pi)).sum(-1)


class Expected:
    """A formula's outputs and gradients in float64, and those of eager PyTorch in the dtype of the inputs.

    Half types are computed in float32. Where float64 would be compared with itself, eager gets inputs with one more
    rounding. `upstream` are the random gradients of the outputs.
    """

    def __init__(self, formula, inputs: list[Tensor], constants: tuple[Tensor, ...] = ()):
        self.dtype = inputs[0].dtype
        compute = torch.float64 if self.dtype == torch.float64 else torch.float32
        leaves = [t.detach().clone() for t in inputs]
        if self.dtype == torch.float64:
            leaves = [torch.nextafter(t, t + torch.randn_like(t)) for t in leaves]
        leaves = [t.requires_grad_() for t in leaves]
        eager = formula(*(t.to(compute) for t in leaves), *(t.to(compute) for t in constants))
        exact_leaves = [t.detach().double().requires_grad_() for t in inputs]
        exact = formula(*exact_leaves, *(t.double() for t in constants))
        # z has the dtype of the inputs, densities that of the computation.
        eager = [o.to(self.dtype) if o.dim() == 3 else o for o in eager]
        self.upstream = [torch.randn(o.shape, device=DEVICE).to(o.dtype) for o in eager]
        gradients = torch.autograd.grad(eager, leaves, self.upstream, allow_unused=True, materialize_grads=True)
        exact_upstream = [u.double() for u in self.upstream]
        exact_gradients = torch.autograd.grad(
            exact, exact_leaves, exact_upstream, allow_unused=True, materialize_grads=True
        )
        self.outputs = list(zip(eager, exact, strict=True))
        self.gradients = list(zip(gradients, exact_gradients, strict=True))

    def check(self, outputs=(), gradients=()):
        for kind, actual, pairs in (("output", outputs, self.outputs), ("gradient", gradients, self.gradients)):
            for index, (value, (eager, exact)) in enumerate(zip(actual, pairs, strict=bool(actual))):
                assert_as_close_as_eager(value, eager.detach(), exact.detach(), f"{kind} {index}")


def noise_of(given: bool, samples: int, n: int, d: int) -> tuple[Tensor, Tensor, int]:
    """What the launcher gets, the normals that it means (tested by tests/kernels/test_noise.py), the row offset."""
    row_offset = 3
    if given:
        eps = torch.randn(samples, n, d, device=DEVICE)
        return eps, eps, row_offset
    seed, zeros = torch.randint(2**62, (), device=DEVICE), torch.zeros(n, d, device=DEVICE)
    eps, _ = diag_gaussian.diag_gaussian_fwd(zeros, zeros, seed, samples, row_offset)
    return seed, eps, row_offset
