"""Which implementation runs, and why.

Every op has three implementations: ``"triton"`` (GPU kernels), ``"cpp"`` (the C++ extension) and
``"reference"`` (plain PyTorch). Only ``"auto"`` chooses: CUDA tensors go to Triton, CPU tensors to C++, anything else
to the reference. An explicit choice that cannot run raises and says why.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch._subclasses.functional_tensor import FunctionalTensor
from torch.autograd import forward_ad

from ._missing import why_no_extension, why_no_triton
from ._openmp import share_openmp
from ._version import __version__

__all__ = ["IMPLEMENTATIONS", "release_memory", "report", "resolve", "use", "why_not"]

IMPLEMENTATIONS = ("auto", "triton", "cpp", "reference")

share_openmp()
try:
    from . import _C  # type: ignore[attr-defined]
except ImportError as error:
    _C = None
    _cpp_missing: str | None = why_no_extension(error)
else:
    _cpp_missing = None

_triton_missing = why_no_triton()
# Triton itself reads this variable once, when a kernel is decorated.
INTERPRETING = os.environ.get("TRITON_INTERPRET", "0") == "1"


def why_not(impl: str, device_type: str) -> str | None:
    """The reason why ``impl`` cannot run on tensors of ``device_type``, or None when it can.

    Example:
        >>> why_not("cpp", "cuda")
        'it runs on CPU tensors only'
    """
    if impl == "triton":
        if _triton_missing:
            return _triton_missing
        if device_type != "cuda" and not (device_type == "cpu" and INTERPRETING):
            return "it runs on CUDA tensors (on CPU tensors only in Triton's interpreter, TRITON_INTERPRET=1)"
    elif impl == "cpp":
        if device_type != "cpu":
            return "it runs on CPU tensors only"
        return _cpp_missing
    return None


class Route(NamedTuple):
    """Who runs a call: the implementation, and whether torch's dispatcher must see the op.

    ``alike`` says that the tensors are known to be plain, on the CPU and of one floating-point dtype. ``rows`` says
    that they are also matrices of one shape, with contiguous rows that are not empty.
    """

    impl: str
    dispatched: bool = False
    alike: bool = False
    rows: bool = False


CPP, _TRITON, _REFERENCE = Route("cpp"), Route("triton"), Route("reference")
# Indexed by the answer of the extension's look at tensors (csrc/bindings/looks.cpp); None: they are not plain.
_SEEN = (None, CPP, Route("cpp", alike=True), Route("cpp", alike=True, rows=True))
# Classes whose tensors hold their own numbers. `as_plain` turns buffers, and subclasses of Tensor without a dispatch
# of their own, into their plain base.
_PLAIN = (Tensor, torch.nn.Parameter)
_NO_DISPATCH = Tensor.__torch_dispatch__
# The choice of `use`. It holds in the whole process, as torch's own switches of backends do.
_forced: str | None = None


class use(contextlib.ContextDecorator):  # noqa: N801 - it reads as a verb, like torch.no_grad
    """Chooses the implementation of every call inside a ``with`` block or a decorated function.

    It overrides the ``impl`` of every function and module. A backward pass runs what its forward pass ran.

    Args:
        impl: ``"auto"``, ``"triton"``, ``"cpp"`` or ``"reference"``.

    Raises:
        ValueError: ``impl`` is not one of the four names.

    Note:
        The choice holds for all threads of the process.

    Example:
        >>> import fastvae
        >>> with fastvae.backend.use("reference"):
        ...     fastvae.backend.resolve("auto", torch.zeros(2))
        'reference'
    """

    def __init__(self, impl: str) -> None:
        if impl not in IMPLEMENTATIONS:
            raise ValueError(f"impl must be one of {', '.join(map(repr, IMPLEMENTATIONS))}, got {impl!r}")
        self.impl = impl
        self._outer: list[str | None] = []

    def __enter__(self) -> use:
        global _forced
        self._outer.append(_forced)
        _forced = self.impl
        return self

    def __exit__(self, *_: object) -> None:
        global _forced
        _forced = self._outer.pop()


def resolve(impl: str, *tensors: Tensor | None, eps: Tensor | None = None) -> str:
    """The implementation that runs for ``tensors``: one of ``"triton"``, ``"cpp"``, ``"reference"``.

    ``"auto"`` takes the reference where a kernel has no rule: inside ``torch.func`` transforms, forward-mode
    differentiation, ``torch.jit.trace`` and ``torch.export``, for tensors that do not hold their own numbers (sharded
    or quantised ones), and when ``eps`` requires a gradient.

    Raises:
        ValueError: ``impl`` is not one of the four names.
        RuntimeError: the implementation asked for cannot run; the message says why.
    """
    given = [t for t in tensors if isinstance(t, Tensor)]
    impl = impl if _forced is None else _forced
    if impl not in IMPLEMENTATIONS:
        raise ValueError(f"impl must be one of {', '.join(map(repr, IMPLEMENTATIONS))}, got {impl!r}")
    if impl == "reference" or not given:
        return "reference"
    device_type = given[0].device.type
    preferred = {"cpu": "cpp", "cuda": "triton"}.get(device_type, "reference") if impl == "auto" else impl
    if preferred == "reference":
        return preferred
    reason = why_not(preferred, device_type) or _why_no_kernel(given, eps, asked_for=impl != "auto")
    if reason is None:
        return preferred
    if impl == "auto":
        return "reference"
    raise RuntimeError(f"impl={impl!r} cannot run on {device_type} tensors here: {reason}")


def route(
    impl: str,
    *tensors: Tensor | None,
    names: Sequence[str] = (),
    eps: Tensor | None = None,
    floats: int = 1000,
    required: int = 1000,
) -> tuple[Route, Sequence[Any]]:
    """Who runs a call on ``tensors``, and the tensors as it takes them; None stays None.

    Kernels get plain tensors only. Where autograd can follow, lazy negation is carried out, a quantised tensor
    is dequantised, and a subclass is seen as the tensor that it is. ``names`` are those that errors use. The
    first ``floats`` tensors must be of one dtype, the first ``required`` ones must be there.

    Raises:
        TypeError: a tensor is sparse or nested.
        ValueError: ``impl`` is not one of the four names.
        RuntimeError: a tensor's storage has been freed, or the implementation asked for cannot run; the message says
            why.
    """
    # The usual call is recognised at once: on small models the rest would take as long as a kernel.
    if eps is None and runs_cpp(impl) and (known := _SEEN[_C.look(tensors, floats, required)]) is not None:
        return known, tensors
    if eps is None and tensors and _runs_triton(impl, tensors):
        return _TRITON, tensors
    # What is no tensor is left to the checks of the op.
    plain = [as_plain(t, _name_of(i, names)) if isinstance(t, Tensor) else t for i, t in enumerate(tensors)]
    chosen = resolve(impl, *plain, eps=eps)
    if chosen == "reference":
        return _REFERENCE, plain
    return route_of(chosen, *[t for t in plain if isinstance(t, Tensor)]), plain


def _runs_triton(impl: str, tensors: Sequence[Any]) -> bool:
    """Whether a call is a usual one on a GPU: of plain tensors, and nothing watches, records or transforms it.

    The rest of :func:`route` would find the same in a function call for each look at each tensor.
    """
    first, asked_for = tensors[0], impl if _forced is None else _forced
    if type(first) not in _PLAIN or not (asked_for == "triton" or (asked_for == "auto" and first.is_cuda)):
        return False
    if _is_watched() or _has_no_rule() or why_not("triton", first.device.type) is not None:
        return False
    for t in tensors:
        if t is not None and (
            type(t) not in _PLAIN
            or t.layout is not torch.strided
            or t.is_neg()
            or not torch._C._has_storage(t)
            or (t.data_ptr() == 0 and t.numel() > 0)
        ):
            return False
    return True


def can_read(impl: str, *tensors: Tensor) -> bool:
    """Whether ``impl`` means the C++ extension, and it can read ``tensors`` without the dispatcher."""
    return runs_cpp(impl) and _C.look(tensors, 0, 0) > 0


def can_call_directly(route: Route, gradients: Sequence[Tensor | None]) -> bool:
    """Whether the C++ kernels of a call's backward pass may be called for ``gradients`` without the dispatcher."""
    return route.impl == "cpp" and not route.dispatched and _C.look(gradients, 0, 0) > 0


