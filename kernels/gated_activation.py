"""Gate of the channels' halves with conditioning, and its gradient."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._activations import activate, sigmoid
from ._division import divide, index_type, reciprocal
from ._launch import AotCase, Plan, by_shape, meta
from ._tiles import ceil_div, row_tile, vector_width
from ._vecmath import exp


@triton.jit
def _sum_at(x_at, condition_at, exists, mask, dtype: tl.constexpr, CONDITION: tl.constexpr):
    total = tl.load(x_at, mask, 0.0).to(dtype)
    if CONDITION == "row":
        total += tl.load(condition_at, exists, 0.0).to(dtype)
    elif CONDITION == "full":
        total += tl.load(condition_at, mask, 0.0).to(dtype)
    return total


@triton.jit
def _tanh_and_sigmoid(a, b, dtype: tl.constexpr):
    """t = tanh(a), s = sigmoid(b), 1 - t^2 and 1 - s for a result of `dtype`: one division for all.

    With u = e^(-2 |a|) and v = e^(-|b|): tanh(|a|) = (1 - u) / (1 + u), 1 - t^2 = 4 u / (1 + u)^2, sigmoid(|b|) =
    1 / (1 + v). Where 1 - u would cancel, tanh is Cephes' polynomial.
    """
    if a.dtype == tl.float64:
        t, s = activate(a, "tanh"), sigmoid(b)
        return t, s, 1.0 - t * t, 1.0 - s
    else:
        size = tl.abs(a)
        u, v = exp(-2.0 * size, dtype), exp(-tl.abs(b), dtype)
        both = 1.0 / ((1.0 + u) * (1.0 + v))
        square = a * a
        p = square * -5.70498872745e-3 + 2.06390887954e-2
        p = p * square - 5.37397155531e-2
        p = p * square + 1.33314422036e-1
        p = p * square - 3.33332819422e-1
        of_u, of_v = (1.0 + v) * both, (1.0 + u) * both
        t = (1.0 - u) * of_u
        t = tl.where(size < 0.625, p * (square * a) + a, tl.where(a < 0.0, -t, t))
        slope = tl.where(size < 0.625, 1.0 - t * t, 4.0 * u * of_u * of_u)
        return t, tl.where(b < 0.0, v, 1.0) * of_v, slope, tl.where(b < 0.0, 1.0, v) * of_v


@triton.jit
def _place(
    rest, rest_multiplier, rest_shift, blocks, blocks_multiplier, blocks_shift,
    INDEX: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """(row, image, row of the image, column) of this program's numbers."""
    row_block = divide(tl.program_id(0), blocks, blocks_multiplier, blocks_shift)
    row = row_block.to(INDEX) * BLOCK_N + tl.arange(0, BLOCK_N)[:, None]
    column = (tl.program_id(0) - row_block * blocks) * BLOCK_D + tl.arange(0, BLOCK_D)[None, :]
    image = divide(row, rest, rest_multiplier, rest_shift)
    return row, image.to(tl.int64), (row - image * rest).to(tl.int64), column


