"""What the op and the layer of masked convolutions share: structure, degrees and padding out of what users pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..conv_structure import ConvStructure, check_colors, colors_of, pair
from ._network import check_degrees


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


_made_colors: dict[Any, Tensor] = {}


def _colors(name: str, channels: int, num_colors: int, color_layout: str, shift: int, device: torch.device) -> Tensor:
    """Colours as degrees; made once for each device, except while a compiler or a dispatch mode looks on."""

    def make() -> Tensor:
        colors = colors_of(name, channels, num_colors, color_layout)
        return torch.tensor([color + shift for color in colors], device=device)

    # What a mode makes, fake tensors for one, is of no use outside it, nor is what was made outside within.
    if torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack():
        return make()
    key = (channels, num_colors, color_layout, shift, str(device))
    if key not in _made_colors:
        # What is made in inference mode could not be saved for a backward pass later on.
        with torch.inference_mode(False):
            _made_colors[key] = make()
    return _made_colors[key]


def lowered_degrees(
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
        return (
            _colors("in_channels", in_channels, num_colors, color_layout, 0, device),
            _colors("out_channels", out_channels, num_colors, color_layout, shift, device),
        )
    like = torch.empty(0, device=device)
    ins, outs = (
        check_degrees(name, d if isinstance(d, Tensor) else torch.tensor(d, device=device), count, like)
        for name, d, count in (
            ("in_degrees", in_degrees, in_channels),
            ("out_degrees", out_degrees, out_channels),
        )
    )
    return ins, outs + shift if shift else outs


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
    has_rule = num_colors > 1 or in_degrees is not None
    return ConvStructure(kernel_size, mask_type, origin, order, has_rule)


def check_shapes(
    x: Tensor, weight: Tensor, bias: Tensor | None, padding: Sequence[int], dilation: Sequence[int], groups: int
) -> None:
    out, inputs, *kernel = weight.shape
    if not isinstance(groups, int) or groups < 1 or out % groups:
        raise ValueError(f"groups must be >= 1 and divide the outputs of weight, {out}, got {groups!r}")
    if inputs == 0 or out == 0 or 0 in kernel:
        raise ValueError(f"weight must have sizes >= 1, got {tuple(weight.shape)}")
    if x.dim() not in (3, 4) or x.shape[-3] != inputs * groups:
        raise ValueError(
            f"x must have shape (N, {inputs * groups}, H, W) or ({inputs * groups}, H, W) for a weight "
            f"{tuple(weight.shape)} and groups={groups}, got {tuple(x.shape)}"
        )
    if bias is not None and bias.shape != (out,):
        raise ValueError(f"bias must have shape ({out},), got {tuple(bias.shape)}")
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
