"""Activations of masked layers, and their slopes from what the forward pass keeps."""

from __future__ import annotations

import triton
import triton.language as tl

from ._vecmath import exp

# Their slope needs the pre-activation. The slope of the others needs only the output, which backward has anyway.
OF_PRE_ACTIVATION = ("gelu", "silu")

_SQRT_HALF = tl.constexpr(0.7071067811865476)
_INVERSE_SQRT_2PI = tl.constexpr(0.3989422804014327)


@triton.jit
def log1p(x):
    """ln(1 + x) for x >= 0: the quotient undoes the rounding of 1 + x."""
    u = 1.0 + x
    exact = u == 1.0
    return tl.where(exact, x, tl.log(u) * (x / tl.where(exact, 1.0, u - 1.0)))


@triton.jit
def expm1(x):
    """e^x - 1 for x <= 0, exact to a few ulp near 0 too: the quotient undoes the rounding of e^x."""
    u = exp(x, tl.float32)
    exact = u == 1.0
    log_u = tl.where(exact, 1.0, tl.log(tl.where(x > -1.0, u, 0.5)))
    return tl.where(exact, x, tl.where(x > -1.0, (u - 1.0) * (x / log_u), u - 1.0))


@triton.jit
def sigmoid(x):
    e = exp(-tl.abs(x), tl.float32)
    r = 1.0 / (1.0 + e)
    return tl.where(x < 0.0, e * r, r)


@triton.jit
def softplus(x):
    return tl.where(x > 0.0, x, 0.0) + log1p(exp(-tl.abs(x), tl.float32))


@triton.jit
def activate(x, ACTIVATION: tl.constexpr):
    """NaN stays NaN: the comparisons pass it on."""
    if ACTIVATION == "relu":
        return tl.where(x < 0.0, 0.0, x)
    elif ACTIVATION == "elu":
        return tl.where(x > 0.0, x, expm1(tl.where(x > 0.0, 0.0, x)))
    elif ACTIVATION == "tanh":
        m = expm1(-2.0 * tl.abs(x))
        r = -m / (2.0 + m)
        return tl.where(x < 0.0, -r, r)
    elif ACTIVATION == "softplus":
        return softplus(x)
    elif ACTIVATION == "gelu":
        return 0.5 * x * (1.0 + tl.erf(x * _SQRT_HALF))
    elif ACTIVATION == "silu":
        return x * sigmoid(x)
    else:
        return x


@triton.jit
def _slope(kept, ACTIVATION: tl.constexpr):
    """The derivative, from the pre-activation (gelu, silu) or the output (the others); for relu see `through`."""
    if ACTIVATION == "elu":
        return tl.where(kept > 0.0, 1.0, kept + 1.0)
    elif ACTIVATION == "tanh":
        return 1.0 - kept * kept
    elif ACTIVATION == "softplus":
        return -expm1(-kept)
    elif ACTIVATION == "gelu":
        density = exp(-0.5 * kept * kept, tl.float32) * _INVERSE_SQRT_2PI
        return 0.5 * (1.0 + tl.erf(kept * _SQRT_HALF)) + kept * density
    elif ACTIVATION == "silu":
        s = sigmoid(kept)
        return s + kept * s * (1.0 - s)
    else:
        return tl.full(kept.shape, 1.0, kept.dtype)


@triton.jit
def through(gradient, kept, ACTIVATION: tl.constexpr):
    """The gradient to the pre-activation, from the gradient to the activation.

    Relu selects, as PyTorch's does: where relu is 0, an infinite gradient becomes 0, too.
    """
    if ACTIVATION == "relu":
        return tl.where(kept <= 0.0, 0.0, gradient)
    else:
        return gradient * _slope(kept, ACTIVATION)


@triton.jit
def curvature(kept, ACTIVATION: tl.constexpr):
    """The second derivative, from what the slope takes; the identity and relu have none."""
    if ACTIVATION == "elu":
        return tl.where(kept > 0.0, 0.0, kept + 1.0)
    elif ACTIVATION == "tanh":
        return -2.0 * kept * (1.0 - kept * kept)
    elif ACTIVATION == "softplus":
        return -expm1(-kept) * exp(-kept, tl.float32)
    elif ACTIVATION == "gelu":
        density = exp(-0.5 * kept * kept, tl.float32) * _INVERSE_SQRT_2PI
        return 2.0 * density - density * kept * kept
    else:
        s = sigmoid(kept)
        return s * (1.0 - s) * (2.0 + kept * (1.0 - 2.0 * s))
