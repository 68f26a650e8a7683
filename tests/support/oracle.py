"""The float64 oracle, and the rule of tolerance that all tests of ops share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from tests.support.implementations import device_of


@dataclass
class Problem:
    """Inputs, all differentiable or none, and a function of them: ``call(impl, inputs)`` returns its outputs."""

    call: Callable[..., tuple[Tensor, ...]]
    inputs: list[Tensor]

    def outputs(self, impl: str) -> tuple[Tensor, ...]:
        return self.call(impl, self.inputs)

    def to(self, dtype: torch.dtype, device: str) -> Problem:
        moved = [t.detach().to(device, dtype).requires_grad_(t.requires_grad) for t in self.inputs]
        return Problem(self.call, moved)


def run_with_gradients(problem: Problem, impl: str, upstream: list[Tensor]) -> list[Tensor]:
    """Outputs, then, where inputs are differentiable, the gradient of each for the given upstream gradients."""
    outputs = problem.outputs(impl)
    moved = [u.to(o) for u, o in zip(upstream, outputs, strict=True)]
    differentiable = any(t.requires_grad for t in problem.inputs)
    gradients = torch.autograd.grad(outputs, problem.inputs, moved) if differentiable else ()
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
    # In float64 eager is the oracle itself: its float32 error, scaled by the precisions' ratio, replaces its own.
    eager = run_with_gradients(rounded.to(min(dtype, torch.float32, key=_bits), "cpu"), "reference", upstream)
    if dtype == torch.float64:
        ratio = torch.finfo(torch.float64).eps / torch.finfo(torch.float32).eps
        eager = [o + ratio * (e.double() - o) for e, o in zip(eager, oracle, strict=True)]
    actual = run_with_gradients(rounded.to(dtype, device), impl, upstream)
    for i, (a, e, o) in enumerate(zip(actual, eager, oracle, strict=True)):
        assert_as_close_as_eager(a, e, o, f"result {i}")


def check(draw: Callable[[], Problem], impl: str, dtype: torch.dtype) -> None:
    """The rule of :func:`check_against_oracle` for a random problem.

    Gradients that are sums over rows have few elements, and now and then eager happens to round all of them well: what
    fails on one draw is judged by the mean errors over eight others.
    """
    try:
        check_against_oracle(draw(), impl, dtype)
    except AssertionError:
        drawn = [_errors(draw(), impl, dtype) for _ in range(8)]
        for i, results in enumerate(zip(*drawn, strict=True)):
            error, eager, rounding = (sum(column) / len(drawn) for column in zip(*results, strict=True))
            allowed = 2.0 * (eager + rounding) * (2.0 if dtype == torch.float64 else 1.0)
            assert error <= allowed, f"result {i}: mean error {error:.3e}, allowed {allowed:.3e}"


def _errors(problem: Problem, impl: str, dtype: torch.dtype) -> list[tuple[float, float, float]]:
    """Of every output and gradient: errors of ``impl`` and of eager, and one rounding."""
    rounded = problem.to(dtype, "cpu")
    upstream = [torch.randn_like(o) for o in rounded.outputs("reference")]
    oracle = run_with_gradients(rounded.to(torch.float64, "cpu"), "reference", upstream)
    # As there, eager's error in float32 replaces that in float64, which cannot be known.
    lower = torch.float32 if dtype == torch.float64 else dtype
    eager = run_with_gradients(rounded.to(lower, "cpu"), "reference", upstream)
    ratio = torch.finfo(dtype).eps / torch.finfo(lower).eps
    actual = run_with_gradients(rounded.to(dtype, device_of(impl)), impl, upstream)
    errors = []
    for a, e, o in zip(actual, eager, oracle, strict=True):
        assert a.shape == o.shape
        largest, eps = (o.abs().max().item() if o.numel() else 0.0), torch.finfo(a.dtype).eps
        errors.append((_distance(a, o), ratio * _distance(e, o), eps * largest))
    return errors


def _distance(a: Tensor, b: Tensor) -> float:
    return (a.double().cpu() - b).abs().max().item() if b.numel() else 0.0


def jacobian(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """d out / d x of a function of a vector, ``(out, in)``, by backward passes: kernels know no forward mode."""
    return torch.autograd.functional.jacobian(function, x)