def route_of(chosen: str, *tensors: Tensor) -> Route:
    """How ``chosen``, a kernel's implementation, is called for ``tensors``."""
    # The dispatcher cannot tell Triton's interpreter from C++: the interpreter is always called directly.
    interpreted = chosen == "triton" and tensors[0].device.type == "cpu"
    if not interpreted and (_is_watched() or any(type(t) not in _PLAIN for t in tensors)):
        return Route(chosen, dispatched=True)
    return CPP if chosen == "cpp" else Route(chosen)


def is_asked_for(impl: str) -> bool:
    """Whether somebody chose the implementation, by ``impl`` or by :class:`use`."""
    return (impl if _forced is None else _forced) != "auto"


def runs_cpp(impl: str) -> bool:
    """Whether ``impl`` means the C++ kernels on a CPU, and no compiler traces the call.

    ``_C.look`` answers the rest: whether a dispatch mode or the profiler is active, and whether the kernels can read
    the tensors.
    """
    asked_for = impl if _forced is None else _forced
    return asked_for in _CPP_NAMES and _C is not None and not torch.compiler.is_compiling()


_CPP_NAMES = ("auto", "cpp")


def _is_watched() -> bool:
    """Whether a compiler, a dispatch mode or the profiler is active, each of which must see ops."""
    return (
        torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack() > 0
        or torch.autograd.profiler._is_profiler_enabled
    )


