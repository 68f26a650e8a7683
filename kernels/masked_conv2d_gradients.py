"""The gradients of a masked convolution: to x by the convolution's own kernel with its steps reversed, to the weight by
products over pixels, to the bias by sums.

Sums over pixels are split among programs, whose parts are added up in a fixed order: no atomics.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._activations import through
from ._division import divide, index_type, reciprocal
from ._launch import AotCase, Plan, by_shape, compute_dtype, meta
from ._matrix import in_tf32, precision, split_products
from ._tiles import ceil_div, next_power_of_2, split_sum
from .masked_conv2d import (
    Images,
    Taps,
    conv_options,
    conv_tile,
    folds,
    image_like,
    is_in,
    pack,
    rule_of,
    sum_over_taps,
)

_SUM_BLOCK = 256
# Pixels, channels and warps of a tile without products.
_PRE_PIXELS, _PRE_CHANNELS, _PRE_WARPS = 16, 64, 4


@triton.jit
def _pixel(pixel, area, width, area_multiplier, area_shift, width_multiplier, width_shift):
    """(image, row, column) of a pixel counted over all images."""
    image = divide(pixel, area, area_multiplier, area_shift)
    place = (pixel - image * area).to(tl.int32)
    row = divide(place, width, width_multiplier, width_shift)
    return image, row, place - row * width


@triton.jit(
    do_not_specialize=[
        "n_pixels", "pixels_per_split", "area_multiplier", "area_shift", "width_multiplier", "width_shift",
    ]
)  # fmt: skip
def _masked_conv2d_bwd_pre_kernel(
    d_pre_ptr, bias_parts_ptr, d_y_ptr, kept_ptr, n_pixels, pixels_per_split,
    area, width, area_multiplier, area_shift, width_multiplier, width_shift, n_out,
    stride_gn, stride_gc, stride_gh, stride_gw, stride_kn, stride_kc, stride_kh, stride_kw,
    stride_dn, stride_dc, stride_dh, stride_dw,
    ACTIVATION: tl.constexpr, HAS_BIAS: tl.constexpr, INDEX: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_O: tl.constexpr,
):  # fmt: skip
    """One program owns one split of the pixels, BLOCK_O channels.

    d_pre = d_y act'(pre), not written for the identity;  the bias's part is the sum of d_pre over the split.
    The splits are added by `_masked_conv2d_bwd_bias_kernel`.
    """
    dtype: tl.constexpr = bias_parts_ptr.dtype.element_ty
    out_blocks = tl.cdiv(n_out, BLOCK_O)
    split = tl.program_id(0) // out_blocks
    o = ((tl.program_id(0) % out_blocks) * BLOCK_O + tl.arange(0, BLOCK_O)[None, :]).to(tl.int64)
    begin = split.to(INDEX) * pixels_per_split
    end = tl.minimum(begin + pixels_per_split, n_pixels)
    total = tl.zeros((BLOCK_P, BLOCK_O), dtype)
    for start in range(begin, end, BLOCK_P):
        pixel = start + tl.arange(0, BLOCK_P)[:, None]
        mask = (pixel < end) & (o < n_out)
        image, row, column = _pixel(pixel, area, width, area_multiplier, area_shift, width_multiplier, width_shift)
        image, row, column = image.to(tl.int64), row.to(tl.int64), column.to(tl.int64)
        at = image * stride_gn + o * stride_gc + row * stride_gh + column * stride_gw
        d_pre = tl.load(d_y_ptr + at, mask, 0.0).to(dtype)
        if ACTIVATION != "identity":
            at = image * stride_kn + o * stride_kc + row * stride_kh + column * stride_kw
            d_pre = through(d_pre, tl.load(kept_ptr + at, mask, 0.0).to(dtype), ACTIVATION)
            at = image * stride_dn + o * stride_dc + row * stride_dh + column * stride_dw
            tl.store(d_pre_ptr + at, d_pre.to(d_pre_ptr.dtype.element_ty), mask)
        total += tl.where(mask, d_pre, 0.0)
    if HAS_BIAS:
        tl.store(bias_parts_ptr + split.to(tl.int64) * n_out + o, tl.sum(total, 0)[None, :], o < n_out)


@triton.jit(do_not_specialize=["splits"])
def _masked_conv2d_bwd_bias_kernel(d_bias_ptr, bias_parts_ptr, splits, n_out, BLOCK: tl.constexpr):
    """One program owns BLOCK channels.

    d_bias = sum, in order, of the parts that the splits of the pixels wrote.
    """
    o = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), bias_parts_ptr.dtype.element_ty)
    for split in range(0, splits):
        total += tl.load(bias_parts_ptr + split * n_out + o, o < n_out, 0.0)
    tl.store(d_bias_ptr + o, total.to(d_bias_ptr.dtype.element_ty), o < n_out)


@triton.jit(
    do_not_specialize=[
        "n_pixels", "pixels_per_split", "area_multiplier", "area_shift", "width_multiplier", "width_shift",
        "first_tap", "n_taps", "from_y", "from_x",
    ]
)  # fmt: skip
def _masked_conv2d_bwd_weight_kernel(
    parts_ptr, d_pre_ptr, x_ptr, n_pixels, pixels_per_split,
    area, out_width, area_multiplier, area_shift, width_multiplier, width_shift, height, width, n_in, n_out, groups,
    first_tap, n_taps, from_y, from_x, step_y, step_x,
    stride_gn, stride_gc, stride_gh, stride_gw, stride_xn, stride_xc, stride_xh, stride_xw,
    KERNEL_WIDTH: tl.constexpr, FOLD: tl.constexpr, PRECISION: tl.constexpr, INDEX: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_I: tl.constexpr,
):  # fmt: skip
    """One program owns BLOCK_O x BLOCK_I weights of one tap, or of a few where channels are few, and one split.

    part[split, o, tap, i] = sum over the split's pixels of d_pre[pixel, o] x[pixel + from + step tap, i].
    The splits are added by `_masked_conv2d_bwd_sum_kernel`.
    """
    dtype: tl.constexpr = tl.float64 if x_ptr.dtype.element_ty == tl.float64 else tl.float32
    out_blocks = tl.cdiv(n_out, BLOCK_O)
    in_blocks = tl.cdiv(n_in, BLOCK_I)
    column_blocks = n_taps * in_blocks
    if FOLD:
        column_blocks = tl.cdiv(n_taps * n_in, BLOCK_I)
    block, rest = tl.program_id(0) % column_blocks, tl.program_id(0) // column_blocks
    o = rest % out_blocks * BLOCK_O + tl.arange(0, BLOCK_O)
    rest = rest // out_blocks
    group, split = (rest % groups).to(tl.int64), rest // groups
    if FOLD:
        k = block * BLOCK_I + tl.arange(0, BLOCK_I)
        inside = k < n_taps * n_in
        i, tap = k % n_in, first_tap + k // n_in
    else:
        i = block % in_blocks * BLOCK_I + tl.arange(0, BLOCK_I)
        inside = i < n_in
        k = block // in_blocks * n_in + i
        tap = first_tap + block // in_blocks
    dy, dx = tap // KERNEL_WIDTH * step_y + from_y, tap % KERNEL_WIDTH * step_x + from_x
    x_ptrs = x_ptr + (group * n_in + i) * stride_xc + dy.to(tl.int64) * stride_xh + dx.to(tl.int64) * stride_xw
    d_pre_ptrs = d_pre_ptr + (group * n_out + o) * stride_gc
    begin = split.to(INDEX) * pixels_per_split
    end = tl.minimum(begin + pixels_per_split, n_pixels)
    # No split is empty: a path around the loop would make the assembler serialise products of 128 columns.
    tl.assume(begin < end)
    acc = tl.zeros((BLOCK_O, BLOCK_I), dtype)
    for start in range(begin, end, BLOCK_P):
        pixel = start + tl.arange(0, BLOCK_P)
        image, row, column = _pixel(pixel, area, out_width, area_multiplier, area_shift, width_multiplier, width_shift)
        row, column = row.to(INDEX), column.to(INDEX)
        at = image * stride_gn + row * stride_gh + column * stride_gw
        d_pre = tl.load(d_pre_ptrs[:, None] + at[None, :], (o < n_out)[:, None] & (pixel < end)[None, :], 0.0)
        if FOLD:
            there = is_in(row[:, None] + dy[None, :], height) & is_in(column[:, None] + dx[None, :], width)
        else:
            # The same for all channels: one access reads several of them.
            there = (is_in(row + dy, height) & is_in(column + dx, width))[:, None]
        at = image * stride_xn + row * stride_xh + column * stride_xw
        x = tl.load(x_ptrs[None, :] + at[:, None], there & (pixel < end)[:, None] & inside[None, :], 0.0)
        acc = tl.dot(d_pre, x, acc, input_precision=PRECISION, out_dtype=dtype)
    n_columns = n_taps * n_in
    at = ((split * groups + group) * n_out + o[:, None]) * n_columns + k[None, :]
    tl.store(parts_ptr + at, acc, (o < n_out)[:, None] & inside[None, :])


@triton.jit(do_not_specialize=["splits", "first_tap", "n_taps", "origin_tap"])
def _masked_conv2d_bwd_sum_kernel(
    d_weight_ptr, parts_ptr, in_degrees_ptr, out_degrees_ptr,
    splits, first_tap, n_taps, origin_tap, n_in, n_out, size,
    KERNEL_SIZE: tl.constexpr, HAS_RULE: tl.constexpr, INDEX: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program owns BLOCK weights, counted by output, tap and input, as the parts are.

    d_weight = sum, in order, of the parts of the splits where the weight counts, and 0 elsewhere.
    """
    at = tl.program_id(0).to(INDEX) * BLOCK + tl.arange(0, BLOCK)
    i, rest = at % n_in, at // n_in
    tap, o = rest % KERNEL_SIZE, rest // KERNEL_SIZE
    counts = (at < size) & (tap >= first_tap) & (tap < first_tap + n_taps)
    if HAS_RULE:
        in_degree = tl.load(in_degrees_ptr + o // n_out * n_in + i, counts, 0)
        out_degree = tl.load(out_degrees_ptr + o, counts, 0)
        counts = counts & ((tap != origin_tap) | (in_degree <= out_degree))
    part_ptrs = parts_ptr + (o * n_taps + tap - first_tap) * n_in + i
    part_size = size // KERNEL_SIZE * n_taps
    total = tl.zeros((BLOCK,), parts_ptr.dtype.element_ty)
    for _ in range(0, splits):
        total += tl.load(part_ptrs, counts, 0.0)
        part_ptrs += part_size
    to = d_weight_ptr + (o * n_in + i) * KERNEL_SIZE + tap
    tl.store(to, total.to(d_weight_ptr.dtype.element_ty), at < size)


def _numbers(height: int, width: int) -> tuple[int, ...]:
    """What `_pixel` takes of an image."""
    return height * width, width, *reciprocal(height * width), *reciprocal(width)


def _extent(sizes: Sequence[int], strides: Sequence[int]) -> int:
    """The largest offset in a tensor, and 1."""
    return sum((size - 1) * stride for size, stride in zip(sizes, strides, strict=True)) + 1


def _pre_gradients(
    d_y: Tensor, at: Tensor, activation: str, has_bias: bool, channels_last: bool
) -> tuple[Tensor, Tensor | None]:
    """(d_pre, d_bias); for the identity d_pre is d_y itself."""
    if activation == "identity" and not has_bias:
        return d_y, None
    d_pre = d_y if activation == "identity" else image_like(d_y, d_y.shape, channels_last)
    kept, outputs = d_y if activation == "identity" else at, d_y.shape[1]
    strides = *d_y.stride(), *kept.stride(), *d_pre.stride()
    plans = _plan_pre(d_y.get_device(), (d_y.dtype, kept.dtype), d_y.shape, strides, activation, has_bias)
    parts = d_y.new_empty((plans.splits, outputs) if has_bias else 0, dtype=compute_dtype(d_y.dtype))
    plans.gradient.launch(d_pre, parts, d_y, kept)
    if not has_bias:
        return d_pre, None
    d_bias = d_y.new_empty(outputs)
    plans.total.launch(d_bias, parts)
    return d_pre, d_bias


class _Split(NamedTuple):
    """How a gradient is computed in parts, and what adds up as many of them as there are splits."""

    splits: int
    gradient: Plan
    total: Plan


@by_shape
def _plan_pre(
    device: int,
    dtypes: tuple[torch.dtype, torch.dtype],
    of_y: Sequence[int],
    strides: Sequence[int],
    activation: str,
    has_bias: bool,
) -> _Split:
    """`dtypes` are those of d_y and of what it is multiplied by."""
    n, outputs, height, width = of_y
    pixels, block = n * height * width, min(next_power_of_2(outputs), _PRE_CHANNELS)
    out_blocks = ceil_div(outputs, block)
    splits, per_split = split_sum(pixels, out_blocks, _PRE_PIXELS)
    gradient = Plan(
        device, _masked_conv2d_bwd_pre_kernel, splits * out_blocks,
        (pixels, per_split, *_numbers(height, width), outputs, *strides),
        ACTIVATION=activation, HAS_BIAS=has_bias, INDEX=index_type(pixels), BLOCK_P=_PRE_PIXELS, BLOCK_O=block,
        num_warps=_PRE_WARPS,
    )  # fmt: skip
    total = Plan(
        device, _masked_conv2d_bwd_bias_kernel, ceil_div(outputs, block), (splits, outputs), BLOCK=block, num_warps=1
    )
    return _Split(splits, gradient, total)


def _weight_gradient(
    d_pre: Tensor,
    x: Tensor,
    weight: Tensor,
    rule: tuple[Tensor, Tensor] | None,
    taps: Taps,
    begin: tuple[int, int],
    step: tuple[int, int],
    groups: int,
) -> Tensor:
    if d_pre.numel() == 0:
        return weight.new_zeros(weight.shape)
    d_weight, has_rule = weight.new_empty(weight.shape), rule is not None
    images = Images(x.get_device(), x.dtype, x.shape, x.stride(), d_pre.shape, d_pre.stride())
    plans = _plan_weight(images, precision(x.dtype), weight.shape[2:], taps, begin, step, groups, has_rule)
    shape = plans.splits, weight.shape[0], taps.count, weight.shape[1]
    parts = x.new_empty(shape, dtype=compute_dtype(x.dtype))
    plans.gradient.launch(parts, d_pre, x)
    plans.total.launch(d_weight, parts, *(rule or (None, None)))
    return d_weight


@by_shape
def _plan_weight(
    images: Images,
    multiplied: str,
    kernel_size: Sequence[int],
    taps: Taps,
    begin: tuple[int, int],
    step: tuple[int, int],
    groups: int,
    has_rule: bool,
) -> _Split:
    """Of images x and d_pre."""
    device, dtype, of_x, x_strides, of_y, y_strides = images
    n, outputs, out_height, out_width = of_y
    pixels, n_in, n_out = n * out_height * out_width, of_x[1] // groups, outputs // groups
    fold = folds(n_in)
    inner = n_in * taps.count if fold else n_in
    # Splits of the pixels, and taps, also multiply the programs.
    rows = n_out * groups * max(taps.count, 1) * max(pixels // 512, 1)
    channels_last = x_strides[1] == 1 and y_strides[1] == 1
    tile = conv_tile(rows, inner, pixels, dtype, channels_last)
    tile = tile._replace(rows=min(tile.rows, max(next_power_of_2(n_out), 16)))
    blocks = groups * ceil_div(n_out, tile.rows)
    blocks *= ceil_div(inner, tile.columns) * (1 if fold else taps.count)
    splits, per_split = split_products(pixels, blocks, 4 * tile.inner)
    sizes = *_numbers(out_height, out_width), *of_x[2:], n_in, n_out, groups
    gradient = Plan(
        device, _masked_conv2d_bwd_weight_kernel, splits * blocks,
        (pixels, per_split, *sizes, taps.first, taps.count, *begin, *step, *y_strides, *x_strides),
        KERNEL_WIDTH=taps.kernel_width, FOLD=fold, PRECISION=multiplied,
        INDEX=index_type(max(pixels, _extent(of_y, y_strides), _extent(of_x, x_strides))),
        BLOCK_P=tile.inner, BLOCK_O=tile.rows, BLOCK_I=tile.columns,
        **conv_options(tile, dtype, (of_x[1], outputs), channels_last, device),
    )  # fmt: skip
    taps_of_kernel = prod(kernel_size)
    size = outputs * n_in * taps_of_kernel
    total = Plan(
        device, _masked_conv2d_bwd_sum_kernel, ceil_div(size, _SUM_BLOCK),
        (splits, taps.first, taps.count, taps.origin, n_in, n_out, size),
        KERNEL_SIZE=taps_of_kernel, HAS_RULE=has_rule, INDEX=index_type(size), BLOCK=_SUM_BLOCK, num_warps=4,
    )  # fmt: skip
    return _Split(splits, gradient, total)


def masked_conv2d_bwd(
    d_y: Tensor,
    at: Tensor,
    x: Tensor,
    weight: Tensor,
    in_degrees: Tensor | None,
    out_degrees: Tensor | None,
    taps: Sequence[int],
    origin_tap: int,
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    activation: str,
    needs: Sequence[bool],
    channels_last: bool,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """The gradients to x, weight and bias that are needed; `at` is the pre-activation (gelu, silu) or y."""
    counted, rule = Taps.of(taps, weight, origin_tap), rule_of(in_degrees, out_degrees)
    d_pre, d_bias = _pre_gradients(d_y, at, activation, needs[2], channels_last)
    (top, left), (step_y, step_x) = padding[:2], dilation
    d_x = d_weight = None
    if needs[0]:
        d_x = image_like(x, x.shape, channels_last)
        packed = pack(weight, rule, counted, groups).transpose()
        unkept = x.new_empty(0)
        sum_over_taps(
            d_x, unkept, d_pre, packed, None, counted, groups, (top, left), (-step_y, -step_x), "identity", False
        )
    if needs[1]:
        d_weight = _weight_gradient(d_pre, x, weight, rule, counted, (-top, -left), (step_y, step_x), groups)
    return d_x, d_weight, d_bias


def aot_cases() -> list[AotCase]:
    cases = []
    for dtype, inputs, outputs, kernel, colors, activation, channels_last in (
        (torch.float32, 128, 128, 3, 1, "elu", False),
        (torch.float32, 1, 32, 7, 1, "relu", False),
        (torch.float32, 63, 65, 3, 1, "tanh", True),
        (torch.bfloat16, 128, 128, 7, 1, "identity", True),
        (torch.bfloat16, 128, 128, 3, 1, "elu", False),
        (torch.bfloat16, 96, 192, 3, 3, "gelu", True),
        (torch.float64, 16, 16, 3, 1, "softplus", False),
    ):
        n, name = 128, f"{str(dtype)[6:]}, {kernel}x{kernel}, {inputs} -> {outputs}, {activation}"
        origin = kernel * kernel // 2
        x, d_y = (image_like(meta(dtype=dtype), (n, c, 32, 32), channels_last) for c in (inputs, outputs))
        weight = meta(outputs, inputs, kernel, kernel, dtype=dtype)
        degrees = (meta(inputs, dtype=torch.int64), meta(outputs, dtype=torch.int64)) if colors > 1 else (None, None)
        how = (list(range(origin + 1)), origin if colors > 1 else -1, [kernel // 2] * 4, [1, 1], 1, activation)
        arguments = (d_y, d_y, x, weight, *degrees, *how, [True] * 3, channels_last)
        cases.append(AotCase(name, masked_conv2d_bwd, arguments))
        if dtype == torch.float32 and inputs % 64 == 0:
            cases.append(AotCase(name.replace("float32", "tf32"), in_tf32(masked_conv2d_bwd), arguments))
    return cases
