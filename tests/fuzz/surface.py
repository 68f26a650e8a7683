"""A call of the public surface, against the reference in float64: values, gradients, errors, memory left unwritten."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fastvae import backend

from .draw import Draw, Problem
from .failure import FuzzError
from .leeway import Leeway, cancelled, watch_sums
from .surface_functions import FUNCTIONS
from .surface_modules import MODULES

TARGETS = FUNCTIONS | MODULES
# What a user's mistake may raise.
CLEAN = (ValueError, TypeError, RuntimeError)


def run(name: str, case: str) -> None:
    """Draws the call of ``case`` of the target ``name`` and checks it.

    Raises:
        FuzzError: it does not do what the reference does.
    """
    draw = Draw(case)
    torch.manual_seed(draw.rng.randrange(2**31))
    torch.set_num_threads(draw.choice((1, 2)))
    problem = TARGETS[name][0](draw)
    upstream = Upstream(draw)
    eager = outcome(problem, "reference", upstream)
    actual = outcome(problem, "cpp", upstream)
    described = _describe(draw, problem)
    if isinstance(eager, Exception) or isinstance(actual, Exception):
        _check_errors(actual, eager, described)
        return
    _check_repeatable(actual, outcome(problem, "cpp", upstream, poisoned=False), described)
    if not problem.compared:
        _check_forms(actual, eager, described)
        return
    leeway, exact = Leeway(), _copy_problem(problem, torch.float64)
    with watch_sums(actual[0].dtype, leeway):
        oracle = outcome(exact, "reference", upstream)
    if isinstance(oracle, Exception):
        # Of mixed dtypes only the copies are alike; then the kernels and eager have raised.
        raise FuzzError(f"the reference fails in float64 only: {oracle!r}\n{described}")
    triples = list(zip(actual, eager, oracle, strict=True))
    if problem.cuts and any(t is not None and bool(t.isnan().any()) for t in (*eager, *oracle)):
        # The mask stops a NaN in the kernels, not in the reference: nothing is known of gradients.
        triples = triples[: actual.outputs]
    leeway.least_scale = min(1.0, max((_largest(t) for t in oracle if t is not None), default=0.0))
    leeway.empty = not any(t is not None and t.numel() for t in actual[: actual.outputs])
    if problem.module is not None:
        with backend.use("reference"):
            leeway.cancelled = cancelled(exact.module, oracle)
    for i, triple in enumerate(triples):
        _check_values(*triple, i, i >= actual.outputs, problem, leeway, described)


class Upstream:
    """Gradients of the outputs: of some, of a sum (stride 0), or laid out anyhow."""

    def __init__(self, draw: Draw) -> None:
        self.seed, self.kind = draw.rng.randrange(2**40), draw.rng.choice(("normal", "sum", "one"))
        self.place = draw.rng.randrange(4)

    def of(self, outputs: Sequence[Tensor]) -> list[Tensor | None]:
        generator = torch.Generator().manual_seed(self.seed)
        found: list[Tensor | None] = []
        for i, o in enumerate(outputs):
            wanted = self.kind != "one" or i == self.place % len(outputs)
            g = torch.randn(o.shape, dtype=torch.float64, generator=generator)
            # Rounded as in the narrowest dtype, so that all implementations get the same numbers.
            g = g.bfloat16().to(o.dtype)
            found.append(
                (torch.ones((), dtype=o.dtype).expand(o.shape) if self.kind == "sum" else g) if wanted else None
            )
        return found


class Results(list[Tensor | None]):
    """Outputs, then gradients; ``outputs`` counts the former."""

    outputs = 0


def outcome(problem: Problem, impl: str, upstream: Upstream, *, poisoned: bool = True) -> Results | Exception:
    """Outputs, then the gradients of inputs and parameters; or the error.

    Fresh memory holds NaN if ``poisoned``, otherwise what was freed last.
    """
    problem = _copy_problem(problem)
    torch.use_deterministic_algorithms(poisoned, warn_only=True)
    if not poisoned:
        _dirty_heap()
    try:
        with backend.use(impl):
            return _run(problem, upstream)
    except Exception as error:
        return error
    finally:
        torch.use_deterministic_algorithms(False)


def _run(problem: Problem, upstream: Upstream) -> Results:
    outputs = problem.call(problem.module, *problem.inputs)
    outputs = list(outputs) if isinstance(outputs, (tuple, list)) else [outputs]
    leaves = {id(t): t for t in problem.inputs if isinstance(t, Tensor) and t.requires_grad}
    leaves |= {id(p): p for p in problem.module.parameters()} if problem.module is not None else {}
    pairs = [(o, g) for o, g in zip(outputs, upstream.of(outputs), strict=True) if g is not None and o.requires_grad]
    found = Results(o.detach() for o in outputs)
    found.outputs = len(outputs)
    if leaves and pairs:
        points, gradients = zip(*pairs, strict=True)
        found += torch.autograd.grad(points, list(leaves.values()), gradients, allow_unused=True)
    else:
        found += [None] * len(leaves)
    return found


def _dirty_heap() -> None:
    """Leaves memory full of a conspicuous number to the next allocations."""
    held = [
        torch.full((size,), 7.0e7) for size in (2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 4096, 65536) for _ in "12"
    ]
    del held


def _copy_problem(problem: Problem, dtype: torch.dtype | None = None) -> Problem:
    """The problem with leaves of its own: of the same layouts, or contiguous in ``dtype``; aliases stay aliases."""
    copies: dict[int, Tensor] = {}
    for i, t in enumerate(problem.inputs):
        if id(t) not in copies:
            own = t.detach() if dtype is None else t.detach().to(dtype).clone()
            places = [j for j, other in enumerate(problem.inputs) if other is t]
            copies[id(t)] = own.requires_grad_(not any(j in problem.constants for j in places)) if i in places else own
    module = copy.deepcopy(problem.module)
    if module is not None and dtype is not None:
        module = module.to(dtype)
    return replace(problem, inputs=[copies[id(t)] for t in problem.inputs], module=module)


def _describe(draw: Draw, problem: Problem) -> str:
    tensors = [_describe_tensor(t) for t in problem.inputs]
    threads = f"{torch.get_num_threads()} threads"
    module = "" if problem.module is None else f"\n{problem.module}"
    return f"{threads}, hostile {draw.hostile}\n" + "\n".join(tensors) + module


def _describe_tensor(t: Tensor) -> str:
    flags = (" neg" if t.is_neg() else "") + ("" if t.isfinite().all() else " not finite")
    form = f"{t.dtype} {tuple(t.shape)} strides {t.stride()} offset {t.storage_offset()}"
    return f"{form}{flags} largest {_largest(t.double()):.3g}"


def _check_errors(actual: Any, eager: Any, described: str) -> None:
    if not isinstance(actual, Exception):
        raise FuzzError(f"the kernel returns where the reference raises {eager!r}\n{described}")
    if not isinstance(eager, Exception):
        raise FuzzError(f"the kernel raises {actual!r} where the reference returns\n{described}")
    for who, error in (("kernel", actual), ("reference", eager)):
        if not isinstance(error, CLEAN) or not str(error):
            raise FuzzError(f"the {who} raises {error!r}, which is none of the documented errors\n{described}")
    if type(actual) is not type(eager):
        raise FuzzError(f"the kernel raises {actual!r}, the reference {eager!r}\n{described}")


def _check_forms(actual: Sequence[Any], eager: Sequence[Any], described: str) -> None:
    forms = [[None if t is None else (tuple(t.shape), t.dtype) for t in found] for found in (actual, eager)]
    if forms[0] != forms[1]:
        raise FuzzError(f"the kernel gives {forms[0]}, the reference {forms[1]}\n{described}")


def _check_repeatable(first: Sequence[Any], second: Any, described: str) -> None:
    if isinstance(second, Exception):
        raise FuzzError(f"the second of two equal calls raises {second!r}\n{described}")
    for i, (a, b) in enumerate(zip(first, second, strict=True)):
        same = a is b is None or torch.equal(_bits(a), _bits(b))
        if not same:
            raise FuzzError(f"result {i} of two equal calls differs: memory is read before it is written\n{described}")


def _bits(t: Tensor) -> Tensor:
    return t.nan_to_num(1.25e-3, 3e4, -3e4).contiguous()


def _check_values(
    actual: Tensor | None,
    eager: Tensor | None,
    oracle: Tensor | None,
    number: int,
    is_gradient: bool,
    problem: Problem,
    leeway: Leeway,
    described: str,
) -> None:
    """Each number is as close to the oracle or to eager PyTorch as eager is to the oracle, or not finite like one.

    One that is not finite is as good as another where an infinite sum depends on its order, as gradients over
    infinities do, where eager overflows on the way to what float64 holds, and where the sums of a layer overflow.
    """
    name = f"result {number}"
    if actual is None or eager is None or oracle is None:
        present = [t for t in (actual, eager, oracle) if t is not None]
        if any(bool(t.count_nonzero()) for t in present):
            raise FuzzError(f"{name}: only some of kernel, eager PyTorch and float64 have this gradient\n{described}")
        return
    if actual.shape != eager.shape or actual.dtype != eager.dtype:
        raise FuzzError(
            f"{name} is {actual.dtype} {tuple(actual.shape)}, expected {eager.dtype} {tuple(eager.shape)}\n{described}"
        )
    if not actual.numel():
        return
    # What float64 holds and the dtype does not is infinite there.
    ours, theirs, exact = actual.double(), eager.double(), oracle.to(actual.dtype).double()
    # Eager PyTorch in float64 is the oracle itself: how much it errs is not known.
    allowed = 1e4 if problem.ill_conditioned else 1e3 if actual.dtype == torch.float64 else 32.0
    roundings = allowed * torch.finfo(actual.dtype).eps
    least = roundings * (leeway.least_scale + leeway.cancelled.get(number, torch.zeros(())).double())
    accepted = _close(ours, exact, theirs, roundings, least) | _close(ours, theirs, exact, roundings, least)
    if problem.cuts:
        accepted |= theirs.isnan() & exact.isnan()
    if is_gradient and leeway.empty:
        accepted |= theirs.isnan() & (ours == 0)
    unordered = (~theirs.isfinite() & ~exact.isfinite()) if is_gradient else (~theirs.isfinite() & oracle.isfinite())
    accepted |= (unordered | leeway.overflows) & ~ours.isfinite()
    if not accepted.all():
        place = int((~accepted).reshape(-1).nonzero()[0])
        values = ", ".join(
            f"{who} {t.reshape(-1)[place]:.9g}" for who, t in (("kernel", ours), ("eager", theirs), ("float64", exact))
        )
        where = f"{name} {actual.dtype} {tuple(actual.shape)} at {place}"
        raise FuzzError(f"{where}: {values}; {int((~accepted).sum())} wrong\n{described}")


def _close(ours: Tensor, expected: Tensor, other: Tensor, roundings: float, least: Tensor) -> Tensor:
    """Where ``ours`` is ``expected``, up to what eager PyTorch errs by in this tensor and a share of its largest."""
    finite = expected.isfinite() & other.isfinite()
    difference = torch.where(finite, (expected - other).abs(), 0.0).max()
    allowed = 8.0 * difference + least.clamp(min=roundings * _largest(expected))
    same = (ours == expected) | (ours.isnan() & expected.isnan())
    return same | (ours.isfinite() & expected.isfinite() & ((ours - expected).abs() <= allowed))


def _largest(t: Tensor) -> float:
    """The largest finite magnitude; 0 if there is none."""
    return float(torch.where(t.isfinite(), t, 0.0).abs().max()) if t.numel() else 0.0