@triton.jit(do_not_specialize=["n_rows", "rest_multiplier", "rest_shift", "blocks_multiplier", "blocks_shift"])
def _gated_activation_fwd_kernel(
    y_ptr, x_ptr, condition_ptr, n_rows, D,
    rest, rest_multiplier, rest_shift, blocks, blocks_multiplier, blocks_shift, half_x, half_condition,
    stride_yn, stride_yr, stride_xn, stride_xr, stride_cn, stride_cr, stride_cd,
    KIND: tl.constexpr, CONDITION: tl.constexpr, INDEX: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """One program owns BLOCK_N rows, BLOCK_D columns; a row is a plane of an image, or a pixel's channels.

    y = tanh(a) sigmoid(b) or a sigmoid(b), a and b the halves of x + condition. The backward pass keeps the inputs.
    """
    out_dtype: tl.constexpr = y_ptr.dtype.element_ty
    dtype: tl.constexpr = tl.float64 if out_dtype == tl.float64 else tl.float32
    row, image, at, column = _place(
        rest, rest_multiplier, rest_shift, blocks, blocks_multiplier, blocks_shift, INDEX, BLOCK_N, BLOCK_D
    )
    exists = row < n_rows
    mask = exists & (column < D)
    x_at = x_ptr + image * stride_xn + at * stride_xr + column
    condition_at = condition_ptr
    second = condition_ptr
    if CONDITION == "row":
        condition_at = condition_ptr + image * stride_cn + at * stride_cr
        second = condition_at + half_condition
    elif CONDITION == "full":
        condition_at = condition_ptr + image * stride_cn + at * stride_cr + column * stride_cd
        second = condition_at + half_condition
    a = _sum_at(x_at, condition_at, exists, mask, dtype, CONDITION)
    b = _sum_at(x_at + half_x, second, exists, mask, dtype, CONDITION)
    if KIND == "tanh":
        a, s, _, _ = _tanh_and_sigmoid(a, b, out_dtype)
    else:
        s = sigmoid(b)
    tl.store(y_ptr + image * stride_yn + at * stride_yr + column, (a * s).to(out_dtype), mask)


@triton.jit(do_not_specialize=["n_rows", "rest_multiplier", "rest_shift", "blocks_multiplier", "blocks_shift"])
def _gated_activation_bwd_kernel(
    d_x_ptr, d_y_ptr, x_ptr, condition_ptr, n_rows, D,
    rest, rest_multiplier, rest_shift, blocks, blocks_multiplier, blocks_shift, half_d_x, half_x, half_condition,
    stride_dn, stride_dr, stride_gn, stride_gr, stride_xn, stride_xr, stride_cn, stride_cr, stride_cd,
    KIND: tl.constexpr, CONDITION: tl.constexpr, INDEX: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """One program owns BLOCK_N rows, BLOCK_D columns; a row is a plane of an image, or a pixel's channels.

    With t = tanh(a), s = sigmoid(b): d_a = d_y s (1 - t^2), d_b = d_y t s (1 - s); linear: d_a = d_y s,
    d_b = d_y a s (1 - s).
    """
    out_dtype: tl.constexpr = d_x_ptr.dtype.element_ty
    dtype: tl.constexpr = tl.float64 if out_dtype == tl.float64 else tl.float32
    row, image, at, column = _place(
        rest, rest_multiplier, rest_shift, blocks, blocks_multiplier, blocks_shift, INDEX, BLOCK_N, BLOCK_D
    )
    exists = row < n_rows
    mask = exists & (column < D)
    x_at = x_ptr + image * stride_xn + at * stride_xr + column
    condition_at = condition_ptr
    second = condition_ptr
    if CONDITION == "row":
        condition_at = condition_ptr + image * stride_cn + at * stride_cr
        second = condition_at + half_condition
    elif CONDITION == "full":
        condition_at = condition_ptr + image * stride_cn + at * stride_cr + column * stride_cd
        second = condition_at + half_condition
    a = _sum_at(x_at, condition_at, exists, mask, dtype, CONDITION)
    b = _sum_at(x_at + half_x, second, exists, mask, dtype, CONDITION)
    slope = 1.0
    if KIND == "tanh":
        a, s, slope, rest_of_s = _tanh_and_sigmoid(a, b, out_dtype)
    else:
        s = sigmoid(b)
        rest_of_s = 1.0 - s
    passed = tl.load(d_y_ptr + image * stride_gn + at * stride_gr + column, mask, 0.0).to(dtype) * s
    to = d_x_ptr + image * stride_dn + at * stride_dr + column
    tl.store(to, (passed * slope).to(out_dtype), mask)
    tl.store(to + half_d_x, (passed * a * rest_of_s).to(out_dtype), mask)


class _Rows(NamedTuple):
    """Images as rows: each image has `per_image` of them, of `length` contiguous numbers each."""

    by_pixel: bool
    per_image: int
    length: int

    @classmethod
    def of(cls, x: Tensor) -> _Rows:
        """The planes of images, or the pixels of channels-last images; x has 2F channels."""
        _, channels, height, width = x.shape
        if x.stride(1) == 1 and not x.is_contiguous():
            return cls(True, height * width, channels // 2)
        return cls(False, channels // 2, height * width)

    def lay_out(self, t: Tensor) -> Tensor:
        """t itself where its rows are contiguous."""
        steps = [t.stride(1)] if self.by_pixel else [t.stride(3)]
        uniform = t.shape[2] == 1 or t.stride(2) == t.shape[3] * t.stride(3)
        if steps == [1] and uniform:
            return t
        return t.contiguous(memory_format=torch.channels_last if self.by_pixel else torch.contiguous_format)

    def strides(self, t: Tensor) -> tuple[int, int]:
        """(between images, between the rows of an image)."""
        return t.stride(0), t.stride(3) if self.by_pixel else t.stride(1)

    def new(self, x: Tensor, channels: int) -> Tensor:
        n, _, height, width = x.shape
        if self.by_pixel:
            return x.new_empty((n, height, width, channels)).permute(0, 3, 1, 2)
        return x.new_empty((n, channels, height, width))


class _Condition(NamedTuple):
    """A condition as the kernels read it: how, from where, the offset of its second half, and its strides."""

    kind: str
    tensor: Tensor | None
    half: int
    strides: tuple[int, int, int]

    @classmethod
    def of(cls, rows: _Rows, condition: Tensor | None) -> _Condition:
        if condition is None:
            return cls("none", None, 0, (0, 0, 0))
        half = condition.shape[1] // 2
        if condition.shape[2:] == (1, 1):
            n, c = condition.stride()[:2]
            return cls(
                "full" if rows.by_pixel else "row", condition, half * c, (n, 0, c) if rows.by_pixel else (n, c, 0)
            )
        uniform = condition.shape[2] == 1 or condition.stride(2) == condition.shape[3] * condition.stride(3)
        condition = condition if uniform else condition.contiguous()
        n, c, _, pixel = condition.stride()
        return cls("full", condition, half * c, (n, pixel, c) if rows.by_pixel else (n, c, pixel))


@by_shape
def _plan(
    device: int,
    dtype: torch.dtype,
    is_backward: bool,
    images: int,
    rows: _Rows,
    halves: Sequence[int],
    strides: Sequence[int],
    kind: str,
    condition: str,
) -> Plan:
    """`halves` are the offsets of the second half of the channels, `strides` those of every tensor."""
    n, d = images * rows.per_image, rows.length
    tile = row_tile(n, d, vector_width(dtype, d))
    blocks = ceil_div(d, tile.columns)
    kernel = _gated_activation_bwd_kernel if is_backward else _gated_activation_fwd_kernel
    # What `_place` takes: rows of an image and blocks of a row, each with its reciprocal.
    numbers = rows.per_image, *reciprocal(rows.per_image), blocks, *reciprocal(blocks)
    return Plan(
        device, kernel, ceil_div(n, tile.rows) * blocks, (n, d, *numbers, *halves, *strides),
        KIND=kind, CONDITION=condition, INDEX=index_type(n), BLOCK_N=tile.rows, BLOCK_D=tile.columns,
        num_warps=tile.warps,
    )  # fmt: skip


def gated_activation_fwd(x: Tensor, condition: Tensor | None, kind: str) -> Tensor:
    """x (N, 2F, H, W) and condition (N, 2F, H, W), (N, 2F, 1, 1) or None to y (N, F, H, W), laid out as x."""
    rows = _Rows.of(x)
    x = rows.lay_out(x)
    y, added = rows.new(x, x.shape[1] // 2), _Condition.of(rows, condition)
    n, channels = x.shape[:2]
    halves, strides = (channels // 2 * x.stride(1), added.half), (*rows.strides(y), *rows.strides(x), *added.strides)
    plan = _plan(x.get_device(), x.dtype, False, n, rows, halves, strides, kind, added.kind)
    plan.launch(y, x, added.tensor)
    return y


def gated_activation_bwd(d_y: Tensor, x: Tensor, condition: Tensor | None, kind: str) -> Tensor:
    """The gradient of x, (N, 2F, H, W), laid out as x."""
    rows = _Rows.of(x)
    d_y, x = rows.lay_out(d_y), rows.lay_out(x)
    d_x, added = rows.new(x, x.shape[1]), _Condition.of(rows, condition)
    n, half = x.shape[0], x.shape[1] // 2
    halves = half * d_x.stride(1), half * x.stride(1), added.half
    strides = *rows.strides(d_x), *rows.strides(d_y), *rows.strides(x), *added.strides
    plan = _plan(x.get_device(), x.dtype, True, n, rows, halves, strides, kind, added.kind)
    plan.launch(d_x, d_y, x, added.tensor)
    return d_x


def aot_cases() -> list[AotCase]:
    cases = []
    for dtype, kind, condition in (
        (torch.float32, "tanh", "none"),
        (torch.float32, "linear", "vector"),
        (torch.bfloat16, "tanh", "vector"),
        (torch.bfloat16, "tanh", "map"),
        (torch.float64, "tanh", "vector"),
    ):
        for layout in (torch.contiguous_format, torch.channels_last):
            n, f, side = 16, 160, 32
            x, y = (meta(n, c, side, side, dtype=dtype).to(memory_format=layout) for c in (2 * f, f))
            vector, image = meta(n, 2 * f, 1, 1, dtype=dtype), x.clone(memory_format=layout)
            added = {"none": None, "vector": vector, "map": image}[condition]
            last = ", channels-last" if layout == torch.channels_last else ""
            name = f"{str(dtype)[6:]}, {kind}, condition {condition}{last}"
            cases += [
                AotCase(name, gated_activation_fwd, (x, added, kind)),
                AotCase(name, gated_activation_bwd, (y, x, added, kind)),
            ]
    return cases
