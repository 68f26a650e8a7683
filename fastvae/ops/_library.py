"""Registration with ``torch.library``, and the parts of autograd that every op shares."""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Callable, Collection, Sequence
from functools import cache, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from .. import backend
from ..backend import Route
from ..precision import compute_dtype
from ._contracts import Call, Contract

_LIBRARY = torch.library.Library("fastvae", "DEF")

# By the name of the op, the module of fastvae.kernels that has its Triton launcher, of the same name; None without one.
TRITON_MODULES: dict[str, str | None] = {}
# For torch.utils.flop_counter, by the name of the op: what ``register_flop_formula(get_raw=True)`` takes.
FLOP_FORMULAS: dict[str, Callable[..., int]] = {}


class Op(NamedTuple):
    """One op: the operator of torch's dispatcher, and two launchers."""

    dispatched: Callable[..., Any]
    cpu: Callable[..., Any]
    triton: Callable[..., Any]

    def on(self, route: Route) -> Callable[..., Any]:
        """The function to call for ``route``.

        Compilers, fake tensors, dispatch modes and the profiler must see the op: they get the dispatcher's. For plain
        tensors in eager mode the dispatcher would cost as much as a small kernel: they get the launcher.
        """
        if route.dispatched:
            _tell_flop_counters()
            return self.dispatched
        return self.cpu if route.impl == "cpp" else self.triton


def define(
    schema: str,
    *,
    module: str | None,
    tensors: str,
    cpu: Callable[..., Any],
    fake: Callable[..., Any],
    choices: dict[str, Collection[str]] | None = None,
    more: Callable[[Call], None] | None = None,
    adapt: Callable[..., Any] | None = None,
    dispatched: Callable[..., Any] | None = None,
    instead: str = "",
) -> Op:
    """Registers ``fastvae::<schema>`` with its CPU launcher and the Triton launcher of the same name in ``module``.

    An op without a Triton launcher has no module; ``instead`` says in its error what to call on a GPU.

    ``tensors``, ``choices`` and ``more`` say what the dispatcher may call it with, see :class:`Contract`.
    A launcher may return None for a missing output; the dispatcher, which knows tensors only, returns an empty one.
    ``adapt(launcher, *args)`` calls a Triton launcher that takes other arguments than the schema.
    ``dispatched(launcher, *args)`` calls the CPU launcher for the dispatcher.
    """
    name = schema.partition("(")[0]
    contract = Contract(schema, tensors, choices, more)
    TRITON_MODULES[name] = module

    @cache
    def find_launcher() -> Callable[..., Any]:
        # Imported here so that the library, and its CPU users, never load Triton.
        launcher = getattr(importlib.import_module(f"fastvae.kernels.{module}"), name)
        return launcher if adapt is None else partial(adapt, launcher)

    def triton(*args: Any) -> Any:
        if module is None:
            raise RuntimeError(f"fastvae::{name} runs on CPU tensors only: on a GPU call {instead}")
        return find_launcher()(*args)

    _LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    _LIBRARY.impl(name, _check_calls(contract, cpu if dispatched is None else partial(dispatched, cpu)), "CPU")
    _LIBRARY.impl(name, triton if module is None else _check_calls(contract, triton), "CUDA")
    torch.library.register_fake(f"fastvae::{name}", _on_one_device(contract, fake), lib=_LIBRARY)
    return Op(getattr(torch.ops.fastvae, name).default, cpu, triton)


def _on_one_device(contract: Contract, fake: Callable[..., Any]) -> Callable[..., Any]:
    """``fake`` behind a check that all tensors are on one device, as one tensor of many on ``meta`` is not."""

    def run(*args: Any) -> Any:
        contract.check_devices(*args)
        return fake(*args)

    return run


