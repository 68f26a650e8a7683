"""Log-likelihood under a decoder of dense layers, its gradient to the input, and products of its Hessian and vectors.

The products are those of the library behind torch.mm, which no kernel here beats. Rows of values and, behind them,
of their tangents pass the layers in one matrix, a chunk at a time. The kernels do what is between two products.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as TF
import triton
import triton.language as tl
from torch import Tensor

from ._activations import OF_PRE_ACTIVATION, activate, curvature, sigmoid, through
from ._launch import AotCase, Plan, by_shape, compute_dtype, meta

# Numbers of a chunk's widest layer: 16 MB in float32 stay in the second-level cache.
_CHUNK = 1 << 22
_BLOCK = 1024


@triton.jit(do_not_specialize=["count"])
def _activate_kernel(
    pre_ptr, out_ptr, count, ACTIVATION: tl.constexpr, OF_PRE: tl.constexpr, HAS_TANGENTS: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """One program owns a block of numbers: h = act(p), and of the tangents t act'(p)."""
    dtype: tl.constexpr = tl.float64 if out_ptr.dtype.element_ty == tl.float64 else tl.float32
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = at < count
    pre = tl.load(pre_ptr + at, mask, 0.0).to(dtype)
    value = activate(pre, ACTIVATION)
    tl.store(out_ptr + at, value.to(out_ptr.dtype.element_ty), mask)
    if HAS_TANGENTS:
        tangent = tl.load(pre_ptr + count + at, mask, 0.0).to(dtype)
        change = through(tangent, pre if OF_PRE else value, ACTIVATION)
        tl.store(out_ptr + count + at, change.to(out_ptr.dtype.element_ty), mask)


