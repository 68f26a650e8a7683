"""Which implementation runs, and why.

Three implementations stand behind every op: ``"triton"`` (GPU kernels), ``"cpp"`` (the C++ extension) and
``"reference"`` (plain PyTorch). Only ``"auto"`` chooses: CUDA tensors go to Triton, CPU tensors to C++, anything else
to the reference. An explicit choice that cannot run raises and says why.
"""

from __future__ import annotations

import importlib.util
import os

import torch
from torch import Tensor
from torch.autograd import forward_ad

__all__ = ["IMPLEMENTATIONS", "release_memory", "report", "resolve", "why_not"]

IMPLEMENTATIONS = ("auto", "triton", "cpp", "reference")

try:
    from . import _C  # type: ignore[attr-defined]
except ImportError as error:
    _C = None
    _cpp_missing: str | None = f"the C++ extension fastvae._C cannot be imported ({error})"
else:
    _cpp_missing = None

_triton_missing = None if importlib.util.find_spec("triton") else "triton is not installed"
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


def resolve(impl: str, like: Tensor, eps: Tensor | None = None) -> str:
    """The implementation that runs for tensors like ``like``: one of ``"triton"``, ``"cpp"``, ``"reference"``.

    ``"auto"`` also takes the reference where a kernel has no rule: inside ``torch.func`` transforms and forward-mode
    differentiation, and when ``eps`` requires a gradient.

    Raises:
        ValueError: ``impl`` is not one of the four names.
        RuntimeError: the implementation asked for cannot run; the message says why.
    """
    if impl == "auto":
        if like.is_cpu:
            return "reference" if _cpp_missing or _unruled(eps) else "cpp"
        if like.is_cuda:
            return "reference" if _triton_missing or _unruled(eps) else "triton"
        return "reference"
    if impl == "reference":
        return impl
    if impl not in IMPLEMENTATIONS:
        raise ValueError(f"impl must be one of {', '.join(map(repr, IMPLEMENTATIONS))}, got {impl!r}")
    reason = why_not(impl, like.device.type) or _unruled(eps)
    if reason:
        raise RuntimeError(f"impl={impl!r} cannot run on {like.device.type} tensors here: {reason}")
    return impl


def _unruled(eps: Tensor | None) -> str | None:
    if eps is not None and eps.requires_grad:
        return "eps requires a gradient, which only impl='reference' gives"
    if not torch.compiler.is_compiling() and _transforming():
        return "torch.func transforms and forward-mode differentiation need impl='reference'"
    return None


def _transforming() -> bool:
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def runs_plainly() -> bool:
    """Whether the C++ kernels are there and nobody looks on who must see ops: compiler, dispatch mode, transform."""
    return not (_C is None or torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack() or _transforming())


def release_memory() -> int:
    """Returns the blocks that the C++ extension keeps for its next large outputs to the system; how many bytes.

    Outputs of 1 MiB and more live in such blocks, of which at most 512 MiB stay when nobody holds them.

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
    from ._version import __version__

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