def _tell_flop_counters() -> None:
    """Gives the formulas to every active FlopCounterMode, and to later ones.

    Only now: importing the counter's module loads Triton, which importing this package must not.
    """
    if torch.compiler.is_compiling() or "torch.utils.flop_counter" not in sys.modules:
        return
    counter = sys.modules["torch.utils.flop_counter"]
    formulas = {getattr(torch.ops.fastvae, name): formula for name, formula in FLOP_FORMULAS.items()}
    for op, formula in formulas.items():
        if op not in counter.flop_registry:
            counter.register_flop_formula(op, get_raw=True)(formula)
    for mode in _get_current_dispatch_mode_stack():
        if isinstance(mode, counter._FlopCounterMode):
            for op in formulas:
                mode.counter.flop_registry.setdefault(op, counter.flop_registry[op])


def _check_calls(contract: Contract, launcher: Callable[..., Any]) -> Callable[..., Any]:
    """``launcher`` for the dispatcher: its arguments are checked, and None becomes an empty tensor."""

    def fill(like: Tensor, outputs: Any) -> Any:
        if isinstance(outputs, (tuple, list)):
            return type(outputs)(fill(like, t) for t in outputs)
        return like.new_empty(0) if outputs is None else outputs

    def run(*args: Any) -> Any:
        contract.check(*args)
        return fill(next(a for a in args if isinstance(a, Tensor)), launcher(*args))

    return run


def needs_grad(*tensors: Tensor) -> bool:
    if torch.is_grad_enabled():
        for t in tensors:
            if t.requires_grad:
                return True
    return False


@cache
def apply_at_once(function: type[torch.autograd.Function]) -> Callable[..., Any]:
    """``function.apply`` without its preparations for torch.func, under which no kernel runs.

    They take as long as a small kernel.
    """
    found: Callable[..., Any] = super(torch.autograd.Function, function).apply  # type: ignore[misc]
    return found


def apply(function: type[torch.autograd.Function], *args: Any) -> Any:
    """``function.apply(*args)``, at once except under a compiler, which knows only the usual call."""
    if torch.compiler.is_compiling():
        return function.apply(*args)
    return apply_at_once(function)(*args)


def extension() -> Any:
    """The compiled extension, or the error that says why there is none."""
    if backend._C is None:
        raise RuntimeError(f"impl='cpp' cannot run: {backend.why_not('cpp', 'cpu')}")
    return backend._C


# Outputs from this size on use blocks of the extension, as in csrc/bindings/tensors.cpp: the first touch of fresh pages
# would cost more than the kernel that fills them.
_BLOCK_BYTES = 1 << 20


def empty(like: Tensor, shape: Sequence[int]) -> Tensor:
    """An uninitialised tensor of ``like``'s dtype for a C++ kernel to fill; ``like`` is float32 or float64."""
    if math.prod(shape) * like.element_size() < _BLOCK_BYTES or torch.are_deterministic_algorithms_enabled():
        # As one argument, sizes would cost half a microsecond more.
        return like.new_empty(*shape) if shape else like.new_empty(shape)
    return extension().empty(like.dtype == torch.float64, list(shape))


def needs_of_points(route: Route, needed: bool) -> tuple[bool, ...]:
    """A last argument for a CPU launcher of gradients: whether that of the points is ``needed``.

    The first layer of a network of data needs none. The dispatcher's ops and a GPU's kernels give it always, and take
    no such argument.
    """
    return () if route.dispatched or route.impl != "cpp" else (needed,)


def keep_none(ctx: Any) -> None:
    """Lets ``backward`` see which outputs are unused: it gets None in place of zeros. Zero times infinity is NaN.

    A compiler knows only zeros.
    """
    if not torch.compiler.is_compiling():
        ctx.set_materialize_grads(False)


def zeros_for_rows(t: Tensor) -> Tensor:
    """The gradient of what a row of the matrix ``t`` has one of, and nobody used."""
    return t.new_zeros(t.shape[0], dtype=compute_dtype(t.dtype))


