"""Log-likelihood of images under discretised mixtures of logistics, and its gradient."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._activations import expm1
from ._launch import AotCase, Plan, by_shape, compute_dtype, meta, warp_size
from ._tiles import ceil_div, next_power_of_2
from ._vecmath import exp, exp_by_sums

_LEAST_LOG_SCALE = tl.constexpr(-7.0)
# Pixels of a program, one for each thread: the terms of a component fill its registers.
_BLOCK = 128


@triton.jit
def _tanh(x):
    """tanh x to an ulp: far from a mean, the distance in scales multiplies the error of the mean by thousands."""
    size = tl.abs(x)
    if x.dtype == tl.float64:
        m = expm1(-2.0 * size)
        large = -m / (2.0 + m)
        return tl.where(x < 0.0, -large, large)
    tail = exp_by_sums(-2.0 * size)
    reciprocal = 1.0 / (1.0 + tail)
    reciprocal += reciprocal * (1.0 - (1.0 + tail) * reciprocal)  # what the division lost
    large = 1.0 - (tail + tail) * reciprocal
    square = x * x
    p = square * -3.5844428930431604e-04 + 2.301337430253625e-03
    p = p * square - 7.946069352328777e-03
    p = p * square + 2.1486632525920868e-02
    p = p * square - 5.387979373335838e-02
    p = p * square + 1.3332344591617584e-01
    p = p * square - 3.3333295583724976e-01
    return tl.where(size < 1.0, x + x * (square * p), tl.where(x < 0.0, -large, large))


@triton.jit
def _decay(d):
    """e^-d, and (1 - e^-d) / d, the mean of e^-t over [0, d]."""
    if d.dtype == tl.float64:
        lost = -expm1(-d)
        some = d > 0.0
        return 1.0 - lost, tl.where(some, lost / tl.where(some, d, 1.0), 1.0)
    end = exp(-d, tl.float32)
    p = d * -2.48015873015873e-05 + 1.984126984126984e-04
    p = p * d - 1.388888888888889e-03
    p = p * d + 8.333333333333333e-03
    p = p * d - 4.166666666666667e-02
    p = p * d + 1.666666666666667e-01
    p = p * d - 0.5
    p = p * d + 1.0
    wide = d > 0.3
    return end, tl.where(wide, (1.0 - end) / tl.where(wide, d, 1.0), p)


@triton.jit
def _bin(x, mean, log_scale, half, log_width):
    """(linear, ratio, d_mean, d_log_scale): the log-probability of the bin around x is linear + log(ratio).

    With a the distance from mean to bin and h half its width, both in scales: log sigma(h - a) + log sigma(h + a) +
    log(1 - e^-2h). For a bin that reaches to infinity, a points there, and only the first term is left.
    """
    bottom = x < half - 1.0
    inside = (bottom | (x > 1.0 - half)) == 0
    clamped = tl.where(log_scale < _LEAST_LOG_SCALE, _LEAST_LOG_SCALE, log_scale)
    inverse_scale = exp_by_sums(-clamped)
    u, h = inverse_scale * (x - mean), inverse_scale * half
    a = tl.where(bottom, -u, tl.where(inside, tl.abs(u), u))
    near = a - h
    near_tail = exp(-tl.abs(near), tl.float32)
    far_tail = tl.where(inside, exp(-tl.abs(a + h), tl.float32), 0.0)
    across, mean_density = _decay(h + h)
    mean_density = tl.where(inside, mean_density, 1.0)
    reciprocal = 1.0 / ((1.0 + near_tail) * (1.0 + far_tail))
    linear = tl.where(inside, log_width - clamped, 0.0) - tl.where(near < 0.0, 0.0, near)
    # sigma(a - h) and sigma(-a - h)
    d_near = tl.where(near < 0.0, near_tail, 1.0) * (1.0 + far_tail) * reciprocal
    d_far = far_tail * (1.0 + near_tail) * reciprocal
    d_a = d_far - d_near
    narrowed = tl.where(inside, across / mean_density, 0.0)
    d_log_scale = tl.where(log_scale < _LEAST_LOG_SCALE, 0.0, -(a * d_a + (h * (d_near + d_far) + narrowed)))
    towards = tl.where(bottom | ((u < 0.0) & inside), d_a, -d_a)
    return linear, mean_density * reciprocal, inverse_scale * towards, d_log_scale


@triton.jit
def _component(
    params, stride, k, K, exists, red, green, blue, half, log_width, CHANNELS: tl.constexpr, dtype: tl.constexpr
):
    """Component k: its weight logit, log-probability, and the derivatives of the latter, channel by channel."""
    step = tl.cast(K, tl.int64) * stride
    params += k * stride
    logit = tl.load(params, exists, 0.0).to(dtype)
    mean = tl.load(params + step, exists, 0.0).to(dtype)
    log_scale = tl.load(params + (1 + CHANNELS) * step, exists, 0.0).to(dtype)
    linear, ratio, m1, s1 = _bin(red, mean, log_scale, half, log_width)
    m2, m3, s2, s3, c1, c2, c3 = m1, m1, s1, s1, m1, m1, m1
    if CHANNELS == 3:
        t1 = _tanh(tl.load(params + 7 * step, exists, 0.0).to(dtype))
        t2 = _tanh(tl.load(params + 8 * step, exists, 0.0).to(dtype))
        t3 = _tanh(tl.load(params + 9 * step, exists, 0.0).to(dtype))
        mean = tl.load(params + 2 * step, exists, 0.0).to(dtype) + t1 * red
        log_scale = tl.load(params + 5 * step, exists, 0.0).to(dtype)
        linear_green, ratio_green, m2, s2 = _bin(green, mean, log_scale, half, log_width)
        mean = tl.load(params + 3 * step, exists, 0.0).to(dtype) + (t2 * red + t3 * green)
        log_scale = tl.load(params + 6 * step, exists, 0.0).to(dtype)
        linear_blue, ratio_blue, m3, s3 = _bin(blue, mean, log_scale, half, log_width)
        linear, ratio = linear + (linear_green + linear_blue), ratio * (ratio_green * ratio_blue)
        c1, c2, c3 = (1.0 - t1 * t1) * red * m2, (1.0 - t2 * t2) * red * m3, (1.0 - t3 * t3) * green * m3
    return logit, linear + tl.log(ratio), m1, m2, m3, s1, s2, s3, c1, c2, c3


@triton.jit
def _add_exp(largest, total, x):
    """Adds a term to a sum of exponentials. `total` counts in units of e^largest, and is 0 before the first term."""
    # Infinities are compared, not subtracted.
    e = tl.where(x == largest, 1.0, exp(-tl.abs(x - largest), tl.float32))
    higher = (x > largest) | (total == 0.0)
    return tl.where(higher, x, largest), tl.where(higher, total * e + 1.0, total + e)


@triton.jit
def _offset(pixel, width, stride_h, stride_w, FLAT: tl.constexpr):
    """The offset of a pixel within its map. FLAT says that rows follow each other without a gap."""
    return pixel * stride_w if FLAT else (pixel // width) * stride_h + (pixel % width) * stride_w


@triton.jit
def _sums(
    x, stride_xc, params, stride_pc, K, exists, half, log_width,
    CHANNELS: tl.constexpr, BLOCK: tl.constexpr, dtype: tl.constexpr,
):  # fmt: skip
    """The pixels, and two log-sum-exps as (largest, total): of the logits, and of (logit - largest logit) + log p."""
    red = tl.load(x, exists, 0.0).to(dtype)
    green, blue = red, red
    if CHANNELS == 3:
        green = tl.load(x + stride_xc, exists, 0.0).to(dtype)
        blue = tl.load(x + 2 * stride_xc, exists, 0.0).to(dtype)
    zero = tl.zeros((BLOCK,), dtype)
    largest_logit, weights, largest, total = zero, zero, zero, zero
    for k in range(K):
        largest_logit, weights = _add_exp(
            largest_logit, weights, tl.load(params + k * stride_pc, exists, 0.0).to(dtype)
        )
    # The largest logit is subtracted before log p is added: logits may be large, and log p small.
    for k in range(K):
        logit, log_p, _, _, _, _, _, _, _, _, _ = _component(
            params, stride_pc, k, K, exists, red, green, blue, half, log_width, CHANNELS, dtype
        )
        largest, total = _add_exp(largest, total, (logit - largest_logit) + log_p)
    return red, green, blue, largest_logit, weights, largest, total


@triton.jit(do_not_specialize=["levels"])
def _logistic_mixture_fwd_kernel(
    sums_ptr, x_ptr, params_ptr, pixels, width, K, levels,
    stride_xn, stride_xc, stride_xh, stride_xw, stride_pn, stride_pc, stride_ph, stride_pw,
    CHANNELS: tl.constexpr, FLAT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program owns BLOCK pixels of an image, and walks their components.

    sum over pixels of log sum_k e^logit_k p_k - log sum_k e^logit_k,  p_k = product over channels of the bins.
    The backward pass keeps the inputs.
    """
    dtype: tl.constexpr = sums_ptr.dtype.element_ty
    blocks = tl.cdiv(pixels, BLOCK)
    image = (tl.program_id(0) // blocks).to(tl.int64)
    pixel = ((tl.program_id(0) % blocks) * BLOCK + tl.arange(0, BLOCK)).to(tl.int64)
    exists = pixel < pixels
    half = 1.0 / tl.cast(levels - 1, dtype)
    x = x_ptr + image * stride_xn + _offset(pixel, width, stride_xh, stride_xw, FLAT)
    params = params_ptr + image * stride_pn + _offset(pixel, width, stride_ph, stride_pw, FLAT)
    _, _, _, _, weights, largest, total = _sums(
        x, stride_xc, params, tl.cast(stride_pc, tl.int64), K, exists, half, tl.log(2.0 * half), CHANNELS, BLOCK, dtype
    )
    log_prob = largest + tl.log(total / weights)
    tl.store(sums_ptr + tl.program_id(0), tl.sum(tl.where(exists, log_prob, 0.0), 0))


@triton.jit(do_not_specialize=["levels"])
def _logistic_mixture_bwd_kernel(
    d_params_ptr, d_log_prob_ptr, x_ptr, params_ptr, pixels, width, K, levels,
    stride_xn, stride_xc, stride_xh, stride_xw, stride_pn, stride_pc, stride_ph, stride_pw,
    stride_dn, stride_dc, stride_dh, stride_dw,
    CHANNELS: tl.constexpr, FLAT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program owns BLOCK pixels of an image, and walks their components twice: sums first, then gradients.

    share_k = e^logit_k p_k / sum,  d_logit_k = share_k - weight_k,  others: share_k times the derivative of log p_k.
    """
    dtype: tl.constexpr = d_log_prob_ptr.dtype.element_ty
    out_dtype: tl.constexpr = d_params_ptr.dtype.element_ty
    blocks = tl.cdiv(pixels, BLOCK)
    image = (tl.program_id(0) // blocks).to(tl.int64)
    pixel = ((tl.program_id(0) % blocks) * BLOCK + tl.arange(0, BLOCK)).to(tl.int64)
    exists = pixel < pixels
    half = 1.0 / tl.cast(levels - 1, dtype)
    log_width = tl.log(2.0 * half)
    x = x_ptr + image * stride_xn + _offset(pixel, width, stride_xh, stride_xw, FLAT)
    params = params_ptr + image * stride_pn + _offset(pixel, width, stride_ph, stride_pw, FLAT)
    stride_params = tl.cast(stride_pc, tl.int64)
    red, green, blue, largest_logit, weights, largest, total = _sums(
        x, stride_xc, params, stride_params, K, exists, half, log_width, CHANNELS, BLOCK, dtype
    )
    d_log_prob = tl.load(d_log_prob_ptr + image)
    per_weight, per_share = d_log_prob / weights, d_log_prob / total
    stride_d = tl.cast(stride_dc, tl.int64)
    step = tl.cast(K, tl.int64) * stride_d
    to = d_params_ptr + image * stride_dn + _offset(pixel, width, stride_dh, stride_dw, FLAT)
    for k in range(K):
        logit, log_p, m1, m2, m3, s1, s2, s3, c1, c2, c3 = _component(
            params, stride_params, k, K, exists, red, green, blue, half, log_width, CHANNELS, dtype
        )
        logit -= largest_logit
        share = exp(logit + log_p - largest, tl.float32) * per_share
        d_logit = share - exp(logit, tl.float32) * per_weight
        here = to + k * stride_d
        tl.store(here, d_logit.to(out_dtype), exists)
        tl.store(here + step, (m1 * share).to(out_dtype), exists)
        tl.store(here + (1 + CHANNELS) * step, (s1 * share).to(out_dtype), exists)
        if CHANNELS == 3:
            tl.store(here + 2 * step, (m2 * share).to(out_dtype), exists)
            tl.store(here + 3 * step, (m3 * share).to(out_dtype), exists)
            tl.store(here + 5 * step, (s2 * share).to(out_dtype), exists)
            tl.store(here + 6 * step, (s3 * share).to(out_dtype), exists)
            tl.store(here + 7 * step, (c1 * share).to(out_dtype), exists)
            tl.store(here + 8 * step, (c2 * share).to(out_dtype), exists)
            tl.store(here + 9 * step, (c3 * share).to(out_dtype), exists)


def _is_flat(t: Tensor) -> bool:
    return t.shape[2] == 1 or t.stride(2) == t.shape[3] * t.stride(3)


def _tile(pixels: int) -> tuple[int, int]:
    """Pixels and warps of a program."""
    block = min(next_power_of_2(pixels), _BLOCK)
    return block, max(block // warp_size(), 1)


def logistic_mixture_fwd(x: Tensor, params: Tensor, levels: int) -> Tensor:
    """x (N, C, H, W), float32 or float64, and params (N, 3K or 10K, H, W) of any strides to log_prob (N,)."""
    n, _, height, width = x.shape
    block, _ = _tile(height * width)
    sums = x.new_empty((n, ceil_div(height * width, block)), dtype=compute_dtype(params.dtype))
    strides, is_flat = (*x.stride(), *params.stride()), _is_flat(x) and _is_flat(params)
    plan = _plan(x.get_device(), (x.dtype, params.dtype), x.shape, params.shape[1], strides, levels, is_flat, False)
    plan.launch(sums, x, params)
    return sums.sum(1)


@by_shape
def _plan(
    device: int,
    dtypes: tuple[torch.dtype, torch.dtype],
    of_x: Sequence[int],
    maps: int,
    strides: Sequence[int],
    levels: int,
    is_flat: bool,
    is_backward: bool,
) -> Plan:
    """`dtypes` are those of x and its parameters, `strides` those of both and of the gradient."""
    n, channels, height, width = of_x
    pixels = height * width
    block, warps = _tile(pixels)
    return Plan(
        device, _logistic_mixture_bwd_kernel if is_backward else _logistic_mixture_fwd_kernel,
        n * ceil_div(pixels, block), (pixels, width, maps // (10 if channels == 3 else 3), levels, *strides),
        CHANNELS=channels, FLAT=is_flat, BLOCK=block, num_warps=warps,
    )  # fmt: skip


def logistic_mixture_bwd(d_log_prob: Tensor, x: Tensor, params: Tensor, levels: int) -> Tensor:
    """The gradient to params, channels last where they are; d_log_prob is contiguous."""
    (n, _, height, width), maps = x.shape, params.shape[1]
    if params.stride(1) == 1:
        d_params = params.new_empty((n, height, width, maps)).permute(0, 3, 1, 2)
    else:
        d_params = params.new_empty(params.shape)
    strides, is_flat = (*x.stride(), *params.stride(), *d_params.stride()), _is_flat(x) and _is_flat(params)
    plan = _plan(x.get_device(), (x.dtype, params.dtype), x.shape, maps, strides, levels, is_flat, True)
    plan.launch(d_params, d_log_prob, x, params)
    return d_params


def aot_cases() -> list[AotCase]:
    cases = []
    for dtype, channels, components, last in (
        (torch.float32, 3, 10, False),
        (torch.float32, 3, 10, True),
        (torch.bfloat16, 3, 10, False),
        (torch.float16, 1, 10, True),
        (torch.float32, 1, 1, False),
        (torch.float64, 3, 5, False),
    ):
        maps = (10 if channels == 3 else 3) * components
        x, params = meta(256, channels, 32, 32, dtype=compute_dtype(dtype)), meta(256, maps, 32, 32, dtype=dtype)
        if last:
            x, params = (t.to(memory_format=torch.channels_last) for t in (x, params))
        name = f"{str(dtype)[6:]}, C = {channels}, K = {components}{', last' if last else ''}"
        cases += [
            AotCase(name, logistic_mixture_fwd, (x, params, 256)),
            AotCase(name, logistic_mixture_bwd, (meta(256, dtype=compute_dtype(dtype)), x, params, 256)),
        ]
    return cases
