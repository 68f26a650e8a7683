"""Blocks of the sampler's kernels: the products of their runs, and what becomes of the sums."""

from __future__ import annotations

import triton
import triton.language as tl

from ..structure.sampling_records import ActivationCode, GateCode, OpCode
from ._activations import activate, sigmoid
from ._sampler_records import VECTOR, Block, Op, Run
from ._vecmath import exp

_ADD = tl.constexpr(int(OpCode.ADD))
_SUB = tl.constexpr(int(OpCode.SUB))
_AFFINE = tl.constexpr(int(OpCode.AFFINE))
_ACTIVATION = tl.constexpr(int(OpCode.ACTIVATION))
_GATE = tl.constexpr(int(OpCode.GATE))
_COPY = tl.constexpr(int(OpCode.COPY))
_CONSTANT = tl.constexpr(int(OpCode.CONSTANT))
_CONV = tl.constexpr(int(OpCode.CONV))
DRAW = tl.constexpr(int(OpCode.DRAW))

_RELU = tl.constexpr(int(ActivationCode.RELU))
_ELU = tl.constexpr(int(ActivationCode.ELU))
_TANH = tl.constexpr(int(ActivationCode.TANH))
_SOFTPLUS = tl.constexpr(int(ActivationCode.SOFTPLUS))
_GELU = tl.constexpr(int(ActivationCode.GELU))
_SILU = tl.constexpr(int(ActivationCode.SILU))
_SIGMOID = tl.constexpr(int(ActivationCode.SIGMOID))
_LEAKY_RELU = tl.constexpr(int(ActivationCode.LEAKY_RELU))
_TANH_GATE = tl.constexpr(int(GateCode.TANH))

# Where the fields of a record are.
RUN_FIELDS = tl.constexpr(len(Run._fields))
_TERMS_AT = tl.constexpr(Run._fields.index("terms"))
_RUN_SITE_AT = tl.constexpr(Run._fields.index("at"))
_RUN_STEP_AT = tl.constexpr(Run._fields.index("step"))
_WEIGHTS_AT = tl.constexpr(Run._fields.index("weights"))
_WIDTH_AT = tl.constexpr(Run._fields.index("width"))

BLOCK_FIELDS = tl.constexpr(len(Block._fields))
SOURCE_AT = tl.constexpr(Block._fields.index("source"))
FIRST_RUN_AT = tl.constexpr(Block._fields.index("first_run"))
END_RUN_AT = tl.constexpr(Block._fields.index("end_run"))
COLOR_AT = tl.constexpr(Block._fields.index("color"))
_COUNT_AT = tl.constexpr(Block._fields.index("count"))
_BIAS_AT = tl.constexpr(Block._fields.index("bias"))
SITE_AT = tl.constexpr(Block._fields.index("at"))
STEP_AT = tl.constexpr(Block._fields.index("step"))
_PLACES_AT = tl.constexpr(Block._fields.index("places"))
_ROW_STEP_AT = tl.constexpr(Block._fields.index("row_step"))
_IMAGE_STEP_AT = tl.constexpr(Block._fields.index("image_step"))
FIRST_OP_AT = tl.constexpr(Block._fields.index("first_op"))
_END_OP_AT = tl.constexpr(Block._fields.index("end_op"))

OP_FIELDS = tl.constexpr(len(Op._fields))
_OP_AT = tl.constexpr(Op._fields.index("op"))
OP_SITE_AT = tl.constexpr(Op._fields.index("at"))
OP_STEP_AT = tl.constexpr(Op._fields.index("step"))
_OP_PLACES_AT = tl.constexpr(Op._fields.index("places"))
_KIND_AT = tl.constexpr(Op._fields.index("kind"))
_ALPHA_AT = tl.constexpr(Op._fields.index("alpha"))
_BETA_AT = tl.constexpr(Op._fields.index("beta"))

_VECTOR = tl.constexpr(VECTOR)


