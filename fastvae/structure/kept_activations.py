"""What a masked network's forward pass leaves for its backward pass on a GPU: one tensor, and where all is in it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["NEED_PRE", "KeptActivations", "NetworkForm"]

# The derivatives of these activations need the pre-activation; those of the others follow from the value.
NEED_PRE = ("gelu", "silu")
# Every part begins at a multiple of this many numbers, which are 16 bytes or more: kernels read whole vectors.
_ALIGNMENT = 4


class NetworkForm(NamedTuple):
    """A network without its sizes. ``kind`` is that of the affine step on top of it, None for the network alone."""

    kind: str | None
    activation: str
    residual: bool
    interleaved: bool

    def activations(self, hidden: int) -> tuple[str, ...]:
        """Of each hidden layer; the last one of a residual network has none."""
        last = "identity" if self.residual else self.activation
        return (*(self.activation,) * (hidden - 1), last)

    def has_pre(self, hidden: int) -> list[bool]:
        """Of each hidden layer, whether the slope of its activation needs what was before it."""
        return _has_pre(self.activations(hidden))

    def count_kept(self, n: int, dtype: torch.dtype, widths: Sequence[int]) -> int:
        """Numbers of the memory of :class:`KeptActivations` for ``n`` points of ``dtype``."""
        per_number, (*hidden, outputs) = _per_number(dtype), widths[1:]
        total = _count_numbers(n * outputs, per_number) if self.kind is not None else 0
        for width, there in zip(hidden, self.has_pre(len(hidden)), strict=True):
            total = total + _count_numbers(n * width, per_number)
            if there:
                total = total + _count_numbers(n * width, 1)
        return total


class KeptActivations(NamedTuple):
    """Views of the memory, which has the dtype that kernels compute in.

    ``values`` are the hidden layers ``(N, width)`` after their activation, in the dtype of the points. ``before`` are
    the same before it, in that of the memory; None for a layer whose slope follows from its values. ``params`` is the
    network's output, None for a network alone.
    """

    values: list[Tensor]
    before: list[Tensor | None]
    params: Tensor | None

    @classmethod
    def within(
        cls, memory: Tensor, n: int, dtype: torch.dtype, widths: Sequence[int], form: NetworkForm
    ) -> KeptActivations:
        """The views for ``n`` points of ``dtype``; ``widths`` are those of inputs, hidden layers and outputs."""
        at, per_number = 0, _per_number(dtype)
        as_points = memory if per_number == 1 else memory.view(dtype)
        values, before, (*hidden, outputs) = list[Tensor](), list[Tensor | None](), widths[1:]
        for width, there in zip(hidden, form.has_pre(len(hidden)), strict=True):
            values.append(as_points.as_strided((n, width), (width, 1), at * per_number))
            at += _count_numbers(n * width, per_number)
            before.append(memory.as_strided((n, width), (width, 1), at) if there else None)
            at += _count_numbers(n * width, 1) if there else 0
        params = as_points.as_strided((n, outputs), (outputs, 1), at * per_number) if form.kind is not None else None
        return cls(values, before, params)


@cache
def _has_pre(activations: tuple[str, ...]) -> list[bool]:
    return [name in NEED_PRE for name in activations]


@cache
def _per_number(dtype: torch.dtype) -> int:
    """How many numbers of ``dtype`` take the place of one that kernels compute with."""
    return 2 if dtype.itemsize == 2 else 1


def _count_numbers(count: int, per_number: int) -> int:
    numbers = (count + per_number - 1) // per_number
    return (numbers + _ALIGNMENT - 1) // _ALIGNMENT * _ALIGNMENT