# A Function in plain PyTorch, for its second and later derivatives: a function of its tensors, and these tensors, one
# for each argument of ``forward``; None for an argument that has no gradient.
Differentiable = tuple[Callable[..., Any], Sequence[Tensor | None]]


def with_reference(
    reference: Callable[[Any], Differentiable], at_once: Callable[..., Any] | None = None
) -> Callable[..., Any]:
    """Makes a Function's ``backward`` differentiable, and lets ``vmap`` map it.

    ``backward`` calls a kernel, and runs where only a first gradient is needed. Under grad mode, as
    ``create_graph=True`` sets it, and for mapped gradients the gradient is that of ``reference(ctx)``, which
    autograd can differentiate any number of times. ``backward(ctx, route, *d_outputs)`` gets the route of its own
    call; the forward pass leaves its route at ``ctx.route``.

    ``at_once(ctx, *d_outputs)`` is asked first after a forward pass on plain matrices: it checks and computes in one
    call of the extension, and returns None for what it does not take. Calls in between take as long as a small kernel.
    """

    def decorate(backward: Callable[..., Any]) -> Callable[..., Any]:
        def run(ctx: Any, *d_outputs: Tensor | None) -> Any:
            route: Route = ctx.route
            if torch.compiler.is_compiling():
                return backward(ctx, route, *d_outputs)
            if not torch.is_grad_enabled():
                if at_once is not None and route.rows and (found := at_once(ctx, *d_outputs)) is not None:
                    return found
                if backend.can_call_directly(route, d_outputs):
                    return backward(ctx, route, *d_outputs)
                if not torch._C._are_functorch_transforms_active():
                    d_outputs = tuple(None if g is None else _as_plain(g) for g in d_outputs)
                    given = [g for g in d_outputs if g is not None]
                    if not given:
                        return (None,) * len(ctx.needs_input_grad)
                    if all(map(backend.holds_numbers, given)):
                        return backward(ctx, backend.route_of(route.impl, *given), *d_outputs)
            return reference_gradients(reference, ctx, d_outputs)

        return run

    return decorate


def reference_gradients(
    reference: Callable[[Any], Differentiable], ctx: Any, d_outputs: Sequence[Tensor | None]
) -> tuple[Tensor | None, ...]:
    """A Function's gradients by ``reference(ctx)``, of the outputs that are used."""
    function, inputs = reference(ctx)
    return _gradients(function, inputs, ctx.needs_input_grad, d_outputs)


def _as_plain(gradient: Tensor) -> Tensor:
    return backend.as_plain(gradient if gradient.layout is torch.strided else gradient.to_dense(), "the gradient")


def _gradients(
    function: Callable[..., Any],
    inputs: Sequence[Tensor | None],
    needs: Sequence[bool],
    d_outputs: Sequence[Tensor | None],
) -> tuple[Tensor | None, ...]:
    wanted = [i for i, (t, need) in enumerate(zip(inputs, needs, strict=True)) if need and t is not None]
    create_graph, points = torch.is_grad_enabled(), list(inputs)
    with torch.enable_grad():
        for i in wanted:
            t = inputs[i]
            assert t is not None
            # An alias that hangs on the graph of the input: gradients are taken at it and flow through it.
            points[i] = t.view_as(t) if t.requires_grad else t.detach().requires_grad_()
        outputs = function(*points)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        at = [t for i in wanted if (t := points[i]) is not None]
        pairs = [
            (o, g.to(o.dtype)) for o, g in zip(outputs, d_outputs, strict=True) if o.requires_grad and g is not None
        ]
        found = torch.autograd.grad(
            [o for o, _ in pairs],
            at,
            [g for _, g in pairs],
            create_graph=create_graph,
            allow_unused=True,
        )
    gradients: list[Tensor | None] = [None] * len(inputs)
    for i, gradient in zip(wanted, found, strict=True):
        gradients[i] = gradient
    return tuple(gradients)