@triton.jit
def _apply_activation(x, activation, slope):
    """The activation with a number that only the run time knows."""
    if activation == _RELU:
        x = activate(x, "relu")
    if activation == _ELU:
        x = activate(x, "elu")
    if activation == _TANH:
        x = activate(x, "tanh")
    if activation == _SOFTPLUS:
        x = activate(x, "softplus")
    if activation == _GELU:
        x = activate(x, "gelu")
    if activation == _SILU:
        x = activate(x, "silu")
    if activation == _SIGMOID:
        x = sigmoid(x)
    if activation == _LEAKY_RELU:
        x = tl.where(x > 0.0, x, slope * x)
    return x


@triton.jit
def _apply_gate(a, b, kind):
    """tanh(a) or a, times the sigmoid of b, by one division; near 0 the tangent is Cephes' polynomial."""
    e = exp(-tl.abs(b), tl.float32)
    numerator, denominator = tl.where(b < 0.0, e, 1.0), 1.0 + e
    if kind == _TANH_GATE:
        square = a * a
        p = square * -5.70498872745e-3 + 2.06390887954e-2
        p = p * square - 5.37397155531e-2
        p = p * square + 1.33314422036e-1
        p = p * square - 3.33332819422e-1
        near = tl.abs(a) < 0.625
        e = exp(-2.0 * tl.abs(a), tl.float32)
        numerator *= tl.where(near, p * square * a + a, tl.where(a < 0.0, e - 1.0, 1.0 - e))
        denominator *= tl.where(near, 1.0, 1.0 + e)
    else:
        numerator *= a
    return numerator / denominator


@triton.jit
def load_weights(numbers_ptr, run_ptr, BLOCK_K: tl.constexpr, BLOCK_O: tl.constexpr):
    """(BLOCK_K, 1, BLOCK_O) weights of a run of at most BLOCK_K terms, zeros beyond it.

    They bypass the first cache, in which the tables and activations stay.
    """
    k, o = tl.arange(0, BLOCK_K)[:, None, None], tl.arange(0, BLOCK_O)[None, None, :]
    width = tl.load(run_ptr + _WIDTH_AT) * _VECTOR
    inside = (k < tl.load(run_ptr + _TERMS_AT)) & (o < width)
    ptrs = numbers_ptr + tl.load(run_ptr + _WEIGHTS_AT) * _VECTOR + k * width + o
    return tl.load(ptrs, inside, 0.0, cache_modifier=".cg")


