"""Jobs of the sampler's kernel: what a node of the plan computes at one pixel of a program's images."""

from __future__ import annotations

import triton
import triton.language as tl

from ..structure.sampling_records import ActivationCode, BufferRecord, GateCode, OpCode
from ._activations import activate, sigmoid
from ._sampler_program import Job

_CONV = tl.constexpr(int(OpCode.CONV))
_ADD = tl.constexpr(int(OpCode.ADD))
_SUB = tl.constexpr(int(OpCode.SUB))
_AFFINE = tl.constexpr(int(OpCode.AFFINE))
_ACTIVATION = tl.constexpr(int(OpCode.ACTIVATION))
_GATE = tl.constexpr(int(OpCode.GATE))
_COPY = tl.constexpr(int(OpCode.COPY))
_CONSTANT = tl.constexpr(int(OpCode.CONSTANT))
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
JOB_FIELDS = tl.constexpr(len(Job._fields))
OP_AT = tl.constexpr(Job._fields.index("op"))
COLOR_AT = tl.constexpr(Job._fields.index("color"))
_CHANNELS_AT = tl.constexpr(Job._fields.index("channels"))
_DST_AT = tl.constexpr(Job._fields.index("dst"))
_DST_LIST_AT = tl.constexpr(Job._fields.index("dst_list"))
_SRC_AT = tl.constexpr(Job._fields.index("src"))
_SRC_LIST_AT = tl.constexpr(Job._fields.index("src_list"))
_OTHER_AT = tl.constexpr(Job._fields.index("other"))
_OTHER_LIST_AT = tl.constexpr(Job._fields.index("other_list"))
_TERMS_AT = tl.constexpr(Job._fields.index("terms"))
_WEIGHTS_AT = tl.constexpr(Job._fields.index("weights"))
_BIAS_AT = tl.constexpr(Job._fields.index("bias"))
_ACTIVATION_AT = tl.constexpr(Job._fields.index("activation"))
_SLOPE_AT = tl.constexpr(Job._fields.index("slope"))
_GATE_AT = tl.constexpr(Job._fields.index("gate"))
_ALPHA_AT = tl.constexpr(Job._fields.index("alpha"))
_BETA_AT = tl.constexpr(Job._fields.index("beta"))
_CONSTANT_AT = tl.constexpr(Job._fields.index("constant"))
_IMAGE_STEP_AT = tl.constexpr(Job._fields.index("image_step"))
_CHANNEL_STEP_AT = tl.constexpr(Job._fields.index("channel_step"))
_ROW_STEP_AT = tl.constexpr(Job._fields.index("row_step"))
_COLUMN_STEP_AT = tl.constexpr(Job._fields.index("column_step"))

_BUFFER_FIELDS = tl.constexpr(len(BufferRecord._fields))
_ROW_CHANNELS_AT = tl.constexpr(BufferRecord._fields.index("channels"))
_ROWS_AT = tl.constexpr(BufferRecord._fields.index("rows"))
_LEFT_AT = tl.constexpr(BufferRecord._fields.index("left"))
_ROW_NUMBERS_AT = tl.constexpr(BufferRecord._fields.index("row_numbers"))
_FIRST_AT = tl.constexpr(BufferRecord._fields.index("first"))


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
def _locate_column(buffers_ptr, buffer, x):
    """Where column x of a buffer's first row begins in an image's memory, the rows, and the numbers of a row."""
    buffer_ptr = buffers_ptr + buffer * _BUFFER_FIELDS
    column = (x + tl.load(buffer_ptr + _LEFT_AT)) * tl.load(buffer_ptr + _ROW_CHANNELS_AT)
    first = tl.load(buffer_ptr + _FIRST_AT) + column
    return first, tl.load(buffer_ptr + _ROWS_AT), tl.load(buffer_ptr + _ROW_NUMBERS_AT)


@triton.jit
def locate(buffers_ptr, buffer, y, x):
    """Where the pixel (y, x) of a buffer begins in an image's memory."""
    first, rows, row_numbers = _locate_column(buffers_ptr, buffer, x)
    return first + y % rows * row_numbers


