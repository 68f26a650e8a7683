"""Registration with ``torch.library``, and the parts of autograd that every op shares."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import backend

_PLAIN = (Tensor, torch.nn.Parameter)
_LIBRARY = torch.library.Library("fastvae", "DEF")


class Op(NamedTuple):
    """One op: what torch's dispatcher knows it as, and its two launchers."""

    dispatched: Callable[..., Any]
    cpu: Callable[..., Any]
    triton: Callable[..., Any]

    def on(self, impl: str, like: Tensor) -> Callable[..., Any]:
        """What to call for ``impl`` on tensors such as ``like``.

        The dispatcher is for whoever needs to see the op: compilers, tensor subclasses, dispatch modes. For plain
        tensors in eager mode its boundary would cost as much as a small kernel, and the launcher is called itself;
        so it is for the interpreter, which the dispatcher cannot tell from C++.
        """
        if torch.compiler.is_compiling() or type(like) not in _PLAIN or torch._C._len_torch_dispatch_stack():
            interpreted = impl == "triton" and like.device.type == "cpu"
            return self.triton if interpreted else self.dispatched
        return self.cpu if impl == "cpp" else self.triton


def define(
    schema: str,
    *,
    module: str,
    cpu: Callable[..., Any],
    fake: Callable[..., Any],
    adapt: Callable[..., Any] | None = None,
) -> Op:
    """Registers ``fastvae::<schema>`` with its CPU launcher and the Triton launcher of the same name in ``module``.

    A launcher may return None for an output that there is not; the dispatcher, which knows tensors only, hands out an
    empty one. ``adapt(launcher, *args)`` calls a Triton launcher whose arguments are not the schema's.
    """
    name = schema.partition("(")[0]

    def triton(*args: Any) -> Any:
        # Imported here so that the library, and its CPU users, never load Triton.
        launcher = getattr(importlib.import_module(f"fastvae.kernels.{module}"), name)
        return launcher(*args) if adapt is None else adapt(launcher, *args)

    _LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    _LIBRARY.impl(name, _without_none(cpu), "CPU")
    _LIBRARY.impl(name, _without_none(triton), "CUDA")
    torch.library.register_fake(f"fastvae::{name}", fake, lib=_LIBRARY)
    return Op(getattr(torch.ops.fastvae, name).default, cpu, triton)


def _without_none(launcher: Callable[..., Any]) -> Callable[..., Any]:
    def filled(like: Tensor, outputs: Any) -> Any:
        if isinstance(outputs, (tuple, list)):
            return type(outputs)(filled(like, t) for t in outputs)
        return like.new_empty(0) if outputs is None else outputs

    return lambda *args: filled(args[0], launcher(*args))


def needs_grad(*tensors: Tensor) -> bool:
    if torch.is_grad_enabled():
        for t in tensors:
            if t.requires_grad:
                return True
    return False


def apply(function: type[torch.autograd.Function], *args: Any) -> Any:
    """``function.apply(*args)`` without its preparations for torch.func, which no kernel runs under.

    They take as long as a small kernel. A compiler knows the usual call only.
    """
    if torch.compiler.is_compiling():
        return function.apply(*args)
    return super(torch.autograd.Function, function).apply(*args)  # type: ignore[misc]


def extension() -> Any:
    """The compiled extension, or the error that says why there is none."""
    if backend._C is None:
        raise RuntimeError(f"impl='cpp' cannot run: {backend.why_not('cpp', 'cpu')}")
    return backend._C


# Outputs from this size on live in blocks of the extension, which it keeps (csrc/tensors.cpp, which has the same
# number): the first touch of fresh pages would cost more than the kernel that fills them.
_BLOCK_BYTES = 1 << 20


def empty(like: Tensor, shape: Sequence[int]) -> Tensor:
    """An uninitialised tensor of ``like``'s dtype for a C++ kernel to fill; ``like`` is float32 or float64."""
    if math.prod(shape) * like.element_size() < _BLOCK_BYTES or torch.are_deterministic_algorithms_enabled():
        # As one argument, sizes would cost half a microsecond more.
        return like.new_empty(*shape) if shape else like.new_empty(shape)
    return extension().empty(like.dtype == torch.float64, list(shape))


class _FirstOrderOnly(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        return tuple(g.view_as(g) for g in gradients)

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> Any:
        raise RuntimeError("fastvae kernels are differentiable once; for gradients of gradients pass impl='reference'")


def once_differentiable(backward: Callable[..., Any]) -> Callable[..., Any]:
    """As ``torch.autograd.function.once_differentiable``, with an error that names the way out."""

    def wrapped(ctx: Any, *d_outputs: Tensor) -> Any:
        if not torch.is_grad_enabled():
            return backward(ctx, *d_outputs)
        with torch.no_grad():
            gradients = backward(ctx, *d_outputs)
        # Whoever builds a graph of gradients must not take them for constants.
        guarded = iter(_FirstOrderOnly.apply(*(g.detach().requires_grad_() for g in gradients if g is not None)))
        return tuple(None if g is None else next(guarded) for g in gradients)

    return wrapped