@triton.jit
def multiply_terms(
    sums, weight, memory_ptrs, exists, run_ptr, x, BLOCK_K: tl.constexpr, BLOCK_O: tl.constexpr, PARTS: tl.constexpr
):
    """Adds a run of at most BLOCK_K terms, at column x, to the (PARTS, images, BLOCK_O) sums.

    A warp has one of the parts: they become one sum when all runs are done.
    """
    k = tl.arange(0, BLOCK_K)[:, None, None]
    ptrs = memory_ptrs + tl.load(run_ptr + _RUN_SITE_AT) + x * tl.load(run_ptr + _RUN_STEP_AT)
    inside = (k < tl.load(run_ptr + _TERMS_AT)) & exists[None, :, None]
    products = tl.load(ptrs[None, :, None] + k, inside, 0.0) * weight
    return sums + tl.sum(tl.reshape(products, (BLOCK_K // PARTS, PARTS, sums.shape[1], BLOCK_O)), 0)


@triton.jit
def multiply_run(total, memory_ptrs, exists, numbers_ptr, run_ptr, x, BLOCK_K: tl.constexpr, BLOCK_O: tl.constexpr):
    """Adds a run of any length to the (positions, BLOCK_O) sums of the positions at columns x."""
    o, terms = tl.arange(0, BLOCK_O)[None, :], tl.load(run_ptr + _TERMS_AT)
    width = tl.load(run_ptr + _WIDTH_AT) * _VECTOR
    known_ptrs = memory_ptrs + tl.load(run_ptr + _RUN_SITE_AT) + x * tl.load(run_ptr + _RUN_STEP_AT)
    weights_ptr = numbers_ptr + tl.load(run_ptr + _WEIGHTS_AT) * _VECTOR
    for first in range(0, terms, BLOCK_K):
        k = first + tl.arange(0, BLOCK_K)
        known = tl.load(known_ptrs[:, None] + k[None, :], exists[:, None] & (k < terms)[None, :], 0.0)
        weight = tl.load(weights_ptr + k[:, None] * width + o, (k < terms)[:, None] & (o < width), 0.0)
        total = tl.dot(known, weight, total, input_precision="ieee")
    return total


@triton.jit
def start_value(
    sums, memory_ptrs, constants_ptr, exists, image, block_ptr, lists_ptr, numbers_ptr, y, x, BLOCK_O: tl.constexpr
):
    """The value of a block's source: the sums of a convolution with its bias, or what it loads."""
    o, source = tl.arange(0, BLOCK_O), tl.load(block_ptr + SOURCE_AT)
    count = tl.load(block_ptr + _COUNT_AT)
    value = sums
    if source == _CONV:
        value += tl.load(numbers_ptr + tl.load(block_ptr + _BIAS_AT) + o, o < count, 0.0)[None, :]
    else:
        at = tl.load(block_ptr + SITE_AT) + x * tl.load(block_ptr + STEP_AT)
        ptrs = memory_ptrs + at
        if source == _CONSTANT:
            ptrs = constants_ptr + image * tl.load(block_ptr + _IMAGE_STEP_AT) + at
            ptrs += y * tl.load(block_ptr + _ROW_STEP_AT)
        place = tl.load(lists_ptr + tl.load(block_ptr + _PLACES_AT) + o, o < count, 0)
        value = tl.load(ptrs[:, None] + place[None, :], exists[:, None] & (o < count)[None, :], 0.0)
    return value


@triton.jit
def finish_block(
    value, memory_ptrs, exists, block_ptr, ops_ptr, lists_ptr, numbers_ptr, x, BLOCK_O: tl.constexpr
):  # fmt: skip
    """Applies a block's operations to its value, and stores what other blocks read."""
    o, pair = tl.arange(0, BLOCK_O), tl.arange(0, BLOCK_O // 2)
    count = tl.load(block_ptr + _COUNT_AT)
    owned = exists[:, None] & (o < count)[None, :]
    for index in range(tl.load(block_ptr + FIRST_OP_AT), tl.load(block_ptr + _END_OP_AT)):
        op_ptr = ops_ptr + index * OP_FIELDS
        op, kind = tl.load(op_ptr + _OP_AT), tl.load(op_ptr + _KIND_AT)
        ptrs = memory_ptrs + tl.load(op_ptr + OP_SITE_AT) + x * tl.load(op_ptr + OP_STEP_AT)
        places_ptr = lists_ptr + tl.load(op_ptr + _OP_PLACES_AT)
        alpha_ptr = numbers_ptr + tl.load(op_ptr + _ALPHA_AT)
        if op == _GATE:
            a, b = tl.split(tl.reshape(value, (value.shape[0], BLOCK_O // 2, 2)))
            place = tl.load(places_ptr + pair, 2 * pair < count, 0)
            wanted = exists[:, None] & (2 * pair < count)[None, :]
            tl.store(ptrs[:, None] + place[None, :], _apply_gate(a, b, kind), wanted)
        elif op == _ACTIVATION:
            value = _apply_activation(value, kind, tl.load(alpha_ptr))
        elif op == _AFFINE:
            value = tl.load(alpha_ptr) * value + tl.load(numbers_ptr + tl.load(op_ptr + _BETA_AT))
        else:
            at = ptrs[:, None] + tl.load(places_ptr + o, o < count, 0)[None, :]
            if op == _COPY:
                tl.store(at, value, owned)
            else:
                other = tl.load(at, owned, 0.0)
                value = tl.where(op == _ADD, value + other, tl.where(op == _SUB, value - other, value * other))
