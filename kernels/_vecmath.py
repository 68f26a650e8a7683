"""Elementary functions in a few instructions, without the slow paths and local memory of libm."""

from __future__ import annotations

import triton
import triton.language as tl

HALF_LOG_2PI = tl.constexpr(0.9189385332046727)
_LOG2_E = tl.constexpr(1.4426950216293335)
_LN_2 = tl.constexpr(0.6931471805599453)


@triton.jit
def exp(x, dtype: tl.constexpr):
    """e^x for a result that will be rounded to `dtype`: about 2 ulp in float32, denormals flushed to 0.

    `tl.exp2` is one instruction; `tl.exp` scales denormals around it, and loses |x| ulp to the product with log2 e.
    """
    if x.dtype == tl.float64:
        return tl.exp(x)
    if dtype != tl.float32:
        return tl.exp2(x * _LOG2_E)
    whole = (x * _LOG2_E + 12582912.0) - 12582912.0  # 1.5 * 2^23 rounds to an integer
    rest = (x - whole * 0.693359375) + whole * 2.12194440e-4
    factor = tl.exp2(rest * _LOG2_E)
    # Infinite x makes this factor NaN, and a very large one makes it infinite; the other factor holds the limit.
    return tl.where(factor > 0.5, tl.minimum(factor, 2.0), 0.5) * tl.exp2(whole)


@triton.jit
def exp_by_sums(x):
    """e^x for x <= 80 to an ulp, without `tl.exp2` and its two: for results whose error something large multiplies."""
    if x.dtype == tl.float64:
        result = tl.exp(x)
    else:
        shifted = x * _LOG2_E + 12582912.0  # 1.5 * 2^23 rounds to an integer
        whole = shifted - 12582912.0
        rest = (x - whole * 0.693359375) + whole * 2.12194440e-4
        p = rest * 1.3815183192491531e-03 + 8.368749171495438e-03
        p = p * rest + 4.1668374091386795e-02
        p = p * rest + 1.666651964187622e-01
        p = p * rest + 4.999999403953552e-01
        power = ((shifted.to(tl.int32, bitcast=True) << 23) + 0x3F800000).to(tl.float32, bitcast=True)
        # Below, the power of two has no exponent. NaN stays NaN.
        result = tl.where(x < -87.0, 0.0, ((p * (rest * rest) + rest) + 1.0) * power)
    return result


@triton.jit
def minus_2_log(u):
    """-2 ln u for normal u in (0, 1]: its exponent, and Cephes' logf on [sqrt(1/2), sqrt(2)) in powers of d."""
    bits = u.to(tl.int32, bitcast=True)
    # After subtraction of the bits of sqrt(1/2), the exponent's carry says on which side of it the mantissa is.
    exponent = (bits - 0x3F3504F3) & -0x800000
    # -2 ln(1 - d / 2) = d + d^2 / 4 + d^3 / 12 + ...
    d = 2.0 - 2.0 * (bits - exponent).to(tl.float32, bitcast=True)
    p = d * 6.872737867524847e-05 + 2.248947275802493e-04
    p = p * d + 4.5613275142386556e-04
    p = p * d + 9.7032351186499e-04
    p = p * d + 2.226456766948104e-03
    p = p * d + 5.2087679505348206e-03
    p = p * d + 1.2500446289777756e-02
    p = p * d + 3.1249992549419403e-02
    p = p * d + 8.33333283662796e-02
    p = p * d + 0.25
    return exponent.to(tl.float32) * (-2.0 * _LN_2 * 1.1920928955078125e-07) + (p * (d * d) + d)


@triton.jit
def cos_sin_quarter(angle):
    """(cos, sin) on [-pi/4, pi/4]: Cephes' cosf and sinf."""
    square = angle * angle
    c = square * 2.443315711809948e-5 - 1.388731625493765e-3
    c = (c * square + 4.166664568298827e-2) * square - 0.5
    s = square * -1.9515295891e-4 + 8.3321608736e-3
    s = s * square - 1.6666654611e-1
    return c * square + 1.0, s * (square * angle) + angle
