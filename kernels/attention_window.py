"""Windows on images: what a grid of Gaussian filters reads and writes, and the gradient of its five numbers.

The gradient of what is read is written, and that of what is written is read, by the same kernels. Pixels and points are
counted from 0 here; the pixels of a filter from its nearest one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._launch import AotCase, Plan, by_shape, compute_dtype, meta
from ._tiles import ceil_div, next_power_of_2
from ._vecmath import exp

_LEAST_LOG_VARIANCE = tl.constexpr(-60.0)
# Numbers of a program's tile of filters, and those of all tiles that a warp holds.
_FILTERS, _WARP = 512, 128


class _Tile(NamedTuple):
    points: int
    rows: int
    columns: int
    warps: int


@by_shape
def _tile(points: int, height: int, width: int, dtype: torch.dtype) -> _Tile:
    block = next_power_of_2(points)
    columns = min(next_power_of_2(width), max(_FILTERS // block, 16))
    image = 1024 if block <= 2 and dtype is not torch.float64 else 512
    rows = min(next_power_of_2(height), max(image // columns, 1))
    return _Tile(block, rows, columns, min(max(max(rows, block) * columns // _WARP, 1), 8))


@triton.jit
def _load_grid(window_ptr, points, height, width, dtype: tl.constexpr):
    """Centre of the columns and of the rows, distance of points, and inverse variance."""
    centre_x = 0.5 * tl.cast(width + 1, dtype) * (tl.load(window_ptr).to(dtype) + 1.0) - 1.0
    centre_y = 0.5 * tl.cast(height + 1, dtype) * (tl.load(window_ptr + 1).to(dtype) + 1.0) - 1.0
    log_variance = tl.load(window_ptr + 2).to(dtype)
    # NaN stays NaN.
    precision = exp(-tl.where(log_variance < _LEAST_LOG_VARIANCE, _LEAST_LOG_VARIANCE, log_variance), tl.float32)
    unit = tl.cast(tl.maximum(height, width) - 1, dtype) / tl.cast(tl.maximum(points - 1, 1), dtype)
    stride = unit * exp(tl.load(window_ptr + 3).to(dtype), tl.float32)
    return centre_x, centre_y, stride, precision


@triton.jit
def _load_gain(window_ptr, INVERSE: tl.constexpr, dtype: tl.constexpr):
    log_gain = tl.load(window_ptr + 4).to(dtype)
    return exp(-log_gain if INVERSE else log_gain, tl.float32)


@triton.jit
def _place(n, points, dtype: tl.constexpr):
    """Of point n, in distances of points from the centre."""
    return tl.cast(n, dtype) - 0.5 * tl.cast(points - 1, dtype)


@triton.jit
def _locate(n, centre, stride, points, size, dtype: tl.constexpr):
    """The nearest pixel of point n, and how far the point is from it."""
    mu = centre + _place(n, points, dtype) * stride
    nearest = tl.floor(tl.minimum(tl.maximum(mu, 0.0), tl.cast(size - 1, dtype)) + 0.5)
    return nearest, mu - nearest


@triton.jit
def _weigh(pixel, nearest, offset, precision, size, dtype: tl.constexpr):
    """Weights of pixels that are not normalised, and the factors of their gradients to mu and to the variance."""
    inside = pixel < size
    # Pixels outside may be nearer, and their weights infinite.
    d = tl.where(inside, pixel.to(dtype) - nearest, 0.0)
    square = d * (d - 2.0 * offset)
    return tl.where(inside, exp(-0.5 * precision * square, tl.float32), 0.0), d, square


@triton.jit
def _moments(nearest, offset, precision, size, zero, BLOCK: tl.constexpr, dtype: tl.constexpr):
    """Of one filter: the sum of its weights, and the means of both factors. `zero` has the form of `nearest`."""
    total, linear, squares = zero, zero, zero
    for start in range(0, size, BLOCK):
        weight, d, square = _weigh(start + tl.arange(0, BLOCK), nearest, offset, precision, size, dtype)
        total += tl.sum(weight, 0)
        linear += tl.sum(weight * d, 0)
        squares += tl.sum(weight * square, 0)
    return total, linear / total, squares / total


@triton.jit
def _column_moments(nearest, offset, precision, size, BLOCK_P: tl.constexpr, BLOCK: tl.constexpr, dtype: tl.constexpr):
    """The same of BLOCK_P filters."""
    total = tl.zeros((BLOCK_P,), dtype)
    linear, squares = total, total
    for start in range(0, size, BLOCK):
        pixel = start + tl.arange(0, BLOCK)[None, :]
        weight, d, square = _weigh(pixel, nearest[:, None], offset[:, None], precision, size, dtype)
        total += tl.sum(weight, 1)
        linear += tl.sum(weight * d, 1)
        squares += tl.sum(weight * square, 1)
    return total, linear / total, squares / total


@triton.jit
def _own_row(x_ptr, other_ptr, points, size, HAS_OTHER: tl.constexpr):
    """A program's row of points, its window, and its image of `size` numbers. Images of a window follow each other."""
    n = tl.program_id(0) % points
    place = (tl.program_id(0) // points).to(tl.int64)
    m = place // (1 + HAS_OTHER)
    image_ptr = x_ptr
    if HAS_OTHER:
        if place % 2 == 1:
            image_ptr = other_ptr
    return n, m, image_ptr + m * size


@triton.jit
def _attention_read_fwd_kernel(
    patches_ptr, x_ptr, other_ptr, window_ptr, points, height, width, stride_window,
    HAS_OTHER: tl.constexpr, INVERSE: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_W: tl.constexpr,
):  # fmt: skip
    """One program owns a row of points of one window on one image.

    patch[n, :] = gain F_Y[n] x F_X^T; INVERSE divides by the gain.
    """
    out_dtype: tl.constexpr = patches_ptr.dtype.element_ty
    dtype: tl.constexpr = tl.float64 if out_dtype == tl.float64 else tl.float32
    n, m, image_ptr = _own_row(x_ptr, other_ptr, points, height * width, HAS_OTHER)
    centre_x, centre_y, stride, precision = _load_grid(window_ptr + m * stride_window, points, height, width, dtype)
    column_point = tl.arange(0, BLOCK_P)
    nearest_y, offset_y = _locate(n, centre_y, stride, points, height, dtype)
    nearest_x, offset_x = _locate(column_point, centre_x, stride, points, width, dtype)
    total_y, _linear_y, _squares_y = _moments(
        nearest_y, offset_y, precision, height, tl.full((), 0.0, dtype), BLOCK_H, dtype
    )
    total_x, _linear_x, _squares_x = _column_moments(nearest_x, offset_x, precision, width, BLOCK_P, BLOCK_W, dtype)
    found = tl.zeros((BLOCK_P,), dtype)
    for start in range(0, width, BLOCK_W):
        column = start + tl.arange(0, BLOCK_W)
        line = tl.zeros((BLOCK_W,), dtype)
        for first in range(0, height, BLOCK_H):
            row = first + tl.arange(0, BLOCK_H)
            inside = (row < height)[:, None] & (column < width)[None, :]
            tile = tl.load(image_ptr + row[:, None] * width + column[None, :], inside, 0.0).to(dtype)
            weight, _d_y, _square_y = _weigh(row, nearest_y, offset_y, precision, height, dtype)
            line += tl.sum(weight[:, None] * tile, 0)
        weights, _d_x, _square_x = _weigh(
            column[None, :], nearest_x[:, None], offset_x[:, None], precision, width, dtype
        )
        found += tl.sum(weights * line[None, :], 1)
    found *= _load_gain(window_ptr + m * stride_window, INVERSE, dtype) / (total_y * total_x)
    patch_ptr = patches_ptr + tl.program_id(0).to(tl.int64) * points
    tl.store(patch_ptr + column_point, found.to(out_dtype), column_point < points)


@triton.jit
def _attention_write_fwd_kernel(
    image_ptr, patches_ptr, window_ptr, points, height, width, stride_window, images, k,
    INVERSE: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_W: tl.constexpr,
):  # fmt: skip
    """One program owns a tile of one image.

    image = F_Y^T patch F_X gain of patch k of `images`; INVERSE divides by the gain.
    """
    out_dtype: tl.constexpr = image_ptr.dtype.element_ty
    dtype: tl.constexpr = tl.float64 if out_dtype == tl.float64 else tl.float32
    row_blocks, column_blocks = tl.cdiv(height, BLOCK_H), tl.cdiv(width, BLOCK_W)
    block = tl.program_id(0) % (row_blocks * column_blocks)
    m = (tl.program_id(0) // (row_blocks * column_blocks)).to(tl.int64)
    centre_x, centre_y, stride, precision = _load_grid(window_ptr + m * stride_window, points, height, width, dtype)
    row = block // column_blocks * BLOCK_H + tl.arange(0, BLOCK_H)
    column = block % column_blocks * BLOCK_W + tl.arange(0, BLOCK_W)
    column_point = tl.arange(0, BLOCK_P)
    nearest_x, offset_x = _locate(column_point, centre_x, stride, points, width, dtype)
    total_x, _linear_x, _squares_x = _column_moments(nearest_x, offset_x, precision, width, BLOCK_P, BLOCK_W, dtype)
    weights, _d_x, _square_x = _weigh(column[None, :], nearest_x[:, None], offset_x[:, None], precision, width, dtype)
    weights = weights * (_load_gain(window_ptr + m * stride_window, INVERSE, dtype) / total_x)[:, None]
    image = tl.zeros((BLOCK_H, BLOCK_W), dtype)
    patch_ptr = patches_ptr + (m * images + k) * points * points + column_point
    for n in range(0, points):
        patch = tl.load(patch_ptr + n * points, column_point < points, 0.0).to(dtype)
        nearest_y, offset_y = _locate(n, centre_y, stride, points, height, dtype)
        total_y, _linear_y, _squares_y = _moments(
            nearest_y, offset_y, precision, height, tl.full((), 0.0, dtype), BLOCK_H, dtype
        )
        weight, _d_y, _square_y = _weigh(row, nearest_y, offset_y, precision, height, dtype)
        image += (weight * (1.0 / total_y))[:, None] * tl.sum(patch[:, None] * weights, 0)[None, :]
    inside = (row < height)[:, None] & (column < width)[None, :]
    at = m * height * width + row[:, None] * width + column[None, :]
    tl.store(image_ptr + at, image.to(out_dtype), inside)


@triton.jit
def _attention_window_bwd_kernel(
    parts_ptr, patches_ptr, x_ptr, other_ptr, window_ptr, points, height, width, stride_window,
    HAS_OTHER: tl.constexpr, INVERSE: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_W: tl.constexpr,
):  # fmt: skip
    """One program owns a row of points of one window on one image.

    Its part of the gradient of the sum over images of gain <patch, F_Y x F_X^T>; INVERSE divides by the gain. Of what
    is read, the patches are upstream gradients; of what is written, the image is one.
    """
    dtype: tl.constexpr = parts_ptr.dtype.element_ty
    n, m, image_ptr = _own_row(x_ptr, other_ptr, points, height * width, HAS_OTHER)
    window_ptr += m * stride_window
    centre_x, centre_y, stride, precision = _load_grid(window_ptr, points, height, width, dtype)
    column_point = tl.arange(0, BLOCK_P)
    there = column_point < points
    nearest_y, offset_y = _locate(n, centre_y, stride, points, height, dtype)
    nearest_x, offset_x = _locate(column_point, centre_x, stride, points, width, dtype)
    zero = tl.full((), 0.0, dtype)
    total_y, linear_y, squares_y = _moments(nearest_y, offset_y, precision, height, zero, BLOCK_H, dtype)
    total_x, linear_x, squares_x = _column_moments(nearest_x, offset_x, precision, width, BLOCK_P, BLOCK_W, dtype)
    inverse_y = 1.0 / total_y
    patch_ptr = patches_ptr + tl.program_id(0).to(tl.int64) * points
    patch = tl.load(patch_ptr + column_point, there, 0.0).to(dtype) * (1.0 / total_x)
    sum_y, d_linear_y, d_squares_y = zero, zero, zero
    sum_x = tl.zeros((BLOCK_P,), dtype)
    d_linear_x, d_squares_x = sum_x, sum_x
    for start in range(0, width, BLOCK_W):
        column = start + tl.arange(0, BLOCK_W)
        weights, d_x, square_x = _weigh(column[None, :], nearest_x[:, None], offset_x[:, None], precision, width, dtype)
        weights = patch[:, None] * weights
        spread = tl.sum(weights, 0) * inverse_y
        line = tl.zeros((BLOCK_W,), dtype)
        for first in range(0, height, BLOCK_H):
            row = first + tl.arange(0, BLOCK_H)
            inside = (row < height)[:, None] & (column < width)[None, :]
            tile = tl.load(image_ptr + row[:, None] * width + column[None, :], inside, 0.0).to(dtype)
            weight, d_y, square_y = _weigh(row, nearest_y, offset_y, precision, height, dtype)
            line += tl.sum(weight[:, None] * tile, 0)
            part = weight * tl.sum(tile * spread[None, :], 1)
            sum_y += tl.sum(part, 0)
            d_linear_y += tl.sum(part * d_y, 0)
            d_squares_y += tl.sum(part * square_y, 0)
        parts = weights * (line * inverse_y)[None, :]
        sum_x += tl.sum(parts, 1)
        d_linear_x += tl.sum(parts * d_x, 1)
        d_squares_x += tl.sum(parts * square_x, 1)
    d_mu_x = tl.where(there, precision * (d_linear_x - sum_x * linear_x), 0.0)
    d_mu_y = precision * (d_linear_y - sum_y * linear_y)
    d_stride = tl.sum(d_mu_x * _place(column_point, points, dtype), 0) + d_mu_y * _place(n, points, dtype)
    d_variance = tl.sum(tl.where(there, d_squares_x - sum_x * squares_x, 0.0), 0) + d_squares_y - sum_y * squares_y
    has_variance = tl.load(window_ptr + 2).to(dtype) >= _LEAST_LOG_VARIANCE
    factor = _load_gain(window_ptr, INVERSE, dtype)
    parts_ptr += tl.program_id(0).to(tl.int64) * 5
    tl.store(parts_ptr, factor * 0.5 * tl.cast(width + 1, dtype) * tl.sum(d_mu_x, 0))
    tl.store(parts_ptr + 1, factor * 0.5 * tl.cast(height + 1, dtype) * d_mu_y)
    tl.store(parts_ptr + 2, tl.where(has_variance, factor * 0.5 * precision * d_variance, 0.0))
    tl.store(parts_ptr + 3, factor * stride * d_stride)
    tl.store(parts_ptr + 4, -factor * sum_y if INVERSE else factor * sum_y)


def _read(x: Tensor, other: Tensor | None, window: Tensor, points: int, *, inverse: bool) -> Tensor:
    m, height, width = x.shape
    images = 1 if other is None else 2
    patches = x.new_empty((m, images, points, points))
    dtypes, sizes = (x.dtype, window.dtype), (points, height, width)
    plan = _plan(x.get_device(), dtypes, False, m, images, sizes, window.stride(0), inverse)
    plan.launch(patches, x, other, window)
    return patches


@by_shape
def _plan(
    device: int,
    dtypes: tuple[torch.dtype, torch.dtype],
    of_gradient: bool,
    m: int,
    images: int,
    sizes: tuple[int, int, int],
    stride_window: int,
    inverse: bool,
) -> Plan:
    """Of the kernels whose programs own a row of points; `dtypes` are those of images and of windows."""
    kernel = _attention_window_bwd_kernel if of_gradient else _attention_read_fwd_kernel
    tile = _tile(*sizes, dtypes[1])
    return Plan(
        device, kernel, m * images * sizes[0], (*sizes, stride_window), HAS_OTHER=images == 2, INVERSE=inverse,
        BLOCK_P=tile.points, BLOCK_H=tile.rows, BLOCK_W=tile.columns, num_warps=tile.warps,
    )  # fmt: skip


def _write(patches: Tensor, k: int, window: Tensor, height: int, width: int, *, inverse: bool) -> Tensor:
    """The images (M, H, W) of patch k of each window, patches (M, K, N, N)."""
    m, images, points, _ = patches.shape
    image = patches.new_empty((m, height, width))
    dtypes, sizes = (patches.dtype, window.dtype), (points, height, width)
    plan = _plan_write(patches.get_device(), dtypes, m, sizes, window.stride(0), images, k, inverse)
    plan.launch(image, patches, window)
    return image


@by_shape
def _plan_write(
    device: int,
    dtypes: tuple[torch.dtype, torch.dtype],
    m: int,
    sizes: tuple[int, int, int],
    stride_window: int,
    images: int,
    k: int,
    inverse: bool,
) -> Plan:
    _, height, width = sizes
    tile = _tile(*sizes, dtypes[1])
    return Plan(
        device, _attention_write_fwd_kernel, m * ceil_div(height, tile.rows) * ceil_div(width, tile.columns),
        (*sizes, stride_window, images, k), INVERSE=inverse,
        BLOCK_P=tile.points, BLOCK_H=tile.rows, BLOCK_W=tile.columns, num_warps=tile.warps,
    )  # fmt: skip


def _window_gradient(patches: Tensor, x: Tensor, other: Tensor | None, window: Tensor, *, inverse: bool) -> Tensor:
    m, height, width = x.shape
    images, points = patches.shape[1:3]
    parts = window.new_empty((m, images * points, window.shape[1]), dtype=compute_dtype(window.dtype))
    dtypes, sizes = (x.dtype, window.dtype), (points, height, width)
    plan = _plan(x.get_device(), dtypes, True, m, images, sizes, window.stride(0), inverse)
    plan.launch(parts, patches, x, other, window)
    return parts.sum(1).to(window.dtype)


def attention_read_fwd(x: Tensor, other: Tensor | None, window: Tensor, points: int) -> Tensor:
    """Patches (M, K, N, N) of one or two contiguous images (M, H, W); windows (M, 5) have contiguous rows."""
    return _read(x, other, window, points, inverse=False)


def attention_read_bwd(
    d_patches: Tensor, x: Tensor, other: Tensor | None, window: Tensor, needs: Sequence[bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """The gradients of the images and of the windows that are needed; d_patches is contiguous."""
    height, width = x.shape[1:]
    d_x = _write(d_patches, 0, window, height, width, inverse=False) if needs[0] else None
    d_other = None
    if other is not None and needs[1]:
        d_other = _write(d_patches, 1, window, height, width, inverse=False)
    return d_x, d_other, _window_gradient(d_patches, x, other, window, inverse=False) if needs[2] else None


def attention_write_fwd(patch: Tensor, window: Tensor, height: int, width: int) -> Tensor:
    """Images (M, height, width) of contiguous patches (M, N, N); windows (M, 5) have contiguous rows."""
    return _write(patch.unsqueeze(1), 0, window, height, width, inverse=True)


def attention_write_bwd(
    d_image: Tensor, patch: Tensor, window: Tensor, needs: Sequence[bool]
) -> tuple[Tensor | None, Tensor | None]:
    """The gradients of the patches and of the windows that are needed; d_image is contiguous."""
    d_patch = _read(d_image, None, window, patch.shape[-1], inverse=True).view(patch.shape) if needs[0] else None
    patches = patch.unsqueeze(1)
    return d_patch, _window_gradient(patches, d_image, None, window, inverse=True) if needs[1] else None


def aot_cases() -> list[AotCase]:
    cases = []
    m = 100
    for dtype, points, height, width in (
        (torch.float32, 2, 28, 28),
        (torch.float32, 5, 28, 28),
        (torch.float32, 12, 60, 200),
        (torch.bfloat16, 5, 28, 28),
        (torch.float64, 5, 28, 28),
    ):
        name = f"{str(dtype)[6:]}, N = {points}, {height} x {width}"
        image, patch = meta(m, height, width, dtype=dtype), meta(m, points, points, dtype=dtype)
        patches, window = meta(m, 2, points, points, dtype=dtype), meta(m, 5, dtype=dtype)
        cases += [
            AotCase(name, attention_read_fwd, (image, image, window, points)),
            AotCase(name, attention_read_bwd, (patches, image, image, window, [False, True, True])),
            AotCase(name, attention_write_fwd, (patch, window, height, width)),
            AotCase(name, attention_write_bwd, (image, patch, window, [True, True])),
        ]
    return cases
