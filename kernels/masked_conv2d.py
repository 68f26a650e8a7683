"""Masked convolution: y = act((W o M) * x + bias), as a matrix product over the taps that count.

The taps that count are one range of the kernel's, since a mask keeps what comes before a pixel. Their weights are laid
out by output, tap and input, which applies the rule of degrees at the origin; a channels-last weight without a rule is
read where it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._activations import OF_PRE_ACTIVATION, activate
from ._division import index_type
from ._launch import AotCase, Plan, by_shape, compute_dtype, meta
from ._matrix import WIDE_COLUMNS, MatrixTile, in_tf32, matrix_tile, precision, product_options
from ._tiles import ceil_div, next_power_of_2

_PACK_BLOCK = 1024
# The least inner size of a product.
_LEAST_INNER = 16
_NOWHERE = tl.constexpr(-(1 << 30))


class Taps(NamedTuple):
    """The taps that count: the first, how many, and the width of the kernel; the one with a rule, or -1."""

    first: int
    count: int
    kernel_width: int
    origin: int

    @classmethod
    def of(cls, taps: Sequence[int], weight: Tensor, origin_tap: int) -> Taps:
        first = taps[0] if taps else 0
        if list(taps) != list(range(first, first + len(taps))):
            raise ValueError(f"taps must be one ascending range, got {list(taps)}")
        return cls(first, len(taps), weight.shape[3], origin_tap)


class Packed(NamedTuple):
    """The weights that count, and their strides between groups, taps, and inputs and outputs of a product."""

    weights: Tensor
    group: int
    tap: int
    inputs: int
    outputs: int

    @classmethod
    def of(cls, weights: Tensor, outputs_of_group: int) -> Packed:
        """Weights (outputs, taps, inputs)."""
        return cls(
            weights, outputs_of_group * weights.stride(0), weights.stride(1), weights.stride(2), weights.stride(0)
        )

    def transpose(self) -> Packed:
        """For products over what were outputs."""
        return self._replace(inputs=self.outputs, outputs=self.inputs)


@triton.jit(do_not_specialize=["first_tap", "n_taps", "origin_tap"])
def _masked_conv2d_pack_kernel(
    packed_ptr, weight_ptr, in_degrees_ptr, out_degrees_ptr, first_tap, n_taps, origin_tap, n_in, n_out, size,
    stride_o, stride_i, stride_y, stride_x,
    KERNEL_WIDTH: tl.constexpr, HAS_RULE: tl.constexpr, INDEX: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program owns BLOCK of the weights that count, (output, tap, input).

    packed = W o M.
    """
    at = tl.program_id(0).to(INDEX) * BLOCK + tl.arange(0, BLOCK)
    i, rest = at % n_in, at // n_in
    tap, out = first_tap + rest % n_taps, rest // n_taps
    counts = at < size
    if HAS_RULE:
        in_degree = tl.load(in_degrees_ptr + out // n_out * n_in + i, counts, 0)
        out_degree = tl.load(out_degrees_ptr + out, counts, 0)
        counts = counts & ((tap != origin_tap) | (in_degree <= out_degree))
    where = out.to(tl.int64) * stride_o + i.to(tl.int64) * stride_i
    where += tap // KERNEL_WIDTH * stride_y + tap % KERNEL_WIDTH * stride_x
    tl.store(packed_ptr + at, tl.load(weight_ptr + where, counts, 0.0), at < size)


def _is_packed(weight: Tensor, taps: Taps) -> bool:
    """Whether inputs, then taps, are steps of equal size, as in a channels-last weight."""
    return (weight.shape[1] == 1 or weight.stride(1) == 1) and (
        weight.shape[2] == 1 or weight.stride(2) == taps.kernel_width * weight.stride(3)
    )


def pack(weight: Tensor, rule: tuple[Tensor, Tensor] | None, taps: Taps, groups: int) -> Packed:
    """The weights that count as (outputs, taps, inputs): a view of the weight where it is laid out so, and no rule."""
    (outputs, n_in), n_out = weight.shape[:2], weight.shape[0] // groups
    shape = (outputs, taps.count, n_in)
    if rule is None and _is_packed(weight, taps):
        strides, first = (weight.stride(0), weight.stride(3), weight.stride(1)), taps.first * weight.stride(3)
        return Packed.of(weight.as_strided(shape, strides, weight.storage_offset() + first), n_out)
    packed = weight.new_empty(shape)
    in_degrees, out_degrees = rule or (None, None)
    plan = _plan_pack(weight.get_device(), weight.dtype, shape, n_out, weight.stride(), taps, rule is not None)
    plan.launch(packed, weight, in_degrees, out_degrees)
    return Packed.of(packed, n_out)


@by_shape
def _plan_pack(
    device: int,
    dtype: torch.dtype,
    shape: tuple[int, int, int],
    n_out: int,
    strides: Sequence[int],
    taps: Taps,
    has_rule: bool,
) -> Plan:
    """`shape` is that of the packed weights, `strides` are those of the weight, `n_out` the outputs of a group."""
    size = prod(shape)
    return Plan(
        device, _masked_conv2d_pack_kernel, ceil_div(size, _PACK_BLOCK),
        (taps.first, taps.count, taps.origin, shape[2], n_out, size, *strides),
        KERNEL_WIDTH=taps.kernel_width, HAS_RULE=has_rule, INDEX=index_type(size), BLOCK=_PACK_BLOCK, num_warps=4,
    )  # fmt: skip


@triton.jit
def is_in(at, size):
    """Whether 0 <= at < size, in one comparison."""
    return at.to(tl.uint32) < size


@triton.jit(do_not_specialize=["n_pixels", "first_tap", "n_taps", "from_y", "from_x"])
def _masked_conv2d_fwd_kernel(
    y_ptr, pre_ptr, x_ptr, packed_ptr, bias_ptr,
    n_pixels, out_height, out_width, height, width, n_in, n_out, first_tap, n_taps, from_y, from_x, step_y, step_x,
    stride_xn, stride_xc, stride_xh, stride_xw, stride_yn, stride_yc, stride_yh, stride_yw,
    stride_wg, stride_wt, stride_wi, stride_wo,
    KERNEL_WIDTH: tl.constexpr, FOLD: tl.constexpr, IN_BLOCKS: tl.constexpr, RAGGED: tl.constexpr,
    ACTIVATION: tl.constexpr, HAS_BIAS: tl.constexpr, KEEP: tl.constexpr, PRECISION: tl.constexpr,
    INDEX: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_I: tl.constexpr,
):  # fmt: skip
    """One program owns BLOCK_P pixels of BLOCK_O channels of one group.

    y = act(pre),  pre = sum over taps of x[pixel + from + step tap] W[tap] + bias; backwards, with other steps, d_x.
    The backward pass keeps y or, with KEEP, pre.
    """
    dtype: tl.constexpr = tl.float64 if x_ptr.dtype.element_ty == tl.float64 else tl.float32
    # Blocks of channels over the same pixels run together.
    out_blocks, pixel_blocks = tl.cdiv(n_out, BLOCK_O), tl.cdiv(n_pixels, BLOCK_P)
    out_block, rest = tl.program_id(0) % out_blocks, tl.program_id(0) // out_blocks
    group = (rest // pixel_blocks).to(tl.int64)
    pixel = (rest % pixel_blocks).to(INDEX) * BLOCK_P + tl.arange(0, BLOCK_P)
    o = out_block * BLOCK_O + tl.arange(0, BLOCK_O)
    exists, inside = pixel < n_pixels, o < n_out
    area = out_height * out_width
    image, place = (pixel // area).to(tl.int64), (pixel % area).to(tl.int32)
    row, column = place // out_width, place % out_width
    y0, x0 = row + from_y, column + from_x
    x_ptrs = x_ptr + group * n_in * stride_xc + image * stride_xn + y0.to(tl.int64) * stride_xh
    x_ptrs += x0.to(tl.int64) * stride_xw
    # A pixel that does not exist is far above every image: no load needs another test.
    y0 = tl.where(exists, y0, _NOWHERE)
    weight_ptrs = packed_ptr + group * stride_wg + o.to(tl.int64) * stride_wo
    acc = tl.zeros((BLOCK_P, BLOCK_O), dtype)
    if FOLD:
        # Few channels: taps and channels together are the inner dimension.
        for start in range(0, n_taps * n_in, BLOCK_I):
            k = start + tl.arange(0, BLOCK_I)
            t, i = k // n_in, (k % n_in).to(tl.int64)
            tap = first_tap + t
            dy, dx = tap // KERNEL_WIDTH * step_y, tap % KERNEL_WIDTH * step_x
            there = is_in(y0[:, None] + dy[None, :], height) & is_in(x0[:, None] + dx[None, :], width)
            offset = dy.to(tl.int64) * stride_xh + dx.to(tl.int64) * stride_xw + i * stride_xc
            counts = k < n_taps * n_in
            x = tl.load(x_ptrs[:, None] + offset[None, :], there & counts[None, :], 0.0)
            offset = t.to(tl.int64) * stride_wt + i * stride_wi
            w = tl.load(weight_ptrs[None, :] + offset[:, None], counts[:, None] & inside[None, :], 0.0)
            acc = tl.dot(x, w, acc, input_precision=PRECISION, out_dtype=dtype)
    else:
        lane = tl.arange(0, BLOCK_I)
        lane_ptrs = x_ptrs[:, None] + lane[None, :].to(tl.int64) * stride_xc
        weight_lane_ptrs = weight_ptrs[None, :] + lane[:, None].to(tl.int64) * stride_wi
        # One loop over taps and channels, so that the loads of the next tap run ahead.
        for step in range(0, n_taps * IN_BLOCKS):
            t, first = step // IN_BLOCKS, step % IN_BLOCKS * BLOCK_I
            tap = first_tap + t
            dy, dx = tap // KERNEL_WIDTH * step_y, tap % KERNEL_WIDTH * step_x
            there = (is_in(y0 + dy, height) & is_in(x0 + dx, width))[:, None]
            counts = inside[None, :]
            if RAGGED:
                there = there & (lane < n_in - first)[None, :]
                counts = counts & (lane < n_in - first)[:, None]
            at = dy.to(tl.int64) * stride_xh + dx.to(tl.int64) * stride_xw + tl.cast(first, tl.int64) * stride_xc
            x = tl.load(lane_ptrs + at, there, 0.0)
            at = tl.cast(t, tl.int64) * stride_wt + tl.cast(first, tl.int64) * stride_wi
            w = tl.load(weight_lane_ptrs + at, counts, 0.0)
            acc = tl.dot(x, w, acc, input_precision=PRECISION, out_dtype=dtype)
    if HAS_BIAS:
        acc += tl.load(bias_ptr + group * n_out + o, inside, 0.0).to(dtype)[None, :]
    at = image * stride_yn + row.to(tl.int64) * stride_yh + column.to(tl.int64) * stride_yw
    at = at[:, None] + (group * n_out + o)[None, :] * stride_yc
    owned = exists[:, None] & inside[None, :]
    if KEEP:
        tl.store(pre_ptr + at, acc, owned)
    tl.store(y_ptr + at, activate(acc, ACTIVATION).to(y_ptr.dtype.element_ty), owned)


def conv_tile(rows: int, columns: int, inner: int, dtype: torch.dtype, channels_last: bool = True) -> MatrixTile:
    """A tile of a product over taps, no wider than the columns and no deeper than the inner elements."""
    tile = matrix_tile(rows, columns, dtype)
    if tile.columns == WIDE_COLUMNS:
        # Without degrees, registers are left for a deeper tile; where no access has 128 bits, pixels need them.
        half = dtype.itemsize == 2
        width = WIDE_COLUMNS if half and channels_last else WIDE_COLUMNS // 2
        tile = tile._replace(columns=width, inner=64 if half else 32, stages=min(tile.stages, 3))
    return tile._replace(
        columns=min(tile.columns, max(next_power_of_2(columns), 16)),
        inner=min(tile.inner, max(next_power_of_2(inner), _LEAST_INNER)),
    )


def conv_options(
    tile: MatrixTile,
    dtype: torch.dtype,
    channels: tuple[int, int],
    channels_last: bool,
    device: int,
    activation: str = "identity",
) -> dict[str, int]:
    """Only where channels are last, the channels of a pixel are a contiguous row."""
    return product_options(tile, dtype, channels if channels_last else (1, 1), device, activation)


def folds(channels: int) -> bool:
    """Whether channels are so few that taps join them in one dimension."""
    return channels < _LEAST_INNER


def image_like(x: Tensor, shape: Sequence[int], channels_last: bool, dtype: torch.dtype | None = None) -> Tensor:
    """An uninitialised (N, C, H, W) in one of the two layouts."""
    n, channels, height, width = shape
    if channels_last:
        return x.new_empty((n, height, width, channels), dtype=dtype or x.dtype).permute(0, 3, 1, 2)
    return x.new_empty((n, channels, height, width), dtype=dtype or x.dtype)


def sum_over_taps(
    y: Tensor,
    pre: Tensor,
    x: Tensor,
    packed: Packed,
    bias: Tensor | None,
    taps: Taps,
    groups: int,
    begin: tuple[int, int],
    step: tuple[int, int],
    activation: str,
    keep: bool,
) -> None:
    """Runs `_masked_conv2d_fwd_kernel` on x and packed weights; writes y, and with `keep` pre."""
    images = Images(x.get_device(), x.dtype, x.shape, x.stride(), y.shape, y.stride())
    multiplied, has_bias = precision(x.dtype), bias is not None
    plan = _plan(images, multiplied, packed[1:], taps, groups, begin, step, activation, has_bias, keep)
    plan.launch(y, pre, x, packed.weights, bias)


class Images(NamedTuple):
    device: int
    dtype: torch.dtype
    of_x: Sequence[int]
    x_strides: Sequence[int]
    of_y: Sequence[int]
    y_strides: Sequence[int]


@by_shape
def _plan(
    images: Images,
    multiplied: str,
    weight_strides: Sequence[int],
    taps: Taps,
    groups: int,
    begin: tuple[int, int],
    step: tuple[int, int],
    activation: str,
    has_bias: bool,
    keep: bool,
) -> Plan:
    device, dtype, (_, inputs, height, width), x_strides, (n, outputs, out_height, out_width), y_strides = images
    pixels, n_in, n_out = n * out_height * out_width, inputs // groups, outputs // groups
    fold, channels_last = folds(n_in), x_strides[1] == 1 and y_strides[1] == 1
    inner = n_in * taps.count if fold else n_in
    tile = conv_tile(pixels * groups, n_out, inner, dtype, channels_last)
    sizes = pixels, out_height, out_width, height, width, n_in, n_out
    return Plan(
        device, _masked_conv2d_fwd_kernel, groups * tile.programs(pixels, n_out),
        (*sizes, taps.first, taps.count, *begin, *step, *x_strides, *y_strides, *weight_strides),
        KERNEL_WIDTH=taps.kernel_width, FOLD=fold, IN_BLOCKS=ceil_div(n_in, tile.inner), RAGGED=n_in % tile.inner > 0,
        ACTIVATION=activation, HAS_BIAS=has_bias, KEEP=keep, PRECISION=multiplied,
        INDEX=index_type(pixels), BLOCK_P=tile.rows, BLOCK_O=tile.columns, BLOCK_I=tile.inner,
        **conv_options(tile, dtype, (inputs, outputs), channels_last, device, activation),
    )  # fmt: skip


def rule_of(in_degrees: Tensor | None, out_degrees: Tensor | None) -> tuple[Tensor, Tensor] | None:
    return None if in_degrees is None or out_degrees is None else (in_degrees, out_degrees)


def masked_conv2d_fwd(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    in_degrees: Tensor | None,
    out_degrees: Tensor | None,
    taps: Sequence[int],
    origin_tap: int,
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    activation: str,
    keep: bool,
    channels_last: bool,
) -> tuple[Tensor, Tensor]:
    """y (N, O, H', W'), and with `keep` the pre-activation where the gradient needs it; empty otherwise."""
    keep = keep and activation in OF_PRE_ACTIVATION
    height = x.shape[2] + padding[0] + padding[2] - dilation[0] * (weight.shape[2] - 1)
    width = x.shape[3] + padding[1] + padding[3] - dilation[1] * (weight.shape[3] - 1)
    shape = x.shape[0], weight.shape[0], height, width
    y, wide = image_like(x, shape, channels_last), compute_dtype(x.dtype)
    pre = image_like(x, shape, channels_last, wide) if keep else x.new_empty(0, dtype=wide)
    counted = Taps.of(taps, weight, origin_tap)
    packed = pack(weight, rule_of(in_degrees, out_degrees), counted, groups)
    begin, step = (-padding[0], -padding[1]), (dilation[0], dilation[1])
    bias = None if bias is None else bias.contiguous()
    sum_over_taps(y, pre, x, packed, bias, counted, groups, begin, step, activation, keep)
    return y, pre if keep else x.new_empty(0)


def aot_cases() -> list[AotCase]:
    cases = []
    for dtype, inputs, outputs, kernel, colors, activation, channels_last in (
        (torch.float32, 128, 128, 3, 1, "elu", False),
        (torch.float32, 1, 32, 7, 1, "relu", False),
        (torch.float32, 63, 65, 3, 1, "tanh", True),
        (torch.bfloat16, 128, 128, 7, 1, "identity", True),
        (torch.bfloat16, 128, 128, 3, 1, "elu", False),
        (torch.bfloat16, 96, 192, 3, 3, "gelu", True),
        (torch.float16, 32, 64, 5, 1, "silu", False),
        (torch.float64, 16, 16, 3, 1, "softplus", False),
    ):
        n, name = 128, f"{str(dtype)[6:]}, {kernel}x{kernel}, {inputs} -> {outputs}, {activation}"
        x, origin = image_like(meta(dtype=dtype), (n, inputs, 32, 32), channels_last), kernel * kernel // 2
        weight, bias = meta(outputs, inputs, kernel, kernel, dtype=dtype), meta(outputs, dtype=dtype)
        degrees = (meta(inputs, dtype=torch.int64), meta(outputs, dtype=torch.int64)) if colors > 1 else (None, None)
        how = (list(range(origin + 1)), origin if colors > 1 else -1, [kernel // 2] * 4, [1, 1], 1, activation, True)
        arguments = (x, weight, bias, *degrees, *how, channels_last)
        cases.append(AotCase(name, masked_conv2d_fwd, arguments))
        if dtype == torch.float32 and inputs % 64 == 0:
            cases.append(AotCase(name.replace("float32", "tf32"), in_tf32(masked_conv2d_fwd), arguments))
    return cases
