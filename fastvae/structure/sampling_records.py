"""A sampler's plan as records of integers: one numbering for Python, C++ and Triton.

``csrc/base/codes.h`` has the codes and ``csrc/images/sampler_plan.h`` the records; a test compares them with these.
``kernels/_sampler_program.py`` makes the Triton kernels' blocks of the same codes and buffers.

A field that says where something is holds :data:`ABSENT` where there is nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import IntEnum
from typing import NamedTuple

from .sampling_plan import Plan

__all__ = [
    "ABSENT",
    "ActivationCode",
    "BufferRecord",
    "GateCode",
    "HeadCode",
    "HeadRecord",
    "NodeRecord",
    "OpCode",
    "SizesRecord",
    "TapRecord",
    "flatten",
    "lay_out",
]

ABSENT = -1


class OpCode(IntEnum):
    """What a node computes; only the Triton kernels have blocks that draw."""

    CONV = 0
    ADD = 1
    SUB = 2
    MUL = 3
    AFFINE = 4
    ACTIVATION = 5
    GATE = 6
    COPY = 7
    CONSTANT = 8
    DRAW = 9


class ActivationCode(IntEnum):
    """Masked layers have those up to ``SILU``; only samplers have the others."""

    IDENTITY = 0
    RELU = 1
    ELU = 2
    TANH = 3
    SOFTPLUS = 4
    GELU = 5
    SILU = 6
    SIGMOID = 7
    LEAKY_RELU = 8


class GateCode(IntEnum):
    TANH = 0
    LINEAR = 1


class HeadCode(IntEnum):
    """What a pixel is drawn from."""

    BERNOULLI = 0
    CATEGORICAL = 1
    LOGISTIC_MIXTURE = 2


class SizesRecord(NamedTuple):
    """Of one call; ``image_numbers`` is how many numbers the buffers of one image hold."""

    images: int
    channels: int
    height: int
    width: int
    parameters: int
    colors: int
    image_numbers: int


class HeadRecord(NamedTuple):
    """A :class:`HeadCode`, the uniform numbers of a pixel, components of a mixture, levels of a channel."""

    kind: int
    columns: int
    components: int
    levels: int


class BufferRecord(NamedTuple):
    """Rows of a buffer in a ring: row h begins ``h % rows * row_numbers`` numbers after ``first``.

    A row has ``left`` pixels of zeros before column 0; ``passes`` is the address of each channel's pass, for C++ only.
    """

    channels: int
    rows: int
    left: int
    row_numbers: int
    first: int
    passes: int = ABSENT


class TapRecord(NamedTuple):
    """One tap of a convolution: its flat index, and the rows and columns from the pixel to what it multiplies."""

    flat: int
    dy: int
    dx: int


class NodeRecord(NamedTuple):
    """A node of a plan, for C++; every op uses some of the fields.

    ``dst``, ``src`` and ``other`` are buffers, each with the first of its channels. ``when`` is a pass, or ``ROW`` or
    ``SEVERAL``. Addresses and scalars are places in the lists of the call.

    =============  =====================================================================================================
    a convolution  ``src_channels`` inputs of one group; addresses ``weight``, ``bias``, ``in_degrees``,
                   ``out_degrees``; weight[o, i, tap] is at (o inputs + i) ``kernel_area`` + tap; at ``origin_tap``
                   it counts where in degree <= out degree; ``taps`` records from ``first_tap`` on; ``activation``
    add, sub, mul  of ``src`` and ``other``
    affine         scalars ``alpha`` and ``beta``
    activation     ``activation``, and the scalar ``slope`` of a leaky ReLU
    gate           ``gate``; ``other`` is the condition
    constant       the address ``constant`` of (N, channels), or of (N, channels, H, W) where ``is_map`` is 1
    =============  =====================================================================================================
    """

    op: int
    when: int
    dst: int
    dst_first: int
    channels: int
    src: int = ABSENT
    src_first: int = ABSENT
    src_channels: int = ABSENT
    other: int = ABSENT
    other_first: int = ABSENT
    weight: int = ABSENT
    bias: int = ABSENT
    in_degrees: int = ABSENT
    out_degrees: int = ABSENT
    kernel_area: int = ABSENT
    origin_tap: int = ABSENT
    first_tap: int = ABSENT
    taps: int = ABSENT
    activation: int = ABSENT
    slope: int = ABSENT
    gate: int = ABSENT
    alpha: int = ABSENT
    beta: int = ABSENT
    constant: int = ABSENT
    is_map: int = ABSENT


def flatten(records: Iterable[Iterable[int]]) -> list[int]:
    """The integers of all records, one after another."""
    return [number for record in records for number in record]


def lay_out(plan: Plan, width: int) -> tuple[list[BufferRecord], int]:
    """The buffers of one image of ``width`` columns, and how many numbers they hold together."""
    records, end = [], 0
    for buffer in plan.buffers:
        row_numbers = (buffer.left + width + buffer.right) * buffer.channels
        records.append(BufferRecord(buffer.channels, buffer.rows, buffer.left, row_numbers, end))
        end += buffer.rows * row_numbers
    return records, end
