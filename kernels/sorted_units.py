"""A masked network with its units in ascending order of degree: the known ones are always the first."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..structure import MadeStructure
from ._launch import AotCase, Plan, by_shape, compute_dtype, meta
from ._tiles import ceil_div, next_power_of_2

# Rows of sorted matrices are a power of two wide or, beyond this, a multiple of this.
WIDTH_STEP = 256
_BLOCK = 32


@triton.jit
def _sorted_units_kernel(
    sorted_weight_ptr, sorted_bias_ptr, sorted_scale_ptr, weight_ptr, bias_ptr, scale_ptr,
    row_order_ptr, column_order_ptr, row_degrees_ptr, column_degrees_ptr,
    rows, columns, padded, stride_row, stride_column,
    HAS_BIAS: tl.constexpr, HAS_SCALE: tl.constexpr, TRANSPOSED: tl.constexpr, SCALED: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """One program owns BLOCK x BLOCK weights of the sorted matrix, whose rows are `padded` wide.

    sorted_weight[r, c] = weight[row_order[r], column_order[c]] where the weight counts, and 0 elsewhere.
    Biases and scales are those of a layer's outputs, which are the columns of a transposed matrix. With SCALED the
    weights take the scales.
    """
    dtype: tl.constexpr = sorted_bias_ptr.dtype.element_ty
    column_blocks = tl.cdiv(padded, BLOCK)
    column_block = tl.program_id(0) % column_blocks
    r = (tl.program_id(0) // column_blocks) * BLOCK + tl.arange(0, BLOCK)
    c = column_block * BLOCK + tl.arange(0, BLOCK)
    row, column = tl.load(row_order_ptr + r, r < rows, 0), tl.load(column_order_ptr + c, c < columns, 0)
    row_degree = tl.load(row_degrees_ptr + row, r < rows, 0)[:, None]
    column_degree = tl.load(column_degrees_ptr + column, c < columns, 0)[None, :]
    counts = (row_degree <= column_degree) if TRANSPOSED else (column_degree <= row_degree)
    counts = counts & (r < rows)[:, None] & (c < columns)[None, :]
    w = tl.load(weight_ptr + row[:, None] * stride_row + column[None, :] * stride_column, counts, 0.0)
    if SCALED and HAS_SCALE:
        if TRANSPOSED:
            factor = tl.load(scale_ptr + column, c < columns, 0.0).to(dtype)[None, :]
        else:
            factor = tl.load(scale_ptr + row, r < rows, 0.0).to(dtype)[:, None]
        w = (w.to(dtype) * factor).to(w.dtype)
    at = r[:, None].to(tl.int64) * padded + c[None, :]
    tl.store(sorted_weight_ptr + at, w, (r < rows)[:, None] & (c < padded)[None, :])
    if TRANSPOSED:
        unit, place, first = column, c, (c < columns) & (tl.program_id(0) < column_blocks)
    else:
        unit, place, first = row, r, (r < rows) & (column_block == 0)
    bias, scale = tl.zeros((BLOCK,), dtype), tl.full((BLOCK,), 1.0, dtype)
    if HAS_BIAS:
        bias = tl.load(bias_ptr + unit, first, 0.0).to(dtype)
    if HAS_SCALE and not SCALED:
        scale = tl.load(scale_ptr + unit, first, 0.0).to(dtype)
    tl.store(sorted_bias_ptr + place, bias, first)
    tl.store(sorted_scale_ptr + place, scale, first)


class SortedStructure(NamedTuple):
    """Index tensors of a structure on one device; layers count from the inputs to the outputs.

    `orders`: units of each layer by ascending degree; of the outputs only shift and scale logit, a feature's together.
    `degrees`: degrees of each layer's units, unsorted. `counts` (hidden layers, D + 1): how many units have a degree
    below 0, 1, ..., D; negative degrees count as 0. `width`: columns of the sorted matrices; `most`: the most units of
    one layer and degree.
    """

    orders: list[Tensor]
    degrees: list[Tensor]
    counts: Tensor
    width: int
    most: int


def sorted_structure(structure: MadeStructure, params: int, device: torch.device) -> SortedStructure:
    """The tables of a network with the first `params` parameters of each feature as outputs, made once."""
    units: SortedStructure = structure.tables.get(
        ("sorted units", params, device), lambda: _sort_units(structure, params, device)
    )
    return units


def _sort_units(structure: MadeStructure, params: int, device: torch.device) -> SortedStructure:
    features, blocked = structure.features, structure.layout == "blocked"
    param_stride, feature_stride = (features, 1) if blocked else (1, structure.params_per_feature)
    inputs = sorted(range(features), key=structure.order.__getitem__)
    ranked = [sorted(degrees) for degrees in structure.hidden_degrees]
    counts = [[0, *(bisect_right(degrees, degree) for degree in range(features))] for degrees in ranked]
    orders = [
        inputs,
        *(sorted(range(len(degrees)), key=degrees.__getitem__) for degrees in structure.hidden_degrees),
        [p * param_stride + feature * feature_stride for feature in inputs for p in range(params)],
    ]
    widest = max(map(len, orders))
    return SortedStructure(
        [torch.tensor(order, device=device) for order in orders],
        structure.degree_tensors(device),
        torch.tensor(counts, dtype=torch.int32, device=device),
        max(next_power_of_2(widest), 16) if widest <= WIDTH_STEP else ceil_div(widest, WIDTH_STEP) * WIDTH_STEP,
        max(end - begin for row in counts for begin, end in pairwise(row)),
    )


def sorted_units(
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    weight_scales: Sequence[Tensor | None],
    units: SortedStructure,
    transposed: bool,
    scaled: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """(weights (layers, K, K), biases (layers, K), scales (layers, K)) in sorted order, K = `units.width`.

    Rows end in zeros; rows that a layer does not have are not written. With `transposed` rows are the inputs of
    a layer. With `scaled` the weights are scaled, and the scales are ones.
    """
    layers, width, dtype = len(weights), units.width, compute_dtype(weights[0].dtype)
    matrices = weights[0].new_empty((layers, width, width))
    vectors = weights[0].new_empty((2, layers, width), dtype=dtype)
    for layer, (weight, bias, scale) in enumerate(zip(weights, biases, weight_scales, strict=True)):
        rows, columns = (layer, layer + 1) if transposed else (layer + 1, layer)
        sizes = len(units.orders[rows]), len(units.orders[columns]), width
        has, stride = (bias is not None, scale is not None), weight.stride(0)
        _plan(weight.get_device(), weight.dtype, sizes, stride, has, transposed, scaled).launch(
            matrices[layer], vectors[0, layer], vectors[1, layer], weight, bias, scale,
            units.orders[rows], units.orders[columns], units.degrees[rows], units.degrees[columns],
        )  # fmt: skip
    return matrices, vectors[0], vectors[1]


@by_shape
def _plan(
    device: int,
    dtype: torch.dtype,
    sizes: tuple[int, int, int],
    stride: int,
    has: tuple[bool, bool],
    transposed: bool,
    scaled: bool,
) -> Plan:
    """`sizes` are the rows, columns and width of the sorted matrix, `stride` is that of the layer's weight."""
    (n_rows, _, width), (has_bias, has_scale) = sizes, has
    return Plan(
        device, _sorted_units_kernel, ceil_div(n_rows, _BLOCK) * ceil_div(width, _BLOCK),
        (*sizes, *((1, stride) if transposed else (stride, 1))),
        HAS_BIAS=has_bias, HAS_SCALE=has_scale, TRANSPOSED=transposed, SCALED=scaled, BLOCK=_BLOCK, num_warps=4,
    )  # fmt: skip


def aot_cases() -> list[AotCase]:
    cases = []
    for dtype, scaled in ((torch.float32, False), (torch.bfloat16, True)):
        orders = [meta(width, dtype=torch.int64) for width in (64, 512, 128)]
        units = SortedStructure(orders, orders, meta(1, 65, dtype=torch.int32), 512, 8)
        weights = [meta(512, 64, dtype=dtype), meta(128, 512, dtype=dtype)]
        vectors = [meta(512, dtype=dtype), meta(128, dtype=dtype)]
        for transposed in (False, True):
            name = f"{str(dtype)[6:]}, 64 -> 512 -> 128{', transposed' if transposed else ''}"
            cases.append(
                AotCase(name, sorted_units, (weights, vectors, vectors, units, transposed, scaled or transposed))
            )
    return cases
