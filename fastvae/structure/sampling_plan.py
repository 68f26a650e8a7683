"""A causal network as plain data: buffers of activations, and the nodes that fill them in the order of execution.

An image is drawn pixel by pixel in raster order. What a buffer holds at a pixel is known either before its row begins
(kind ``"row"``: it depends on the rows above only) or while its pixel is at hand (kind ``"pixel"``). Channels of a
pixel may depend on channels of the image at that very pixel, which are drawn colour by colour: a channel of pass p is
computed once the colours below p are drawn, before colour p is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from torch import Tensor

__all__ = [
    "ROW",
    "SEVERAL",
    "Activation",
    "Affine",
    "Binding",
    "Buffer",
    "Constant",
    "Conv",
    "Copy",
    "Gate",
    "Lookup",
    "Node",
    "Norm",
    "Plan",
    "Pointwise",
    "Span",
]

# Where a node has no pass of its own: it runs for whole rows; its channels belong to several passes.
ROW, SEVERAL = -1, -2


class Span(NamedTuple):
    """``channels`` channels of a buffer, from ``first`` on."""

    buffer: int
    first: int
    channels: int

    def part(self, first: int, channels: int) -> Span:
        return Span(self.buffer, self.first + first, channels)


@dataclass(frozen=True)
class Buffer:
    """What is kept of one activation.

    Args:
        channels: number of channels.
        kind: ``"row"`` or ``"pixel"``.
        rows: rows that are read, the current one included.
        left, right: pixels that are read left and right of the current one; outside the image they are zeros.
        passes: the pass of each channel; None for rows.
    """

    channels: int
    kind: Literal["row", "pixel"]
    rows: int = 1
    left: int = 0
    right: int = 0
    passes: tuple[int, ...] | None = None

    def passes_of(self, span: Span) -> tuple[int, ...]:
        """The pass of each channel of ``span``, :data:`ROW` for rows."""
        if self.passes is None:
            return (ROW,) * span.channels
        return self.passes[span.first : span.first + span.channels]


@dataclass(frozen=True)
class Conv:
    """One group of a convolution: ``taps`` are (flat tap, dy, dx); degrees are lowered, see the masked convolution."""

    dst: Span
    src: Span
    layer: int
    group: int
    taps: tuple[tuple[int, int, int], ...]
    kernel_area: int
    origin_tap: int = -1
    in_degrees: tuple[int, ...] | None = None
    out_degrees: tuple[int, ...] | None = None
    activation: str = "identity"
    op: Literal["conv"] = "conv"


@dataclass(frozen=True)
class Pointwise:
    """a + b, a - b or a b."""

    dst: Span
    a: Span
    b: Span
    op: Literal["add", "sub", "mul"]


@dataclass(frozen=True)
class Affine:
    """alpha src + beta."""

    dst: Span
    src: Span
    alpha: float
    beta: float
    op: Literal["affine"] = "affine"


@dataclass(frozen=True)
class Activation:
    """A named function of each number; ``slope`` is that of ``"leaky_relu"``."""

    dst: Span
    src: Span
    name: str
    slope: float | None = None
    op: Literal["activation"] = "activation"


@dataclass(frozen=True)
class Gate:
    """tanh(a) sigmoid(b), or a sigmoid(b) of ``kind`` ``"linear"``: a, b are the halves of src + condition."""

    dst: Span
    src: Span
    condition: Span | None
    kind: str
    op: Literal["gate"] = "gate"


@dataclass(frozen=True)
class Copy:
    dst: Span
    src: Span
    op: Literal["copy"] = "copy"


@dataclass(frozen=True)
class Constant:
    """What does not depend on the image: number ``index`` of the plan's constants."""

    dst: Span
    index: int
    op: Literal["constant"] = "constant"


Node = Conv | Pointwise | Affine | Activation | Gate | Copy | Constant


class Lookup(NamedTuple):
    """The weights of one of the two 1 x 1 convolutions that look a pixel up in the table of an embedding.

    The first, ``"indicator"``, has two outputs for every row j of the table: for a pixel of level k, ``factor`` times
    its value, the sigmoids of the two have the product 1 where j = k and 0 elsewhere. The second, ``"table"``, takes
    these products to the row.
    """

    path: str
    part: Literal["indicator", "table"]
    factor: float


class Norm(NamedTuple):
    """What a batch norm with running statistics multiplies its input by, or adds then."""

    path: str
    part: Literal["factor", "term"]


@dataclass(frozen=True, eq=False)
class Plan:
    """A network, ready to be run pixel by pixel.

    Args:
        buffers: the image first, the parameters last.
        nodes: in the order of execution.
        layers: names of the convolutions whose weights the nodes use, or what makes them.
        constants: for each constant the graph's node or the batch norm that makes it, or a number that fills it; and
            its channels.
        image_colors: the colour of each channel of the image.
    """

    buffers: tuple[Buffer, ...]
    nodes: tuple[Node, ...]
    layers: tuple[str | Lookup, ...]
    constants: tuple[tuple[str | float | Norm, int], ...]
    image_colors: tuple[int, ...]

    @property
    def num_colors(self) -> int:
        return max(self.image_colors) + 1

    @property
    def in_channels(self) -> int:
        return self.buffers[0].channels

    @property
    def parameter_channels(self) -> int:
        return self.buffers[-1].channels

    def whole(self, index: int) -> Span:
        """All channels of a buffer."""
        return Span(index, 0, self.buffers[index].channels)

    def when(self, node: Node) -> int:
        """The pass of a node, :data:`ROW`, or :data:`SEVERAL`."""
        passes = set(self.buffers[node.dst.buffer].passes_of(node.dst))
        return passes.pop() if len(passes) == 1 else SEVERAL


class Binding(NamedTuple):
    """The numbers of one call: weights and biases of the plan's layers, and its constants.

    A constant is ``(N, channels)``, the same at every pixel, or ``(N, channels, H, W)``. All are contiguous, of one
    dtype, float32 or float64.
    """

    weights: Sequence[Tensor]
    biases: Sequence[Tensor | None]
    constants: Sequence[Tensor]