@triton.jit
def _multiply(
    memory_ptrs, exists, buffers_ptr, buffer, terms_ptr, weights_ptr, o, count, K, y, x,
    BLOCK_N: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """(BLOCK_N, BLOCK_O) sums over K terms, each so many rows and numbers away from the pixel."""
    first, rows, row_numbers = _locate_column(buffers_ptr, buffer, x)
    total = tl.zeros((BLOCK_N, BLOCK_O), tl.float32)
    for start in range(0, K, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        term = k < K
        row = (y + rows + tl.load(terms_ptr + k, term, 0)) % rows
        at = first + row * row_numbers + tl.load(terms_ptr + K + k, term, 0)
        known = tl.load(memory_ptrs[:, None] + at[None, :], exists[:, None] & term[None, :], 0.0)
        weight = tl.load(weights_ptr + k[:, None] * count + o[None, :], term[:, None] & (o < count)[None, :], 0.0)
        total = tl.dot(known, weight, total, input_precision="ieee")
    return total


@triton.jit
def run_job(
    memory_ptrs, exists, image, jobs_ptr, job, lists_ptr, buffers_ptr, numbers_ptr, constants_ptr, y, x,
    BLOCK_N: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """One job at one pixel of the program's images."""
    job_ptr = jobs_ptr + job * JOB_FIELDS
    op, count = tl.load(job_ptr + OP_AT), tl.load(job_ptr + _CHANNELS_AT)
    to = locate(buffers_ptr, tl.load(job_ptr + _DST_AT), y, x)
    to_list, src_list = tl.load(job_ptr + _DST_LIST_AT), tl.load(job_ptr + _SRC_LIST_AT)
    src, other, other_list = tl.load(job_ptr + _SRC_AT), tl.load(job_ptr + _OTHER_AT), tl.load(job_ptr + _OTHER_LIST_AT)
    terms, weights, bias = tl.load(job_ptr + _TERMS_AT), tl.load(job_ptr + _WEIGHTS_AT), tl.load(job_ptr + _BIAS_AT)
    activation, slope = tl.load(job_ptr + _ACTIVATION_AT), tl.load(numbers_ptr + tl.load(job_ptr + _SLOPE_AT))
    src_ptrs = memory_ptrs[:, None] + locate(buffers_ptr, src, y, x)
    other_ptrs = memory_ptrs[:, None] + locate(buffers_ptr, tl.maximum(other, 0), y, x)
    for first in range(0, count, BLOCK_O):
        o = first + tl.arange(0, BLOCK_O)
        owned = exists[:, None] & (o < count)[None, :]
        value = tl.zeros((BLOCK_N, BLOCK_O), tl.float32)
        if op == _CONV:
            value = _multiply(
                memory_ptrs, exists, buffers_ptr, src, lists_ptr + src_list, numbers_ptr + weights, o, count, terms,
                y, x, BLOCK_N, BLOCK_O, BLOCK_K,
            )  # fmt: skip
            value += tl.load(numbers_ptr + bias + o, o < count, 0.0)[None, :]
        elif op == _CONSTANT:
            at = constants_ptr + tl.load(job_ptr + _CONSTANT_AT) + image[:, None] * tl.load(job_ptr + _IMAGE_STEP_AT)
            at += o[None, :] * tl.load(job_ptr + _CHANNEL_STEP_AT)
            at += y * tl.load(job_ptr + _ROW_STEP_AT) + x * tl.load(job_ptr + _COLUMN_STEP_AT)
            value = tl.load(at, owned, 0.0)
        else:
            a = tl.load(src_ptrs + tl.load(lists_ptr + src_list + o, o < count, 0)[None, :], owned, 0.0)
            b = a
            if op == _GATE:
                b = tl.load(src_ptrs + tl.load(lists_ptr + src_list + count + o, o < count, 0)[None, :], owned, 0.0)
                if other >= 0:
                    list_ptrs = lists_ptr + other_list + o
                    a += tl.load(other_ptrs + tl.load(list_ptrs, o < count, 0)[None, :], owned, 0.0)
                    b += tl.load(other_ptrs + tl.load(list_ptrs + count, o < count, 0)[None, :], owned, 0.0)
                if tl.load(job_ptr + _GATE_AT) == _TANH_GATE:
                    a = activate(a, "tanh")
                value = a * sigmoid(b)
            elif op == _AFFINE:
                alpha, beta = tl.load(job_ptr + _ALPHA_AT), tl.load(job_ptr + _BETA_AT)
                value = tl.load(numbers_ptr + alpha) * a + tl.load(numbers_ptr + beta)
            elif (op == _COPY) | (op == _ACTIVATION):
                value = a
            else:
                b = tl.load(other_ptrs + tl.load(lists_ptr + other_list + o, o < count, 0)[None, :], owned, 0.0)
                value = tl.where(op == _ADD, a + b, tl.where(op == _SUB, a - b, a * b))
        value = _apply_activation(value, activation, slope)
        tl.store(memory_ptrs[:, None] + to + tl.load(lists_ptr + to_list + o, o < count, 0)[None, :], value, owned)
