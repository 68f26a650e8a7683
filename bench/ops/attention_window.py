"""Windows on images: the reader of two images and the writer of one, as DRAW has them on 28 x 28 pixels.

The reference is the usual code: a softmax for each axis' filters, and two batched products for each image.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import gaussian
from ..task import Case, Function, Inputs, Shape, Task, Work

# Points of a window's side. Rows of the shapes are images, columns their height and width.
READ_POINTS, WRITE_POINTS = 2, 5
_SHAPES = {"cpu": (Shape(100, 28),), "cuda": (Shape(100, 28), Shape(4096, 28))}


def _windows(case: Case, options: dict[str, Any]) -> Tensor:
    return torch.randn(case.shape.rows, 5, **options) * 0.3


def _read_inputs(case: Case, generator: torch.Generator) -> Inputs:
    options, side = gaussian.options(case, generator), case.shape.columns
    x, other = (torch.randn(case.shape.rows, side, side, **options) for _ in range(2))
    return x, other, _windows(case, options)


def _write_inputs(case: Case, generator: torch.Generator) -> Inputs:
    options = gaussian.options(case, generator)
    return torch.randn(case.shape.rows, WRITE_POINTS, WRITE_POINTS, **options), _windows(case, options)


def _filter_axis(centre: Tensor, stride: Tensor, variance: Tensor, points: int, size: int) -> Tensor:
    options: dict[str, Any] = {"dtype": centre.dtype, "device": centre.device}
    mu = centre[:, None] + (torch.arange(points, **options) - 0.5 * (points - 1)) * stride[:, None]
    distance = torch.arange(1, size + 1, **options) - mu[..., None]
    return torch.softmax(distance.square() / (-2.0 * variance[:, None, None]), -1)


def _filter_both(window: Tensor, points: int, side: int) -> tuple[Tensor, Tensor, Tensor]:
    g_x, g_y, log_variance, log_stride, log_gain = window.unbind(-1)
    stride, variance = (side - 1) / (points - 1) * log_stride.exp(), log_variance.exp()
    filter_y, filter_x = (_filter_axis((side + 1) / 2 * (g + 1), stride, variance, points, side) for g in (g_y, g_x))
    return filter_y, filter_x, log_gain.exp()[:, None, None]


def _read(x: Tensor, other: Tensor, window: Tensor) -> Tensor:
    filter_y, filter_x, gain = _filter_both(window, READ_POINTS, x.shape[-1])
    patches = [torch.bmm(torch.bmm(filter_y, image), filter_x.mT) for image in (x, other)]
    return gain[:, None] * torch.stack(patches, 1)


def _write(case: Case) -> Function:
    side = case.shape.columns

    def run(patch: Tensor, window: Tensor) -> Tensor:
        filter_y, filter_x, gain = _filter_both(window, WRITE_POINTS, side)
        return torch.bmm(torch.bmm(filter_y.mT, patch / gain), filter_x)

    return run


def _fastvae_read(case: Case, impl: str) -> Function:
    from fastvae.ops.attention_window import attention_read

    return lambda x, other, window: attention_read((x, other), window, READ_POINTS, impl=impl)


def _fastvae_write(case: Case, impl: str) -> Function:
    from fastvae.ops.attention_window import attention_write

    size = (case.shape.columns, case.shape.columns)
    return lambda patch, window: attention_write(patch, window, size, impl=impl)


def _check_read(case: Case, inputs: Inputs, outputs: Any) -> str | None:
    rows = gaussian.CHECKED_ROWS
    expected = _read(*(t[:rows].detach().double() for t in inputs))
    return gaussian.describe_difference(case, "patches", outputs[:rows], expected)


def _check_write(case: Case, inputs: Inputs, outputs: Any) -> str | None:
    rows = gaussian.CHECKED_ROWS
    expected = _write(case)(*(t[:rows].detach().double() for t in inputs))
    return gaussian.describe_difference(case, "image", outputs[:rows], expected)


def _work(case: Case, points: int, images: int, patches_in: bool) -> Work:
    rows, side = case.shape.rows, case.shape.columns
    of_images, of_patches = images * rows * side**2, images * rows * points**2
    filters = 2 * rows * points * side
    read, written = (of_patches, of_images) if patches_in else (of_images, of_patches)
    # Images or patches, and windows -> the others; six operations for each weight of a filter
    products = 2 * images * rows * points * side * (side + points)
    if case.mode == "fwd":
        return Work((read + 5 * rows + written) * case.itemsize, products + 6 * filters)
    # Then the same and the upstream gradients -> the gradients of both; the products for both filters and the input
    return Work((3 * read + 15 * rows + 2 * written) * case.itemsize, 4 * products + 18 * filters)


TASKS = (
    Task(
        op="attention_window",
        entry="read",
        inputs=_read_inputs,
        fastvae=_fastvae_read,
        reference=lambda case: _read,
        work=lambda case: _work(case, READ_POINTS, 2, False),
        check=_check_read,
        shapes=_SHAPES,
        sampled=False,
    ),
    Task(
        op="attention_window",
        entry="write",
        inputs=_write_inputs,
        fastvae=_fastvae_write,
        reference=_write,
        work=lambda case: _work(case, WRITE_POINTS, 1, True),
        check=_check_write,
        shapes=_SHAPES,
        sampled=False,
    ),
)
