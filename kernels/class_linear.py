"""Sums of a row's, a class's and their own terms with an activation, and the gradients of the terms."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._activations import OF_PRE_ACTIVATION, activate, through
from ._launch import AotCase, Plan, by_shape, compute_dtype, meta
from ._tiles import ceil_div, next_power_of_2, row_stride, row_tile, vector_width, warp_size

# Rows of a program of the backward pass: one warp holds them in its registers, and adds them up without a barrier.
_ROWS = 8


@triton.jit(do_not_specialize=["n_rows"])
def _class_linear_fwd_kernel(
    y_ptr, pre_ptr, rows_ptr, cells_ptr, classes_ptr, n_rows, C, H, stride_rows, stride_classes,
    ACTIVATION: tl.constexpr, KEEP: tl.constexpr, HAS_ROWS: tl.constexpr, HAS_CELLS: tl.constexpr,
    HAS_CLASSES: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """One program owns BLOCK_N rows of one class, BLOCK_D columns.

    y[m, c] = act(rows[m] + cells[m, c] + classes[c]), of the terms that are there.
    The backward pass keeps y, or the activation's argument.
    """
    out_dtype: tl.constexpr = y_ptr.dtype.element_ty
    dtype: tl.constexpr = tl.float64 if out_dtype == tl.float64 else tl.float32
    column_blocks = tl.cdiv(H, BLOCK_D)
    block = tl.program_id(0) // column_blocks
    c = block % C
    row = (block // C).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)[:, None]
    column = (tl.program_id(0) % column_blocks) * BLOCK_D + tl.arange(0, BLOCK_D)[None, :]
    mask = (row < n_rows) & (column < H)
    place = (row * C + c) * H + column
    total = tl.zeros((BLOCK_N, BLOCK_D), dtype)
    if HAS_ROWS:
        total += tl.load(rows_ptr + row * stride_rows + column, mask, 0.0).to(dtype)
    if HAS_CELLS:
        total += tl.load(cells_ptr + place, mask, 0.0).to(dtype)
    if HAS_CLASSES:
        total += tl.load(classes_ptr + c * stride_classes + column, column < H, 0.0).to(dtype)
    if KEEP:
        tl.store(pre_ptr + place, total, mask)
    tl.store(y_ptr + place, activate(total, ACTIVATION).to(out_dtype), mask)


@triton.jit(do_not_specialize=["n_rows"])
def _class_linear_bwd_kernel(
    d_y_ptr, at_ptr, d_rows_ptr, d_cells_ptr, parts_ptr, n_rows, C, H,
    ACTIVATION: tl.constexpr, NEED_ROWS: tl.constexpr, NEED_CELLS: tl.constexpr, NEED_CLASSES: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """One program owns BLOCK_N rows, all their classes, BLOCK_D columns.

    d_cells = d_y act'(at), d_rows is its sum over classes; parts, (row blocks, C, H), are its sums over BLOCK_N rows.
    """
    out_dtype: tl.constexpr = d_y_ptr.dtype.element_ty
    dtype: tl.constexpr = tl.float64 if out_dtype == tl.float64 else tl.float32
    column_blocks = tl.cdiv(H, BLOCK_D)
    row_block = (tl.program_id(0) // column_blocks).to(tl.int64)
    row = row_block * BLOCK_N + tl.arange(0, BLOCK_N)[:, None]
    columns = (tl.program_id(0) % column_blocks) * BLOCK_D + tl.arange(0, BLOCK_D)
    column = columns[None, :]
    mask = (row < n_rows) & (column < H)
    total = tl.zeros((BLOCK_N, BLOCK_D), dtype)
    for c in range(0, C):
        place = (row * C + c) * H + column
        g = tl.load(d_y_ptr + place, mask, 0.0).to(dtype)
        if ACTIVATION != "identity":
            g = through(g, tl.load(at_ptr + place, mask, 0.0).to(dtype), ACTIVATION)
        if NEED_CELLS:
            tl.store(d_cells_ptr + place, g.to(out_dtype), mask)
        if NEED_ROWS:
            total += g
        if NEED_CLASSES:
            # What lies beyond the last row is 0, through an activation, too: its `at` is 0.
            tl.store(parts_ptr + (row_block * C + c) * H + columns, tl.sum(g, 0), columns < H)
    if NEED_ROWS:
        tl.store(d_rows_ptr + row * H + column, total.to(out_dtype), mask)


def class_linear_fwd(
    rows: Tensor | None, cells: Tensor | None, classes: Tensor | None, activation: str, keep: bool
) -> tuple[Tensor, Tensor | None]:
    """rows (M, H), cells (M, C, H), classes (C, H) to y (M, C, H), and with `keep`, where it is needed, act's argument.

    Absent are neither cells nor both others. Rows and classes have contiguous columns, cells are contiguous.
    """
    like = cells if cells is not None else rows
    assert like is not None
    n, h = like.shape[0], like.shape[-1]
    c = like.shape[1] if classes is None else classes.shape[0]
    y = like.new_empty((n, c, h))
    keep = keep and activation in OF_PRE_ACTIVATION
    pre = like.new_empty((n, c, h), dtype=compute_dtype(like.dtype)) if keep else None
    strides, has = (row_stride(rows), row_stride(classes)), (rows is not None, cells is not None, classes is not None)
    plan = _plan_fwd(like.get_device(), like.dtype, (n, c, h), strides, has, activation, keep)
    plan.launch(y, pre, rows, cells, classes)
    return y, pre


@by_shape
def _plan_fwd(
    device: int,
    dtype: torch.dtype,
    sizes: tuple[int, int, int],
    strides: tuple[int, int],
    has: tuple[bool, bool, bool],
    activation: str,
    keep: bool,
) -> Plan:
    (n, c, h), (has_rows, has_cells, has_classes) = sizes, has
    tile = row_tile(n, h, vector_width(dtype, h))
    return Plan(
        device, _class_linear_fwd_kernel, ceil_div(n, tile.rows) * c * ceil_div(h, tile.columns), (*sizes, *strides),
        ACTIVATION=activation, KEEP=keep, HAS_ROWS=has_rows, HAS_CELLS=has_cells, HAS_CLASSES=has_classes,
        BLOCK_N=tile.rows, BLOCK_D=tile.columns, num_warps=tile.warps,
    )  # fmt: skip


def class_linear_bwd(
    d_y: Tensor, at: Tensor, activation: str, needs: Sequence[bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """The gradients of rows, cells and classes that are needed; d_y and at are contiguous."""
    n, c, h = d_y.shape
    d_rows = d_y.new_empty((n, h)) if needs[0] else None
    d_cells = d_y.new_empty((n, c, h)) if needs[1] else None
    parts = d_y.new_empty((ceil_div(n, _ROWS), c, h), dtype=compute_dtype(d_y.dtype)) if needs[2] else None
    plan = _plan_bwd(d_y.get_device(), (d_y.dtype, at.dtype), (n, c, h), activation, tuple(needs))
    plan.launch(d_y, at, d_rows, d_cells, parts)
    return d_rows, d_cells, None if parts is None else parts.sum(0).to(d_y.dtype)


@by_shape
def _plan_bwd(
    device: int, dtypes: tuple[torch.dtype, torch.dtype], sizes: tuple[int, int, int], activation: str,
    needs: Sequence[bool],
) -> Plan:  # fmt: skip
    n, _, h = sizes
    block = min(2 * warp_size(), next_power_of_2(h))
    return Plan(
        device, _class_linear_bwd_kernel, ceil_div(n, _ROWS) * ceil_div(h, block), sizes,
        ACTIVATION=activation, NEED_ROWS=needs[0], NEED_CELLS=needs[1], NEED_CLASSES=needs[2],
        BLOCK_N=_ROWS, BLOCK_D=block, num_warps=1,
    )  # fmt: skip


def aot_cases() -> list[AotCase]:
    cases = []
    n, c = 500, 10
    for dtype, h, activation, each in (
        (torch.float32, 500, "softplus", False),
        (torch.float32, 512, "relu", True),
        (torch.bfloat16, 512, "softplus", False),
        (torch.bfloat16, 512, "silu", True),
        (torch.float64, 64, "tanh", True),
    ):
        name = f"{str(dtype)[6:]}, H = {h}, {activation}{', cells' if each else ''}"
        cells = meta(n, c, h, dtype=dtype)
        at = meta(n, c, h, dtype=compute_dtype(dtype) if activation in OF_PRE_ACTIVATION else dtype)
        terms = (meta(n, h, dtype=dtype), cells if each else None, meta(c, h, dtype=dtype))
        cases += [
            AotCase(name, class_linear_fwd, (*terms, activation, True)),
            AotCase(name, class_linear_bwd, (cells, at, activation, [True, each, True])),
        ]
    return cases
