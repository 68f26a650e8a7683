"""Masked convolutions of every form, and what a mask means, pixel by pixel."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fastvae.ops.masked_conv2d import masked_conv2d
from tests.support.oracle import Problem


def color(channel: int, channels: int, num_colors: int, layout: str) -> int:
    return channel % num_colors if layout == "interleaved" else channel // (channels // num_colors)


def sees(mask_type: str, order: str, dy: int, dx: int, in_degree: int, out_degree: int) -> bool:
    """Whether an output of one degree sees the input of another, ``(dy, dx)`` from its own pixel."""
    if order == "reversed":
        dy, dx = -dy, -dx
    if mask_type == "vertical_A":
        return dy < 0
    if mask_type == "vertical_B":
        return dy <= 0
    if (dy, dx) == (0, 0):
        return in_degree < out_degree if mask_type == "A" else in_degree <= out_degree
    return dy < 0 or (dy == 0 and dx < 0)


@dataclass(frozen=True)
class Form:
    """A masked convolution but for its tensors."""

    inputs: int
    outputs: int
    kernel: tuple[int, int] = (3, 3)
    mask_type: str = "B"
    image: tuple[int, int] = (5, 6)
    batch: int = 2
    padding: Any = "same"
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    num_colors: int = 1
    color_layout: str = "contiguous"
    degrees: tuple[tuple[int, ...], tuple[int, ...]] | None = None
    origin: tuple[int, int] | None = None
    order: str = "raster"
    activation: str | None = None
    bias: bool = True
    channels_last: bool = False
    options: dict[str, Any] = field(init=False, repr=False, hash=False, compare=False)

    def __post_init__(self) -> None:
        ins, outs = self.degrees or (None, None)
        names = ("mask_type", "padding", "dilation", "groups", "num_colors", "color_layout", "origin", "order")
        options = {name: getattr(self, name) for name in (*names, "activation")}
        object.__setattr__(self, "options", options | {"in_degrees": ins, "out_degrees": outs})

    @property
    def origin_tap(self) -> tuple[int, int]:
        return self.origin or (self.kernel[0] // 2, self.kernel[1] // 2)

    def counts(self, o: int, i: int, ky: int, kx: int) -> bool:
        """Whether weight (o, i, ky, kx) counts, i among the inputs of the output's group."""
        i += o // (self.outputs // self.groups) * (self.inputs // self.groups)
        if self.degrees:
            in_degree, out_degree = self.degrees[0][i], self.degrees[1][o]
        else:
            in_degree = color(i, self.inputs, self.num_colors, self.color_layout)
            out_degree = color(o, self.outputs, self.num_colors, self.color_layout)
        row, column = self.origin_tap
        return sees(self.mask_type, self.order, ky - row, kx - column, in_degree, out_degree)

    def mask(self) -> Tensor:
        """By its definition, weight by weight."""
        shape = (self.outputs, self.inputs // self.groups, *self.kernel)
        entries = [self.counts(*at) for at in itertools.product(*map(range, shape))]
        return torch.tensor(entries).view(shape)

    def zeros(self) -> tuple[int, int]:
        """Zeros above and left of the image."""
        if self.padding == "same":
            return self.origin_tap[0] * self.dilation[0], self.origin_tap[1] * self.dilation[1]
        return (self.padding, self.padding) if isinstance(self.padding, int) else self.padding

    def tensors(self) -> list[Tensor]:
        """x, weight and, where wanted, bias, as leaves."""
        fan_in = self.inputs // self.groups * self.kernel[0] * self.kernel[1]
        x = torch.randn(self.batch, self.inputs, *self.image)
        if self.channels_last:
            x = x.contiguous(memory_format=torch.channels_last)
        made = [x, torch.randn(self.outputs, self.inputs // self.groups, *self.kernel) / fan_in**0.5]
        if self.bias:
            made.append(0.5 * torch.randn(self.outputs))
        return [t.requires_grad_() for t in made]

    def call(self, impl: str, tensors: Sequence[Tensor]) -> Tensor:
        return masked_conv2d(*tensors, **self.options, impl=impl)

    def problem(self) -> Problem:
        return Problem(lambda impl, p: (self.call(impl, p),), self.tensors())


def by_definition(form: Form, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The convolution without its activation, term by term, of one image (inputs, H, W)."""
    (top, left), (step_y, step_x) = form.zeros(), form.dilation
    if form.padding == "same":
        height, width = form.image
    else:
        height = form.image[0] + 2 * top - step_y * (form.kernel[0] - 1)
        width = form.image[1] + 2 * left - step_x * (form.kernel[1] - 1)
    y = torch.zeros(form.outputs, height, width, dtype=x.dtype)
    group_in, group_out = form.inputs // form.groups, form.outputs // form.groups
    for o, h, w in itertools.product(range(form.outputs), range(height), range(width)):
        total = 0.0 if bias is None else bias[o].item()
        for i, ky, kx in itertools.product(range(group_in), *map(range, form.kernel)):
            row, column = h - top + ky * step_y, w - left + kx * step_x
            if 0 <= row < form.image[0] and 0 <= column < form.image[1] and form.counts(o, i, ky, kx):
                total += weight[o, i, ky, kx].item() * x[o // group_out * group_in + i, row, column].item()
        y[o, h, w] = total
    return y


# Every form, and why.
FORMS = {
    "A": Form(1, 3, (5, 5), "A"),  # a first layer
    "B": Form(4, 5, (3, 3), "B"),
    "A, colours": Form(3, 6, (3, 3), "A", num_colors=3),
    "B, colours": Form(6, 9, (3, 3), "B", num_colors=3),
    "A, interleaved": Form(6, 9, (3, 3), "A", num_colors=3, color_layout="interleaved"),
    "B, interleaved": Form(6, 3, (3, 3), "B", num_colors=3, color_layout="interleaved"),
    "vertical A": Form(3, 4, (3, 5), "vertical_A"),
    "vertical B": Form(3, 4, (3, 3), "vertical_B", num_colors=3),  # colours do not count
    "A, reversed": Form(3, 4, (3, 3), "A", order="reversed"),
    "B, reversed": Form(3, 3, (3, 3), "B", order="reversed", num_colors=3),
    "vertical A, reversed": Form(2, 3, (5, 3), "vertical_A", order="reversed"),
    "down-shifted": Form(3, 4, (2, 3), "vertical_B", origin=(1, 1)),
    "down-right-shifted": Form(3, 4, (2, 2), "B", origin=(1, 1)),
    "off-centre": Form(3, 4, (3, 4), "B", origin=(0, 3)),
    "degrees": Form(4, 5, (3, 3), "A", degrees=((3, 1, 2, 1), (0, 1, 2, 3, 9)), order="reversed"),
    "degrees, B": Form(4, 5, (3, 3), "B", degrees=((3, 1, 2, 1), (0, 1, 2, 3, -9))),
    "groups": Form(6, 4, (3, 3), "B", groups=2),
    "groups, colours": Form(12, 6, (3, 3), "A", groups=2, num_colors=3, color_layout="interleaved"),
    "depthwise": Form(4, 8, (3, 3), "A", groups=4),
    "dilation": Form(3, 4, (3, 3), "B", dilation=(2, 1), image=(7, 6)),
    "dilation, even": Form(3, 4, (2, 3), "vertical_B", origin=(1, 2), dilation=(2, 2)),
    "no padding": Form(3, 4, (3, 3), "B", padding=0),
    "padding": Form(3, 4, (3, 3), "A", padding=(2, 1), num_colors=1),
    "more padding than kernel": Form(2, 3, (3, 3), "B", padding=4),
    "one pixel": Form(3, 4, (3, 3), "B", image=(1, 1)),
    "as small as its kernel": Form(2, 3, (3, 5), "B", image=(3, 5), padding=0),
    "1x1 B, colours": Form(6, 6, (1, 1), "B", num_colors=3),
    "1x1 A, colours": Form(6, 6, (1, 1), "A", num_colors=3),
    "1x1 A": Form(3, 4, (1, 1), "A"),  # nothing counts
    "horizontal": Form(3, 4, (1, 5), "A"),
    "no bias": Form(3, 4, (3, 3), "B", bias=False),
    "channels last": Form(5, 7, (3, 3), "B", channels_last=True),
    "no images": Form(3, 4, (3, 3), "B", batch=0),
    "wide": Form(33, 35, (3, 3), "B", image=(4, 5)),  # several vectors; the last is ragged
}
