"""The affine step's scale a(s) and shift factor c(s), and their derivatives; see the reference for the table."""

from __future__ import annotations

import triton
import triton.language as tl

from ._activations import log1p, sigmoid, softplus
from ._vecmath import exp

# By number in the CUDA source of the inverse.
KINDS = ("gated", "exp", "clamped_exp", "softplus", "sigmoid", "location_only", "iaf_release")

_GATE_BOUND = tl.constexpr(30.0)
_EXP_BOUND = tl.constexpr(6.907755278982137)  # log 1000
_CLAMP_LOW, _CLAMP_HIGH = tl.constexpr(-5.0), tl.constexpr(3.0)
_LEAST_SCALE = tl.constexpr(1e-3)
_RELEASE_FACTOR, _RELEASE_BOUND = tl.constexpr(0.1), tl.constexpr(300.0)


@triton.jit
def _clamp(x, low, high):
    """Unlike `tl.clamp`, passes NaN on."""
    return tl.where(x < low, low, tl.where(x > high, high, x))


@triton.jit
def _between(x, low, high):
    return (x >= low) & (x <= high)


@triton.jit
def scale_of(s, KIND: tl.constexpr):
    """(log a, a, c)."""
    if KIND == "gated":
        x = _clamp(s, -_GATE_BOUND, _GATE_BOUND)
        e = exp(-tl.abs(x), tl.float32)
        r = 1.0 / (1.0 + e)
        log_a = tl.where(x < 0.0, x, 0.0) - log1p(e)
        return log_a, tl.where(x < 0.0, e * r, r), tl.where(x < 0.0, r, e * r)
    elif KIND == "softplus":
        a = softplus(s) + _LEAST_SCALE
        return tl.log(a), a, tl.full(s.shape, 1.0, s.dtype)
    elif KIND == "sigmoid":
        a = sigmoid(s) + _LEAST_SCALE
        return tl.log(a), a, tl.full(s.shape, 1.0, s.dtype)
    elif KIND == "exp":
        log_a = s / (1.0 + tl.abs(s) / _EXP_BOUND)
        return log_a, exp(log_a, tl.float32), tl.full(s.shape, 1.0, s.dtype)
    elif KIND == "clamped_exp":
        log_a = _clamp(s, _CLAMP_LOW, _CLAMP_HIGH)
        return log_a, exp(log_a, tl.float32), tl.full(s.shape, 1.0, s.dtype)
    elif KIND == "iaf_release":
        log_a = _clamp(s, -_RELEASE_BOUND, _RELEASE_BOUND) * -_RELEASE_FACTOR
        a = exp(log_a, tl.float32)
        return log_a, a, a * -_RELEASE_FACTOR
    else:
        one = tl.full(s.shape, 1.0, s.dtype)
        return tl.zeros(s.shape, s.dtype), one, one


@triton.jit
def slopes_of(s, a, c, KIND: tl.constexpr):
    """The derivatives of log a and of c with respect to s, where s is inside of the clamp."""
    zero = tl.zeros(s.shape, s.dtype)
    if KIND == "gated":
        return c, -a * c
    elif KIND == "softplus":
        return sigmoid(s) / a, zero
    elif KIND == "sigmoid":
        gate = sigmoid(s)
        return gate * sigmoid(-s) / a, zero
    elif KIND == "exp":
        root = 1.0 / (1.0 + tl.abs(s) / _EXP_BOUND)
        return root * root, zero
    elif KIND == "clamped_exp":
        return tl.full(s.shape, 1.0, s.dtype), zero
    elif KIND == "iaf_release":
        return tl.full(s.shape, -_RELEASE_FACTOR, s.dtype), c * -_RELEASE_FACTOR
    else:
        return zero, zero


@triton.jit
def inside_clamp(d_s, s, KIND: tl.constexpr):
    """The gradient of s: 0 beyond the clamp, whatever d_s is there."""
    if KIND == "gated":
        return tl.where(_between(s, -_GATE_BOUND, _GATE_BOUND), d_s, 0.0)
    elif KIND == "clamped_exp":
        return tl.where(_between(s, _CLAMP_LOW, _CLAMP_HIGH), d_s, 0.0)
    elif KIND == "iaf_release":
        return tl.where(_between(s, -_RELEASE_BOUND, _RELEASE_BOUND), d_s, 0.0)
    else:
        return d_s
