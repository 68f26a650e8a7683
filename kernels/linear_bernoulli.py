"""Log-likelihood of binary data under the logits of a dense layer, and its gradients, a chunk of rows at a time.

The products are those of the library behind torch.mm, which no kernel here beats; the kernels read a chunk's logits,
which the cache still holds, and write one number for each row, or their gradient in their place.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as TF
import triton
import triton.language as tl
from torch import Tensor

from ._activations import sigmoid
from ._launch import AotCase, Plan, by_shape, compute_dtype, meta

# Logits of a chunk: 16 MB in float32 stay in the second-level cache.
_CHUNK = 1 << 22
_BLOCK = 1024


@triton.jit(do_not_specialize=["first_row", "points", "inner"])
def _log_prob_kernel(
    log_p_ptr, logits_ptr, x_ptr, first_row, points, inner, D, stride_xn, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program owns one row: log_p = sum of x l - softplus(l)."""
    dtype: tl.constexpr = log_p_ptr.dtype.element_ty
    row = tl.program_id(0).to(tl.int64)
    point = (first_row + row) // inner % points
    total = tl.zeros([BLOCK], dtype)
    for begin in range(0, D, BLOCK):
        column = begin + tl.arange(0, BLOCK)
        mask = column < D
        logit = tl.load(logits_ptr + row * D + column, mask, 0.0).to(dtype)
        x = tl.load(x_ptr + point * stride_xn + column, mask, 0.0)
        tail = tl.exp(-tl.abs(logit))
        # log(1 + tail) without the rounding of the sum (Kahan).
        above = 1.0 + tail
        rest = tl.where(above == 1.0, tail, tl.log(above) * (tail / tl.where(above == 1.0, 1.0, above - 1.0)))
        total += tl.where(mask, x * logit - tl.maximum(logit, 0.0, propagate_nan=tl.PropagateNan.ALL) - rest, 0.0)
    tl.store(log_p_ptr + first_row + row, tl.sum(total, 0))


@triton.jit(do_not_specialize=["first_row", "points", "inner"])
def _gradient_kernel(
    logits_ptr, d_log_p_ptr, x_ptr, first_row, points, inner, D, stride_xn, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program owns one row, and replaces its logits by d_log_p (x - sigmoid(l))."""
    dtype: tl.constexpr = d_log_p_ptr.dtype.element_ty
    row = tl.program_id(0).to(tl.int64)
    point = (first_row + row) // inner % points
    upstream = tl.load(d_log_p_ptr + first_row + row)
    for begin in range(0, D, BLOCK):
        column = begin + tl.arange(0, BLOCK)
        mask = column < D
        at = logits_ptr + row * D + column
        logit = tl.load(at, mask, 0.0).to(dtype)
        x = tl.load(x_ptr + point * stride_xn + column, mask, 0.0)
        tl.store(at, (upstream * (x - sigmoid(logit))).to(logits_ptr.dtype.element_ty), mask)


def _chunks(rows: int, pixels: int) -> Iterator[slice]:
    step = max(1, _CHUNK // pixels)
    return (slice(begin, min(begin + step, rows)) for begin in range(0, rows, step))


def _block(pixels: int, dtype: torch.dtype) -> int:
    # In double precision more of them would not fit in the registers.
    most = _BLOCK // 4 if dtype == torch.float64 else _BLOCK
    return min(most, triton.next_power_of_2(pixels))


@by_shape
def _plan(
    device: int,
    dtypes: tuple[torch.dtype, torch.dtype],
    is_backward: bool,
    rows: int,
    first_row: int,
    points: int,
    inner: int,
    pixels: int,
    stride_x: int,
) -> Plan:
    """Of some rows of logits; `dtypes` are those of logits and of points."""
    kernel = _gradient_kernel if is_backward else _log_prob_kernel
    numbers = first_row, points, inner, pixels, stride_x
    return Plan(device, kernel, rows, numbers, BLOCK=_block(pixels, dtypes[0]))


def linear_bernoulli_fwd(h: Tensor, weight: Tensor, bias: Tensor | None, x: Tensor, inner: int) -> Tensor:
    """log_p (M)."""
    pixels = weight.shape[0]
    log_p = h.new_empty(h.shape[0], dtype=compute_dtype(h.dtype))
    of_x = x.shape[0], inner, pixels, x.stride(0)
    for rows in _chunks(h.shape[0], pixels):
        logits = TF.linear(h[rows], weight, bias)
        dtypes, count = (logits.dtype, x.dtype), logits.shape[0]
        _plan(h.get_device(), dtypes, False, count, rows.start, *of_x).launch(log_p, logits, x)
    return log_p


def linear_bernoulli_bwd(
    d_log_p: Tensor, h: Tensor, weight: Tensor, bias: Tensor | None, x: Tensor, inner: int, needs: Sequence[bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """The gradients of h, weight and bias that are needed; chunks are summed up in the dtype of the computation."""
    pixels, wide = weight.shape[0], compute_dtype(h.dtype)
    d_h = torch.empty_like(h, memory_format=torch.contiguous_format) if needs[0] else None
    d_weight = weight.new_zeros(weight.shape, dtype=wide) if needs[1] else None
    d_bias = weight.new_zeros(pixels, dtype=wide) if needs[2] else None
    of_x = x.shape[0], inner, pixels, x.stride(0)
    for rows in _chunks(h.shape[0], pixels):
        g = TF.linear(h[rows], weight, bias)
        dtypes, count = (g.dtype, x.dtype), g.shape[0]
        _plan(h.get_device(), dtypes, True, count, rows.start, *of_x).launch(g, d_log_p, x)
        if d_h is not None:
            torch.mm(g, weight, out=d_h[rows])
        if d_weight is not None:
            d_weight += g.t() @ h[rows]
        if d_bias is not None:
            d_bias += g.sum(0, dtype=wide)
    return d_h, None if d_weight is None else d_weight.to(h.dtype), None if d_bias is None else d_bias.to(h.dtype)


def aot_cases() -> list[AotCase]:
    cases = []
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        rows, points, features, pixels = 3200, 100, 400, 784
        h, weight, bias = (
            meta(rows, features, dtype=dtype),
            meta(pixels, features, dtype=dtype),
            meta(pixels, dtype=dtype),
        )
        x, d_log_p = meta(points, pixels, dtype=compute_dtype(dtype)), meta(rows, dtype=compute_dtype(dtype))
        name = str(dtype)[6:]
        cases += [
            AotCase(name, linear_bernoulli_fwd, (h, weight, bias, x, 1)),
            AotCase(name, linear_bernoulli_bwd, (d_log_p, h, weight, bias, x, 1, [True] * 3)),
        ]
    return cases
