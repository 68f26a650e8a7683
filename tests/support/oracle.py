"""Input factories, the float64 oracle and the tolerance rule that all op tests share."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

import fastvae.functional as F

GPU = torch.cuda.is_available()
IMPLEMENTATIONS = ("reference", "cpp", "triton")
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)

# Batch, features, and why.
SHAPES = [
    ((0,), 5),  # no rows
    ((1,), 1),  # one feature: no triangle at all
    ((3,), 3),  # packed and dense triangles have the same width
    ((5,), 63),  # one short of a full vector
    ((4,), 64),  # quarters aligned to every vector width
    ((3,), 65),  # one more: the last quarter is ragged
    ((2, 3), 18),  # two batch dimensions
    ((), 7),  # no batch dimension
]


def device_of(impl: str) -> str:
    """Where ``impl`` runs here: Triton on the GPU, or interpreted on the CPU."""
    return "cuda" if impl == "triton" and GPU else "cpu"


def packed_size(features: int) -> int:
    return features * (features - 1) // 2


@dataclass
class Problem:
    """Differentiable inputs and a function of them; ``call(impl, inputs)`` returns its outputs."""

    call: Callable[..., tuple[Tensor, ...]]
    inputs: list[Tensor]

    def outputs(self, impl: str) -> tuple[Tensor, ...]:
        return self.call(impl, self.inputs)

    def to(self, dtype: torch.dtype, device: str) -> Problem:
        moved = [t.detach().to(device, dtype).requires_grad_(t.requires_grad) for t in self.inputs]
        return Problem(self.call, moved)


def gaussian_inputs(batch: tuple[int, ...], features: int) -> list[Tensor]:
    return [torch.randn(*batch, features), 0.5 * torch.randn(*batch, features)]


def tril_input(batch: tuple[int, ...], features: int, dense: bool) -> Tensor:
    """Small enough that solves stay well conditioned; NaN where nothing may be read."""
    if not dense:
        return 0.5 * torch.randn(*batch, packed_size(features)) / math.sqrt(features)
    tril = 0.5 * torch.randn(*batch, features, features) / math.sqrt(features)
    upper = torch.ones(features, features, dtype=torch.bool).triu()
    return tril.masked_fill(upper, float("nan"))


def problems(
    stem: str, batch: tuple[int, ...], features: int, sample_shape: tuple[int, ...] = (), dense: bool = False
) -> dict[str, Problem]:
    """Every entry point of a stem on random inputs, noise given."""
    mu, log_sigma = gaussian_inputs(batch, features)
    noise = torch.randn(*sample_shape, *batch, features)
    z = torch.randn(*sample_shape, *batch, features)
    if stem == "diag_gaussian":
        prior = gaussian_inputs(batch, features)
        made = {
            "rsample": Problem(
                lambda impl, p: F.diag_gaussian_rsample(*p, sample_shape, eps=noise.to(p[0]), impl=impl),
                [mu, log_sigma],
            ),
            "log_prob": Problem(lambda impl, p: (F.diag_gaussian_log_prob(*p, impl=impl),), [z, mu, log_sigma]),
            "kl": Problem(lambda impl, p: (F.diag_gaussian_kl(*p, impl=impl),), [mu, log_sigma]),
            "kl_prior": Problem(lambda impl, p: (F.diag_gaussian_kl(*p, impl=impl),), [mu, log_sigma, *prior]),
        }
    else:
        tril = tril_input(batch, features, dense)
        made = {
            "rsample": Problem(
                lambda impl, p: F.tril_gaussian_rsample(*p, sample_shape, eps=noise.to(p[0]), impl=impl),
                [mu, log_sigma, tril],
            ),
            "log_prob": Problem(lambda impl, p: (F.tril_gaussian_log_prob(*p, impl=impl),), [z, mu, log_sigma, tril]),
            "kl": Problem(lambda impl, p: (F.tril_gaussian_kl(*p, impl=impl),), [mu, log_sigma, tril]),
        }
    for problem in made.values():
        for t in problem.inputs:
            t.requires_grad_()
    return made


def run_with_gradients(problem: Problem, impl: str, upstream: list[Tensor]) -> list[Tensor]:
    """Outputs, then the gradient of each input for the given upstream gradients."""
    outputs = problem.outputs(impl)
    moved = [u.to(o) for u, o in zip(upstream, outputs, strict=True)]
    gradients = torch.autograd.grad(outputs, problem.inputs, moved)
    return [*(o.detach() for o in outputs), *gradients]


def assert_as_close_as_eager(actual: Tensor, eager: Tensor, oracle: Tensor, name: str) -> None:
    """Error against the float64 oracle: at most twice (that of eager PyTorch in the same dtype + one rounding)."""
    assert actual.shape == oracle.shape, f"{name}: shape {tuple(actual.shape)}, expected {tuple(oracle.shape)}"
    assert actual.dtype == eager.dtype, f"{name}: dtype {actual.dtype}, expected {eager.dtype}"
    if oracle.numel() == 0:
        return
    actual64, eager64, oracle = actual.double().cpu(), eager.double().cpu(), oracle.double().cpu()
    rounding = torch.finfo(actual.dtype).eps * oracle.abs().max()
    allowed = 2.0 * ((eager64 - oracle).abs().max() + rounding)
    if actual.dtype == torch.float64:
        allowed *= 2.0  # the oracle, of the same precision, errs as much
    error = (actual64 - oracle).abs().max()
    assert error <= allowed, f"{name}: error {error:.3e}, allowed {allowed:.3e}"  # NaN fails


def _bits(dtype: torch.dtype) -> int:
    return torch.finfo(dtype).bits


def check_against_oracle(problem: Problem, impl: str, dtype: torch.dtype) -> None:
    """Forward and every gradient of ``impl`` in ``dtype``, for random upstream gradients."""
    device = device_of(impl)
    rounded = problem.to(dtype, "cpu")
    upstream = [torch.randn(o.shape) for o in rounded.outputs("reference")]
    upstream = [u.to(dtype if i == 0 else u.dtype) for i, u in enumerate(upstream)]
    oracle = run_with_gradients(rounded.to(torch.float64, "cpu"), "reference", upstream)
    # In float64 eager is the oracle itself: its float32 error, scaled by the precisions' ratio, stands for its own.
    eager = run_with_gradients(rounded.to(min(dtype, torch.float32, key=_bits), "cpu"), "reference", upstream)
    if dtype == torch.float64:
        ratio = torch.finfo(torch.float64).eps / torch.finfo(torch.float32).eps
        eager = [o + ratio * (e.double() - o) for e, o in zip(eager, oracle, strict=True)]
    actual = run_with_gradients(rounded.to(dtype, device), impl, upstream)
    for i, (a, e, o) in enumerate(zip(actual, eager, oracle, strict=True)):
        assert_as_close_as_eager(a, e, o, f"result {i}")
