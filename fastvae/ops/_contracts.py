"""Checks of the arguments of ``torch.ops.fastvae``: the launchers hand tensors to kernels, and check nothing.

The functions of :mod:`fastvae.functional` always pass valid arguments; these checks are for direct calls of the ops.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..precision import DTYPES, compute_dtype
from ._checks import MOST_NUMBERS

__all__ = [
    "Call",
    "Contract",
    "check_log_det_gradient",
    "check_row_offset",
    "check_sample",
    "check_sample_gradient",
    "check_sample_with_kl",
    "check_sample_with_kl_gradient",
]

# name[sizes]flags, with "?" behind the name of a tensor that may be absent.
_ITEM = re.compile(r"(\w+)(\??)\[([\w,]*)\](\w*)")
_ARGUMENT = re.compile(r"(\w+)(?=[,)])")


class _Item(NamedTuple):
    name: str
    optional: bool
    sizes: tuple[str, ...]
    flags: str


class Call:
    """One call: its arguments by name, and the sizes, the dtype and the device that all of its tensors share."""

    def __init__(self, op: str, arguments: dict[str, Any]) -> None:
        self.op, self.arguments = op, arguments
        self.sizes: dict[str, Any] = {}
        self.dtype: torch.dtype | None = None
        self.device: torch.device | None = None
        # Whether a check looked at the numbers of a tensor, which the next call may have changed.
        self.has_read_values = False

    def __getitem__(self, name: str) -> Any:
        return self.arguments[name]

    def get_tensor(self, name: str) -> Tensor:
        """The tensor ``name``.

        Raises:
            ValueError: there is none.
        """
        t = self.arguments[name]
        self.require(isinstance(t, Tensor), name, "be a tensor", t)
        found: Tensor = t
        return found

    @property
    def is_cpu(self) -> bool:
        return self.device is not None and self.device.type == "cpu"

    def require(self, holds: bool, name: str, expected: str, got: Any) -> None:
        """Raises unless ``holds``.

        Raises:
            ValueError: ``name`` must be as ``expected`` says.
        """
        if not holds:
            raise ValueError(f"fastvae::{self.op}: {name} must {expected}, got {got}")

    def tensor(self, name: str, t: Tensor, sizes: Sequence[str], flags: str = "") -> None:
        """Checks one tensor.

        ``sizes`` are numbers or names of sizes; ``S`` is any number of sizes. Each name has one value in the whole
        call. Flags: ``r`` rows are contiguous, ``c`` all is; ``i`` int64, ``w`` the dtype that kernels
        compute in, ``a`` that or the call's, else the call's dtype.
        """
        self.require(isinstance(t, Tensor), name, "be a tensor", t)
        self.device = self.device or t.device
        self.require(t.device == self.device, name, f"be on {self.device}", t.device)
        self._dtype_of(name, t, flags)
        shape = tuple(t.shape)
        if not self._binds(shape, sizes):
            wanted = ", ".join(f"{size} = {self.sizes[size]}" if size in self.sizes else size for size in sizes)
            self.require(False, name, f"have shape ({wanted})", shape)
        rows = t.dim() == 0 or t.stride(-1) == 1 or shape[-1] <= 1 or t.numel() == 0
        self.require("r" not in flags or rows, name, "have contiguous rows", f"strides {t.stride()}")
        self.require("c" not in flags or t.is_contiguous(), name, "be contiguous", f"strides {t.stride()}")

    def _dtype_of(self, name: str, t: Tensor, flags: str) -> None:
        if "i" in flags:
            allowed: tuple[torch.dtype, ...] = (torch.int64,)
        elif self.dtype is None and not {"w", "a"} & set(flags):
            allowed = DTYPES
        elif self.dtype is None:
            # For half precision kernels return float32, and the dtype of the call is not known yet.
            allowed = (torch.float32, torch.float64) if "w" in flags else DTYPES
        else:
            wide = compute_dtype(self.dtype)
            allowed = (wide,) if "w" in flags else (self.dtype, wide) if "a" in flags else (self.dtype,)
        kinds = " or ".join(str(dtype).removeprefix("torch.") for dtype in allowed)
        self.require(t.dtype in allowed, name, f"be of {kinds}", t.dtype)
        if self.dtype is None and not {"i", "w", "a"} & set(flags):
            self.dtype = t.dtype

    def _binds(self, shape: tuple[int, ...], sizes: Sequence[str]) -> bool:
        if "S" in sizes:
            rest = len(sizes) - 1
            if len(shape) < rest:
                return False
            samples, shape = shape[: len(shape) - rest], shape[len(shape) - rest :]
            sizes = sizes[1:]
            if self.sizes.setdefault("S", samples) != samples:
                return False
        if len(shape) != len(sizes):
            return False
        for size, name in zip(shape, sizes, strict=True):
            expected = int(name) if name.isdigit() else self.sizes.setdefault(name, size)
            if size != expected:
                return False
        return True

    def samples_of(self, rows: str = "N") -> None:
        """Checks that S, as it was found, counts whole batches of the rows."""
        count, n = math.prod(self.sizes["S"]), self.sizes[rows]
        self.require(count % n == 0 if n else count == 0, "its samples", f"be a multiple of {n} rows", self.sizes["S"])


# Calls of one op that are remembered as sound.
_MOST_PASSED = 256


def _describe(args: Iterable[Any]) -> tuple[Any, ...]:
    """All that the checks look at: of a tensor its shape, strides, dtype and device, of the rest the values."""
    return tuple(
        (type(a), a.shape, a.stride() if a.layout is torch.strided else a.layout, a.dtype, a.device)
        if isinstance(a, Tensor)
        else _describe(a)
        if isinstance(a, (list, tuple))
        else (type(a), a)
        for a in args
    )


class Contract:
    """The checks of one op.

    Args:
        schema: of the op, as :func:`torch.library.define` takes it.
        tensors: its tensors as ``name[N,D]flags``, see :meth:`Call.tensor`, those that decide the dtype first.
        choices: the values that a string may have, by its name.
        more: checks whatever else must hold.
    """

    def __init__(
        self,
        schema: str,
        tensors: str,
        choices: dict[str, Collection[str]] | None = None,
        more: Callable[[Call], None] | None = None,
    ) -> None:
        self.op, _, rest = schema.partition("(")
        self.names = _ARGUMENT.findall(rest.partition(" -> ")[0])
        self.items = [
            _Item(name, bool(optional), tuple(sizes.split(",")) if sizes else (), flags)
            for name, optional, sizes, flags in _ITEM.findall(tensors)
        ]
        self.choices, self.more = choices or {}, more
        self._passed: set[tuple[Any, ...]] = set()

    def check_devices(self, *args: Any) -> None:
        """Raises unless all tensors among ``args`` are on one device.

        Raises:
            ValueError: one is on another device than the first.
        """
        call = Call(self.op, dict(zip(self.names, args, strict=True)))
        for name, value in call.arguments.items():
            for t in value if isinstance(value, (list, tuple)) else (value,):
                if isinstance(t, Tensor):
                    call.device = call.device or t.device
                    call.require(t.device == call.device, name, f"be on {call.device}", t.device)

    def check(self, *args: Any) -> None:
        """Raises unless the launchers can be called with ``args``.

        Raises:
            ValueError: an argument that does not fit; the message names the op and the argument.
        """
        # Compiled programs make the same call over and over, and the checks take longer than a small kernel.
        key = _describe(args)
        if key in self._passed:
            return
        if self._check(args).has_read_values:
            return
        if len(self._passed) >= _MOST_PASSED:
            self._passed.clear()
        self._passed.add(key)

    def _check(self, args: tuple[Any, ...]) -> Call:
        call = Call(self.op, dict(zip(self.names, args, strict=True)))
        for item in self.items:
            t = call[item.name]
            if t is not None or not item.optional:
                call.tensor(item.name, t, item.sizes, item.flags)
        for name, values in self.choices.items():
            call.require(call[name] in values, name, f"be one of {', '.join(values)}", repr(call[name]))
        if "S" in call.sizes and "N" in call.sizes:
            call.samples_of()
        if self.more is not None:
            self.more(call)
        return call


def check_row_offset(call: Call) -> None:
    row_offset = call["row_offset"]
    call.require(0 <= row_offset < MOST_NUMBERS, "row_offset", f"lie in [0, {MOST_NUMBERS})", row_offset)


def check_log_det_gradient(call: Call, columns: str = "D") -> None:
    """Checks the gradient of a log-determinant: a number for each row, or for each of its ``columns``."""
    d_log_det = call.get_tensor("d_log_det")
    call.tensor("d_log_det", d_log_det, ("N", columns) if d_log_det.dim() == 2 else ("N",), "cw")


def check_sample(call: Call) -> None:
    """Checks the ops that draw: the shape of the sample, its noise, and the number of its first row."""
    shape, noise, d = tuple(call["shape"]), call.get_tensor("noise"), call.sizes["D"]
    call.require(d > 0, "mu", "have one feature or more", 0)
    fits = len(shape) > 0 and shape[-1] == d and min(shape) >= 0 and math.prod(shape) < MOST_NUMBERS
    call.require(fits, "shape", f"be (*sample_shape, *batch, {d}) of a sample that memory can hold", shape)
    call.sizes["S"] = shape[:-1]
    call.samples_of()
    if noise.dim() == 0:
        call.tensor("noise", noise, (), "i")
    else:
        call.require(noise.numel() == math.prod(shape), "noise", f"hold {math.prod(shape)} numbers", tuple(noise.shape))
        call.tensor("noise", noise.detach().view(-1) if noise.is_contiguous() else noise, ("E",), "ca")
    check_row_offset(call)


def check_sample_gradient(call: Call) -> None:
    """Checks their backward passes. A CPU reads what the forward pass kept; other devices draw the noise again."""
    n, d = call.arguments.get("n", call.sizes.get("N")), call.sizes["D"]
    call.require(n is not None and n >= 0, "n", "be a number of rows", n)
    call.require(d > 0, "d_z", "have one feature or more", 0)
    call.require(call.sizes.setdefault("N", n) == n, "n", f"be the rows of log_sigma, {call.sizes['N']}", n)
    call.samples_of()
    needed = ("kept",) if call.is_cpu else ("log_sigma", "noise")
    for name in needed:
        call.require(call[name] is not None, name, f"be given for tensors on {call.device}", None)
    if not call.is_cpu and call["noise"].dim() == 0:
        call.tensor("noise", call["noise"], (), "i")
    check_row_offset(call)


def check_sample_with_kl(call: Call) -> None:
    """Checks the ops that draw, and compute a divergence of each row on the way."""
    check_sample(call)
    _check_samples(call)


def check_sample_with_kl_gradient(call: Call) -> None:
    d_kl = call.get_tensor("d_kl")
    call.tensor("d_kl", d_kl, ("N", "D") if d_kl.dim() == 2 else ("N",), "cw")
    check_sample_gradient(call)
    _check_samples(call)


def _check_samples(call: Call) -> None:
    n, points = call.sizes["N"], call.sizes["S"]
    call.require(n == 0 or math.prod(points) > 0, "its samples", "be one or more", points)