def _has_no_rule() -> bool:
    """Whether calls are recorded or transformed in a way for which only PyTorch's own operators have rules."""
    return (
        torch._C._are_functorch_transforms_active()
        or forward_ad._current_level >= 0
        or torch._C._get_tracing_state() is not None
    )


def _why_no_kernel(tensors: Sequence[Tensor], eps: Tensor | None, asked_for: bool) -> str | None:
    """Why no kernel can run on ``tensors`` now; None where one can."""
    if isinstance(eps, Tensor) and eps.requires_grad:
        return "eps requires a gradient, which only impl='reference' gives"
    if torch.compiler.is_compiling():
        # An exported program runs where fastvae may not be installed. An explicit impl gets its op all the same.
        return "torch.export records PyTorch's own operators" if _is_exporting() and not asked_for else None
    if torch._C._get_tracing_state() is not None:
        return "torch.jit.trace records PyTorch's own operators only: use impl='reference'"
    if _has_no_rule():
        return "torch.func transforms and forward-mode differentiation need impl='reference'"
    for t in tensors:
        if not holds_numbers(t):
            return f"a kernel cannot read the numbers of a {_class_of(t)}: pass a plain tensor or use impl='reference'"
    return None


def _is_exporting() -> bool:
    # What torch.compiler.is_exporting returns; under torch.compile, torch 2.10 and 2.11 take that to be always true.
    return getattr(torch.compiler, "_is_exporting_flag", False)


def holds_numbers(t: Tensor) -> bool:
    """Whether an op of fastvae can run on ``t``: on its numbers or, if it is fake, on its shape."""
    if type(t) not in _PLAIN and type(t).__torch_dispatch__ is not _NO_DISPATCH:
        return isinstance(t, (FakeTensor, FunctionalTensor))
    if torch.compiler.is_compiling():
        return True
    # The wrapped tensors of transforms have no storage of their own; that of a sharded weight may have been freed.
    return torch._C._has_storage(t) and (t.device.type != "cpu" or t.numel() == 0 or t.data_ptr() != 0)


