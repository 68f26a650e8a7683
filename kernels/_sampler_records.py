"""Records of the sampler's tables, as its kernels read them."""

from __future__ import annotations

from typing import NamedTuple

# Rows of weights begin at multiples of so many numbers: 16 bytes, which one load takes.
VECTOR = 4


class Site(NamedTuple):
    """A place in an image's memory, at column 0: so many rows from the present one and numbers from its column 0."""

    buffer: int
    row: int = 0
    offset: int = 0


class Run(NamedTuple):
    """Terms of a convolution that lie side by side: those of the pixel at column x begin at ``at`` + x ``step``.

    Their weights begin at ``weights``. Those of a term are a row of ``width`` numbers. Both count vectors.
    """

    terms: int = 0
    at: Site | int = 0
    step: int = 0
    weights: int = 0
    width: int = 0


class Block(NamedTuple):
    """Columns that a program computes at once: what a stage makes of some of its channels, or a draw.

    ``source`` is the code of a convolution, a copy from memory, a constant or a draw. ``count`` columns of them have
    their places, relative to the pixel, in the list that begins at ``places``. A constant is read with steps from row
    to row and from image to image. ``bias`` is a place among the numbers. Runs and operations are ranges of their
    tables. A draw is of the channels of ``color``, from parameters that begin at ``at``.
    """

    source: int
    count: int = 0
    first_run: int = 0
    end_run: int = 0
    bias: int = 0
    at: Site | int = 0
    step: int = 0
    places: int = 0
    row_step: int = 0
    image_step: int = 0
    first_op: int = 0
    end_op: int = 0
    color: int = 0


class Op(NamedTuple):
    """An operation on the value of a block; a copy stores it.

    ``at``, ``step`` and ``places`` say where the second operand, or the result, is. ``kind`` is that of a gate or an
    activation. ``alpha`` and ``beta`` are places among the numbers; a slope is an alpha.
    """

    op: int
    at: Site | int = 0
    step: int = 0
    places: int = 0
    kind: int = 0
    alpha: int = 0
    beta: int = 0
