"""Masked linear layer: y = act(scale (W o M) x + bias).

The mask is a comparison of degrees. Tiles of the weight that it empties are never visited: a program walks the tiles
that count wholly, then those that count in part and need the mask.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._activations import OF_PRE_ACTIVATION, activate
from ._launch import AotCase, Plan, by_shape, compute_dtype, meta
from ._matrix import GROUP, MatrixTile, choose_tile, group_blocks, in_tf32, precision, product_options
from .masked_linear_gradients import masked_linear_bwd
from .masked_norm import masked_norm_bwd, masked_norm_fwd
from .tile_lists import row_of, tile_lists

# The gradient and the norms have modules of their own; callers find them beside the layer.
__all__ = ["aot_cases", "masked_layer", "masked_linear_bwd", "masked_linear_fwd", "masked_norm_bwd", "masked_norm_fwd"]


@triton.jit
def _forward_tiles(
    acc, tiles_ptr, count, x_ptrs, exists, weight_ptrs, in_degrees_ptr, out_degrees_ptr, o, n_in, n_out,
    MASKED: tl.constexpr, PRECISION: tl.constexpr, BLOCK_I: tl.constexpr,
):  # fmt: skip
    if MASKED:
        out_degree = tl.load(out_degrees_ptr + o, o < n_out, 0)
    tile = tl.load(tiles_ptr)
    for step in range(1, count + 1):
        i = tile * BLOCK_I + tl.arange(0, BLOCK_I)
        # One tile ahead, so that no address waits for it.
        tile = tl.load(tiles_ptr + step)
        x = tl.load(x_ptrs + i[None, :], exists[:, None] & (i[None, :] < n_in), 0.0)
        w = tl.load(weight_ptrs + i[:, None], i[:, None] < n_in, 0.0)
        if MASKED:
            in_degree = tl.load(in_degrees_ptr + i, i < n_in, 0)
            w = tl.where(in_degree[:, None] <= out_degree[None, :], w, 0.0)
        acc = tl.dot(x, w, acc, input_precision=PRECISION, out_dtype=acc.dtype)
    return acc


@triton.jit(do_not_specialize=["n_rows"])
def _masked_linear_fwd_kernel(
    y_ptr, pre_ptr, x_ptr, weight_ptr, bias_ptr, scale_ptr, addend_ptr, lists_ptr, in_degrees_ptr, out_degrees_ptr,
    n_rows, n_in, n_out, stride_x, stride_weight, stride_addend,
    ACTIVATION: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_SCALE: tl.constexpr, HAS_ADDEND: tl.constexpr,
    KEEP: tl.constexpr, PRECISION: tl.constexpr, GROUP: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_I: tl.constexpr,
):  # fmt: skip
    """One program owns BLOCK_N rows of BLOCK_O outputs.

    y = act(pre),  pre = scale (W o M) x + bias + addend.
    The backward pass keeps y or, with KEEP, pre.
    """
    dtype: tl.constexpr = tl.float64 if x_ptr.dtype.element_ty == tl.float64 else tl.float32
    out_dtype: tl.constexpr = y_ptr.dtype.element_ty
    row_block, out_block = group_blocks(tl.program_id(0), tl.cdiv(n_rows, BLOCK_N), tl.cdiv(n_out, BLOCK_O), GROUP)
    row = row_block.to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    o = out_block * BLOCK_O + tl.arange(0, BLOCK_O)
    exists, inside = row < n_rows, o < n_out
    tiles_ptr, n_whole, n_part = row_of(lists_ptr, out_block, n_in, BLOCK_I)
    x_ptrs = x_ptr + row[:, None] * stride_x
    # Outputs that do not exist repeat the first one: loads need no mask for them.
    weight_ptrs = weight_ptr + tl.where(inside, o, 0)[None, :].to(tl.int64) * stride_weight
    acc = tl.zeros((BLOCK_N, BLOCK_O), dtype)
    acc = _forward_tiles(
        acc, tiles_ptr, n_whole, x_ptrs, exists, weight_ptrs, in_degrees_ptr, out_degrees_ptr, o, n_in, n_out,
        False, PRECISION, BLOCK_I,
    )  # fmt: skip
    acc = _forward_tiles(
        acc, tiles_ptr + n_whole, n_part, x_ptrs, exists, weight_ptrs, in_degrees_ptr, out_degrees_ptr, o, n_in, n_out,
        True, PRECISION, BLOCK_I,
    )  # fmt: skip
    if HAS_SCALE:
        acc *= tl.load(scale_ptr + o, inside, 0.0).to(dtype)[None, :]
    if HAS_BIAS:
        acc += tl.load(bias_ptr + o, inside, 0.0).to(dtype)[None, :]
    owned = exists[:, None] & inside[None, :]
    at = row[:, None] * n_out + o[None, :]
    if HAS_ADDEND:
        acc += tl.load(addend_ptr + row[:, None] * stride_addend + o[None, :], owned, 0.0).to(dtype)
    if KEEP:
        tl.store(pre_ptr + at, acc, owned)
    tl.store(y_ptr + at, activate(acc, ACTIVATION).to(out_dtype), owned)


def masked_layer(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    weight_scale: Tensor | None,
    addend: Tensor | None,
    in_degrees: Tensor,
    out_degrees: Tensor,
    activation: str,
    keep: bool,
    y: Tensor | None = None,
    pre: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """(y, pre) of pre = scale (W o M) x + bias + addend, pre in float32 or float64; it is empty without `keep`.

    They are written to contiguous memory where this is given.
    """
    (n, inputs), outputs = x.shape, weight.shape[0]
    y = x.new_empty((n, outputs)) if y is None else y
    if pre is None:
        pre = x.new_empty((n, outputs), dtype=compute_dtype(x.dtype)) if keep else x.new_empty(0)
    numbers = n, inputs, outputs, x.stride(0), weight.stride(0), 0 if addend is None else addend.stride(0)
    has = bias is not None, weight_scale is not None, addend is not None
    plan, tile = _plan(x.get_device(), x.dtype, precision(x.dtype), numbers, has, activation, keep)
    lists = tile_lists(in_degrees, out_degrees, 1, tile.inner, tile.columns)
    plan.launch(y, pre, x, weight, bias, weight_scale, addend, lists, in_degrees, out_degrees)
    return y, pre


@by_shape
def _plan(
    device: int,
    dtype: torch.dtype,
    multiplied: str,
    numbers: Sequence[int],
    has: tuple[bool, bool, bool],
    activation: str,
    keep: bool,
) -> tuple[Plan, MatrixTile]:
    n, inputs, outputs, *_ = numbers
    tile, (has_bias, has_scale, has_addend) = choose_tile(n, outputs, dtype, multiplied), has
    plan = Plan(
        device, _masked_linear_fwd_kernel, tile.programs(n, outputs), numbers,
        ACTIVATION=activation, HAS_BIAS=has_bias, HAS_SCALE=has_scale, HAS_ADDEND=has_addend, KEEP=keep,
        PRECISION=multiplied, GROUP=GROUP, BLOCK_N=tile.rows, BLOCK_O=tile.columns, BLOCK_I=tile.inner,
        **product_options(tile, dtype, (inputs, outputs), device, activation, has_addend),
    )  # fmt: skip
    return plan, tile


def masked_linear_fwd(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    weight_scale: Tensor | None,
    in_degrees: Tensor,
    out_degrees: Tensor,
    activation: str,
    keep: bool,
) -> tuple[Tensor, Tensor]:
    """y (N, O) of x (N, I), and with `keep` the pre-activation where the gradient needs it; empty otherwise."""
    keep = keep and activation in OF_PRE_ACTIVATION
    return masked_layer(x, weight, bias, weight_scale, None, in_degrees, out_degrees, activation, keep)


def aot_cases() -> list[AotCase]:
    cases = []
    for dtype, inputs, outputs, activation, scaled in (
        (torch.float32, 1920, 1920, "elu", True),
        (torch.float32, 63, 65, "tanh", False),
        (torch.bfloat16, 1920, 1920, "identity", False),
        (torch.bfloat16, 512, 512, "gelu", True),
        (torch.float16, 64, 512, "relu", False),
        (torch.float64, 64, 64, "softplus", False),
    ):
        n, name = 16384, f"{str(dtype)[6:]}, {inputs} -> {outputs}, {activation}"
        x, weight, vector = (meta(*shape, dtype=dtype) for shape in ((n, inputs), (outputs, inputs), (outputs,)))
        degrees = (meta(inputs, dtype=torch.int64), meta(outputs, dtype=torch.int64))
        arguments = (x, weight, vector, vector if scaled else None, *degrees, activation, True)
        cases.append(AotCase(name, masked_linear_fwd, arguments))
        if dtype == torch.float32 and inputs % 64 == 0:
            cases.append(AotCase(name.replace("float32", "tf32"), in_tf32(masked_linear_fwd), arguments))
    return cases