def _class_of(t: Tensor) -> str:
    return type(t).__name__ if type(t) not in _PLAIN else "wrapped tensor of a transform"


def _name_of(index: int, names: Sequence[str]) -> str:
    return names[index] if index < len(names) else f"tensor {index}"


def as_plain(t: Tensor, name: str) -> Tensor:
    """``t`` without what a kernel cannot see, as far as autograd can follow."""
    kind = type(t)
    if kind not in _PLAIN:
        if kind.__torch_dispatch__ is _NO_DISPATCH:
            # A subclass that only adds Python to a tensor, such as a Buffer.
            return as_plain(t.as_subclass(Tensor), name)
        if t.is_nested:
            raise not_dense(t, name)
        # Quantised weights know their numbers, but have no rule for a product with a mask.
        return t.dequantize() if kind.dequantize is not Tensor.dequantize else t
    if torch.compiler.is_compiling():
        return t
    if t.layout is not torch.strided or t.is_nested:
        raise not_dense(t, name)
    if t._is_zerotensor():
        # Only forward-mode differentiation makes such tensors. Their zeros are nowhere in memory.
        zeros = torch.zeros(t.shape, dtype=t.dtype, device=t.device)
        return zeros + t if t.requires_grad else zeros
    if _is_freed(t):
        # PyTorch's own operators would read from the address 0.
        raise RuntimeError(
            f"{name} must hold its numbers, but its storage has been freed, as that of a sharded weight is between "
            "uses: call the module that gathers it"
        )
    return t.resolve_neg() if t.is_neg() else t


def not_dense(t: Tensor, name: str) -> TypeError:
    """The error for a tensor that is sparse or nested."""
    if t.is_nested:
        return TypeError(
            f"{name} must be a dense tensor, got a nested one: pass torch.nested.to_padded_tensor({name}, 0.0)"
        )
    return TypeError(f"{name} must be a dense tensor, got layout {t.layout}: pass {name}.to_dense()")


def _is_freed(t: Tensor) -> bool:
    """Whether ``t`` has lost its storage; a wrapper never had one of its own."""
    if t.device.type not in ("cpu", "cuda") or t.numel() == 0 or not torch._C._has_storage(t):
        return False
    return t.data_ptr() == 0 and not torch._is_functional_tensor(t)


def release_memory() -> int:
    """Frees the blocks that the C++ extension keeps for its next large outputs; returns how many bytes they held.

    Outputs of 1 MiB and more live in such blocks. Unused blocks are kept, up to a sixteenth of the machine's
    memory, between 512 MiB and 2 GiB.

    Example:
        >>> release_memory() >= 0
        True
    """
    return 0 if _C is None else _C.release_blocks()


def report() -> str:
    """What ``impl="auto"`` chooses on each device, and why not the others.

    Example:
        >>> print(report().splitlines()[0].split()[0])
        fastvae
    """
    lines = [f"fastvae {__version__}, torch {torch.__version__}"]
    if _C is not None:
        lines.append(f"C++ extension: instruction set {_C.isa()} of {', '.join(_C.available_isas())}")
    for device_type, preferred in (("cuda", "triton"), ("cpu", "cpp")):
        reason = why_not(preferred, device_type)
        if device_type == "cuda" and reason is None and not torch.cuda.is_available():
            reason = "no CUDA device is visible"
        choice = f"auto -> {preferred}" if reason is None else f"{preferred} not used, {reason}"
        lines.append(f"{device_type}: {choice}")
        others = [name for name in ("triton", "cpp") if name != preferred]
        lines += [f"  {name}: {why_not(name, device_type) or 'can run'}" for name in others]
        lines.append("  reference: can run")
    return "\n".join(lines)