@triton.jit(do_not_specialize=["count"])
def _through_kernel(
    gradient_ptr, pre_ptr, count, ACTIVATION: tl.constexpr, OF_PRE: tl.constexpr, HAS_TANGENTS: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """One program owns a block of numbers, and replaces gradients a by a act'(p), their tangents b by b act'(p) +
    a act''(p) t."""
    dtype: tl.constexpr = tl.float64 if pre_ptr.dtype.element_ty == tl.float64 else tl.float32
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = at < count
    pre = tl.load(pre_ptr + at, mask, 0.0).to(dtype)
    kept = pre if OF_PRE else activate(pre, ACTIVATION)
    gradient = tl.load(gradient_ptr + at, mask, 0.0).to(dtype)
    tl.store(gradient_ptr + at, through(gradient, kept, ACTIVATION).to(gradient_ptr.dtype.element_ty), mask)
    if HAS_TANGENTS:
        change = through(tl.load(gradient_ptr + count + at, mask, 0.0).to(dtype), kept, ACTIVATION)
        if ACTIVATION != "relu" and ACTIVATION != "identity":
            tangent = tl.load(pre_ptr + count + at, mask, 0.0).to(dtype)
            change += gradient * curvature(kept, ACTIVATION) * tangent
        tl.store(gradient_ptr + count + at, change.to(gradient_ptr.dtype.element_ty), mask)


@triton.jit(do_not_specialize=["rows", "first_row", "points", "inner"])
def _residual_kernel(
    log_p_ptr, logits_ptr, x_ptr, d_log_p_ptr, rows, first_row, points, inner, P, stride_xn, GAUSSIAN: tl.constexpr,
    HAS_TANGENTS: tl.constexpr, HAS_UPSTREAM: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program owns one row: log_p; logits become x - sigmoid(l), their tangents t become -sigmoid'(l) t.

    Under the Gaussian likelihood these are x - l and -t. Then d_log_p times the first is added to the second.
    """
    dtype: tl.constexpr = log_p_ptr.dtype.element_ty
    row = tl.program_id(0).to(tl.int64)
    point = (first_row + row) // inner % points
    total = tl.zeros([BLOCK], dtype)
    for begin in range(0, P, BLOCK):
        column = begin + tl.arange(0, BLOCK)
        mask = column < P
        at = logits_ptr + row * P + column
        logit = tl.load(at, mask, 0.0).to(dtype)
        x = tl.load(x_ptr + point * stride_xn + column, mask, 0.0)
        if GAUSSIAN:
            residual = x - logit
            term = -0.5 * residual * residual
            slope = tl.full(logit.shape, -1.0, dtype)
        else:
            tail = tl.exp(-tl.abs(logit))
            # log(1 + tail) without the rounding of the sum (Kahan).
            above = 1.0 + tail
            rest = tl.where(above == 1.0, tail, tl.log(above) * (tail / tl.where(above == 1.0, 1.0, above - 1.0)))
            term = x * logit - tl.maximum(logit, 0.0, propagate_nan=tl.PropagateNan.ALL) - rest
            residual = x - sigmoid(logit)
            slope = -(tail / (above * above))
        total += tl.where(mask, term, 0.0)
        tl.store(at, residual.to(logits_ptr.dtype.element_ty), mask)
        if HAS_TANGENTS:
            behind = at + rows.to(tl.int64) * P
            tangent = tl.load(behind, mask, 0.0).to(dtype)
            change = slope * tangent
            if HAS_UPSTREAM:
                change += tl.load(d_log_p_ptr + first_row + row) * residual
            tl.store(behind, change.to(logits_ptr.dtype.element_ty), mask)
    tl.store(log_p_ptr + first_row + row, tl.sum(total, 0))


def _chunks(rows: int, widest: int) -> Iterator[slice]:
    step = max(1, _CHUNK // widest)
    return (slice(begin, min(begin + step, rows)) for begin in range(0, rows, step))


def _block(dtype: torch.dtype) -> int:
    # In double precision more of them would not fit in the registers.
    return _BLOCK // 4 if dtype == torch.float64 else _BLOCK


@by_shape
def _plan(device: int, dtype: torch.dtype, is_backward: bool, count: int, activation: str, has_tangents: bool) -> Plan:
    kernel, block = _through_kernel if is_backward else _activate_kernel, _block(dtype)
    return Plan(
        device, kernel, triton.cdiv(count, block), (count,),
        ACTIVATION=activation, OF_PRE=activation in OF_PRE_ACTIVATION, HAS_TANGENTS=has_tangents, BLOCK=block,
    )  # fmt: skip


@by_shape
def _plan_residual(
    device: int,
    rows: int,
    first_row: int,
    of_x: tuple[int, int, int, int],
    dtypes: tuple[torch.dtype, torch.dtype],
    likelihood: str,
    has_tangents: bool,
    has_upstream: bool,
) -> Plan:
    """`of_x` are its points, the rows that share one, pixels and stride; `dtypes` are those of logits and of x."""
    return Plan(
        device, _residual_kernel, rows, (rows, first_row, *of_x),
        GAUSSIAN=likelihood == "gaussian", HAS_TANGENTS=has_tangents, HAS_UPSTREAM=has_upstream,
        BLOCK=min(_block(dtypes[0]), triton.next_power_of_2(of_x[2])),
    )  # fmt: skip


def _multiply(h: Tensor, weight: Tensor, bias: Tensor | None, rows: int) -> Tensor:
    """W h; the bias belongs to the first ``rows`` alone, not to tangents."""
    if h.shape[0] == rows:
        return TF.linear(h, weight, bias)
    out = h.new_empty(h.shape[0], weight.shape[0])
    if bias is None:
        torch.mm(h[:rows], weight.t(), out=out[:rows])
    else:
        torch.addmm(bias, h[:rows], weight.t(), out=out[:rows])
    torch.mm(h[rows:], weight.t(), out=out[rows:])
    return out


def _run(
    z: Tensor,
    v: Tensor | None,
    d_log_p: Tensor | None,
    layers: Sequence[Tensor],
    has_bias: Sequence[bool],
    x: Tensor,
    inner: int,
    activation: str,
    likelihood: str,
) -> tuple[Tensor, list[Tensor]]:
    """log_p (M), and gradient (M, D); for a vector ``v`` also Hessian v + d_log_p gradient (M, D)."""
    weights, rest = layers[: len(has_bias)], iter(layers[len(has_bias) :])
    biases = [next(rest) if there else None for there in has_bias]
    wide, streams = compute_dtype(z.dtype), (z,) if v is None else (z, v)
    log_p = z.new_empty(z.shape[0], dtype=wide)
    found = [torch.empty_like(z, memory_format=torch.contiguous_format) for _ in streams]
    widest = len(streams) * max(weight.shape[0] for weight in weights)
    device, of_x = z.get_device(), (x.shape[0], inner, weights[-1].shape[0], x.stride(0))
    options = activation, v is not None
    of_residual = of_x, (z.dtype, x.dtype), likelihood, v is not None, d_log_p is not None
    for chunk in _chunks(z.shape[0], widest):
        rows = chunk.stop - chunk.start
        h = z[chunk] if v is None else torch.cat([z[chunk], v[chunk]])
        before: list[Tensor] = []
        for weight, bias in zip(weights[:-1], biases, strict=False):
            before.append(_multiply(h, weight, bias, rows))
            h, count = torch.empty_like(before[-1]), rows * weight.shape[0]
            _plan(device, z.dtype, False, count, *options).launch(before[-1], h)
        g = _multiply(h, weights[-1], biases[-1], rows)
        _plan_residual(device, rows, chunk.start, *of_residual).launch(log_p, g, x, d_log_p)
        for weight, pre in zip(weights[:0:-1], before[::-1], strict=True):
            g, count = g @ weight, rows * weight.shape[1]
            _plan(device, z.dtype, True, count, *options).launch(g, pre)
        g = g @ weights[0]
        for to, part in zip(found, g.split(rows), strict=True):
            to[chunk] = part
    return log_p, found


def latent_gradient_fwd(
    z: Tensor, layers: Sequence[Tensor], has_bias: Sequence[bool], x: Tensor, inner: int, activation: str,
    likelihood: str,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """log_p (M), gradient (M, D)."""
    log_p, (gradient,) = _run(z, None, None, layers, has_bias, x, inner, activation, likelihood)
    return log_p, gradient


def latent_gradient_bwd(
    d_log_p: Tensor | None, d_gradient: Tensor, z: Tensor, layers: Sequence[Tensor], has_bias: Sequence[bool],
    x: Tensor, inner: int, activation: str, likelihood: str,
) -> Tensor:  # fmt: skip
    """d_z (M, D): Hessian d_gradient + d_log_p gradient."""
    return _run(z, d_gradient, d_log_p, layers, has_bias, x, inner, activation, likelihood)[1][1]


def latent_hessian_product_fwd(
    z: Tensor, v: Tensor, layers: Sequence[Tensor], has_bias: Sequence[bool], x: Tensor, inner: int, activation: str,
    likelihood: str,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """log_p (M), gradient (M, D), product (M, D)."""
    log_p, (gradient, product) = _run(z, v, None, layers, has_bias, x, inner, activation, likelihood)
    return log_p, gradient, product


def aot_cases() -> list[AotCase]:
    cases = []
    rows, points, features, hidden, pixels = 1600, 100, 32, 400, 784
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        z, x = meta(rows, features, dtype=dtype), meta(points, pixels, dtype=compute_dtype(dtype))
        layers = [meta(*shape, dtype=dtype) for shape in ((hidden, features), (pixels, hidden), (hidden,), (pixels,))]
        of_decoder, name = (layers, [True, True], x, 1), str(dtype)[6:]
        cases.append(AotCase(f"{name}, elu", latent_hessian_product_fwd, (z, z, *of_decoder, "elu", "bernoulli")))
        if dtype is torch.float32:
            upstream = (meta(rows), z)
            cases += [
                AotCase(f"{name}, relu", latent_gradient_fwd, (z, *of_decoder, "relu", "gaussian")),
                AotCase(f"{name}, silu", latent_gradient_bwd, (*upstream, z, *of_decoder, "silu", "bernoulli")),
            ]
    return cases
