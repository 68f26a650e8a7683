"""What the op and the layer of masked convolutions share: structure, degrees and padding from users' arguments."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..structure.constants import IntegerConstants
from ..structure.convolution import ConvStructure, check_colors, colors_of, pair
from ._checks import MOST_NUMBERS
from ._contracts import Call
from ._layers import check_degrees, degrees_of


class ConvCall(NamedTuple):
    """The parameters of a masked convolution, in the order in which the ops take them after their tensors."""

    taps: Sequence[int]
    origin_tap: int
    padding: Sequence[int]
    dilation: Sequence[int]
    groups: int
    activation: str

    def output_shape(self, x: Tensor, weight: Tensor) -> tuple[int, int, int, int]:
        top, left, bottom, right = self.padding
        height = x.shape[2] + top + bottom - self.dilation[0] * (weight.shape[2] - 1)
        width = x.shape[3] + left + right - self.dilation[1] * (weight.shape[3] - 1)
        return x.shape[0], weight.shape[0], height, width


def padding_of(
    padding: int | Sequence[int] | str, structure: ConvStructure, dilation: tuple[int, int]
) -> tuple[int, int, int, int]:
    """Zeros (top, left, bottom, right)."""
    if isinstance(padding, str):
        if padding != "same":
            raise ValueError(f"padding must be an integer, two, or 'same', got {padding!r}")
        return structure.padding(dilation)
    rows, columns = pair("padding", padding, 0)
    return rows, columns, rows, columns


def _make_colors(channels: tuple[int, int], num_colors: int, color_layout: str, shift: int) -> IntegerConstants:
    """Colours of the input and of the output channels as degrees."""
    ins, outs = (
        colors_of(name, count, num_colors, color_layout)
        for name, count in zip(("in_channels", "out_channels"), channels, strict=True)
    )
    return IntegerConstants(ins, [color + shift for color in outs])


# None is dropped: CUDA graphs read the tensors of earlier calls by their addresses.
_remember_colors = functools.cache(_make_colors)


def _colors(channels: tuple[int, int], num_colors: int, color_layout: str, shift: int) -> IntegerConstants:
    # Dynamo warns of caches that it sees.
    make = _make_colors if torch.compiler.is_compiling() else _remember_colors
    return make(channels, num_colors, color_layout, shift)


def lower_degrees(
    structure: ConvStructure,
    in_channels: int,
    out_channels: int,
    num_colors: int,
    color_layout: str,
    in_degrees: Sequence[int] | Tensor | None,
    out_degrees: Sequence[int] | Tensor | None,
    device: torch.device,
) -> tuple[Tensor | None, Tensor | None]:
    """(in_degrees, out_degrees) of the rule at the origin's tap, where the first must be at most the second.

    Both are None where ``structure`` has no such rule.

    Raises:
        TypeError: degrees are no integers.
        ValueError: degrees of another number than channels, or ``num_colors`` does not divide the channels.
    """
    if not structure.has_rule:
        return None, None
    shift = structure.degree_shift
    if in_degrees is None or out_degrees is None:
        ins, outs = _colors((in_channels, out_channels), num_colors, color_layout, shift).on(device)
        return ins, outs
    like = torch.empty(0, device=device)
    ins, outs = (
        check_degrees(name, d if isinstance(d, Tensor) else torch.tensor(d, device=device), count, like)
        for name, d, count in (
            ("in_degrees", in_degrees, in_channels),
            ("out_degrees", out_degrees, out_channels),
        )
    )
    return ins, outs + shift if shift else outs


def lower_to_constants(
    structure: ConvStructure,
    in_channels: int,
    out_channels: int,
    num_colors: int,
    color_layout: str,
    in_degrees: Sequence[int] | Tensor | None,
    out_degrees: Sequence[int] | Tensor | None,
) -> IntegerConstants:
    """As :func:`lower_degrees`, for a layer that keeps its degrees."""
    if not structure.has_rule:
        return IntegerConstants(None, None)
    shift = structure.degree_shift
    if in_degrees is None or out_degrees is None:
        return _colors((in_channels, out_channels), num_colors, color_layout, shift)
    ins, outs = degrees_of("in_degrees", in_degrees, in_channels), degrees_of("out_degrees", out_degrees, out_channels)
    return IntegerConstants(ins, [degree + shift for degree in outs])


def structure_of(
    kernel_size: tuple[int, int],
    mask_type: str,
    origin: tuple[int, int] | None,
    order: str,
    num_colors: int,
    color_layout: str,
    in_degrees: Sequence[int] | Tensor | None,
    out_degrees: Sequence[int] | Tensor | None,
) -> ConvStructure:
    """The structure, with a rule at the origin where there are colours or degrees."""
    check_colors(num_colors, color_layout)
    if (in_degrees is None) != (out_degrees is None):
        missing, given = ("in_degrees", "out_degrees") if in_degrees is None else ("out_degrees", "in_degrees")
        raise ValueError(f"{missing} must be given together with {given}, got None")
    # A number of colours that a compiler keeps open gives a truth value that not every torch converts.
    has_rule = True if num_colors > 1 else in_degrees is not None
    return ConvStructure(kernel_size, mask_type, origin, order, has_rule)


def check_shapes(
    x: Tensor, weight: Tensor, bias: Tensor | None, padding: Sequence[int], dilation: Sequence[int], groups: int
) -> None:
    out, inputs, *kernel = weight.shape
    if len(kernel) != 2:
        raise ValueError(f"weight must have shape (O, I / groups, kh, kw), got {tuple(weight.shape)}")
    if groups < 1 or out % groups:
        raise ValueError(f"groups must be >= 1 and divide the outputs of weight, {out}, got {groups!r}")
    if inputs == 0 or out == 0 or 0 in kernel:
        raise ValueError(f"weight must have sizes >= 1, got {tuple(weight.shape)}")
    if x.dim() not in (3, 4) or x.shape[-3] != inputs * groups:
        raise ValueError(
            f"x must have shape (N, {inputs * groups}, H, W) or ({inputs * groups}, H, W) for a weight "
            f"{tuple(weight.shape)} and groups={groups}, got {tuple(x.shape)}"
        )
    if 0 in x.shape[-2:]:
        raise ValueError(f"x must have one pixel or more, got {tuple(x.shape)}")
    if bias is not None and bias.shape != (out,):
        raise ValueError(f"bias must have shape ({out},), got {tuple(bias.shape)}")
    sizes = []
    for name, size, zeros, taps, step in zip(
        ("height", "width"),
        x.shape[-2:],
        (padding[0] + padding[2], padding[1] + padding[3]),
        kernel,
        dilation,
        strict=True,
    ):
        extent = step * (taps - 1) + 1
        if size + zeros < extent:
            raise ValueError(
                f"x must have a {name} of at least {extent - zeros} for {taps} taps at dilation {step} and {zeros} "
                f"zeros of padding, got {size}"
            )
        sizes.append(size + zeros - extent + 1)
    if sizes[0] * sizes[1] * max(out, 1) * max(x.shape[0], 1) >= MOST_NUMBERS:
        raise ValueError(
            f"padding must leave an output that memory can hold, got one of {sizes[0]} x {sizes[1]} pixels"
        )


def check_geometry(call: Call) -> None:
    """Checks a dispatched convolution: its numbers must describe places inside its tensors."""
    x, weight, (in_degrees, out_degrees) = call["x"], call["weight"], (call["in_degrees"], call["out_degrees"])
    taps, origin, padding, dilation, *_ = conv = ConvCall(*(call[name] for name in ConvCall._fields))
    count = weight.shape[2] * weight.shape[3]
    ordered = all(a < b for a, b in zip([-1, *taps], [*taps, count], strict=True))
    call.require(ordered, "taps", f"be ascending numbers in [0, {count})", taps)
    call.require(-1 <= origin < count, "origin_tap", f"lie in [-1, {count})", origin)
    has_rule = in_degrees is not None and out_degrees is not None
    call.require(has_rule is (origin >= 0), "origin_tap", "be -1 without both degrees, and a tap with them", origin)
    call.require(len(padding) == 4 and min(padding) >= 0, "padding", "be four numbers >= 0", padding)
    call.require(len(dilation) == 2 and min(dilation) >= 1, "dilation", "be two numbers >= 1", dilation)
    check_shapes(x, weight, call.arguments.get("bias"), padding, dilation, call["groups"])
    if "d_y" in call.arguments:
        *_, height, width = conv.output_shape(x, weight)
        size = (call.sizes["h"], call.sizes["w"])
        call.require(size == (height, width), "d_y", f"have {height} x {width} pixels", f"{size[0]} x {size[1]}")
        call.require(len(call["needs"]) == 3, "needs", "be three truth values", call["needs"])
        # Without an activation nothing is kept of the output.
        if call["activation"] != "identity":
            call.tensor("at", call.get_tensor("at"), ("N", "O", "h", "w"), "a")
