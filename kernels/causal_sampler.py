"""Cached sampling of whole batches in one launch: a program owns some images and walks over their pixels.

A plan becomes jobs, rows of integers that every program reads: what a node computes for the channels of one pass. What
is kept of a program's images lies in global memory, rows of every buffer in rings, channels fastest.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..structure.sampling_plan import Binding, Buffer, Conv, Plan, Span
from ._activations import activate, sigmoid
from ._launch import AotCase, launch, meta
from ._matrix import launch_options
from ._sampler_program import BUFFER_FIELDS, DRAW, JOB_FIELDS, program_of
from ._tiles import ceil_div, next_power_of_2
from ._vecmath import exp

# Images of a program: the least that a matrix product takes.
_IMAGES = 16
_BLOCK_O, _BLOCK_K, _BLOCK_L, _WARPS = 32, 32, 16, 8
_JOB, _BUFFER = tl.constexpr(JOB_FIELDS), tl.constexpr(BUFFER_FIELDS)
_BERNOULLI, _CATEGORICAL = tl.constexpr(0), tl.constexpr(1)
_LEAST_LOG_SCALE = tl.constexpr(-7.0)
_DRAW = tl.constexpr(DRAW)


@triton.jit
def _activated(x, activation, slope):
    """The activation of a number known at run time only, as numbered by _sampler_program.py."""
    if activation == 1:
        x = activate(x, "relu")
    if activation == 2:
        x = activate(x, "elu")
    if activation == 3:
        x = activate(x, "tanh")
    if activation == 4:
        x = activate(x, "softplus")
    if activation == 5:
        x = activate(x, "gelu")
    if activation == 6:
        x = activate(x, "silu")
    if activation == 7:
        x = sigmoid(x)
    if activation == 8:
        x = tl.where(x > 0.0, x, slope * x)
    return x


@triton.jit
def _place(buffers_ptr, buffer, y, x):
    """Where the pixel (y, x) of a buffer begins in an image's memory."""
    field = buffers_ptr + buffer * _BUFFER
    return tl.load(field) + y % tl.load(field + 1) * tl.load(field + 2) + (x + tl.load(field + 4)) * tl.load(field + 3)


@triton.jit
def _products(
    memory_ptrs, exists, buffers_ptr, buffer, terms_ptr, weights_ptr, o, count, K, y, x,
    BLOCK_N: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """(BLOCK_N, BLOCK_O) sums over K terms, each so many rows and numbers away from the pixel."""
    field = buffers_ptr + buffer * _BUFFER
    first, rows, row_numbers = tl.load(field), tl.load(field + 1), tl.load(field + 2)
    column = (x + tl.load(field + 4)) * tl.load(field + 3)
    total = tl.zeros((BLOCK_N, BLOCK_O), tl.float32)
    for start in range(0, K, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        term = k < K
        row = (y + rows + tl.load(terms_ptr + k, term, 0)) % rows
        at = first + row * row_numbers + column + tl.load(terms_ptr + K + k, term, 0)
        known = tl.load(memory_ptrs[:, None] + at[None, :], exists[:, None] & term[None, :], 0.0)
        weight = tl.load(weights_ptr + k[:, None] * count + o[None, :], term[:, None] & (o < count)[None, :], 0.0)
        total = tl.dot(known, weight, total, input_precision="ieee")
    return total


@triton.jit
def _run_job(
    memory_ptrs, exists, image, jobs_ptr, job, lists_ptr, buffers_ptr, numbers_ptr, constants_ptr, y, x,
    BLOCK_N: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """One job at one pixel of the program's images."""
    job_ptr = jobs_ptr + job * _JOB
    op, count, K = tl.load(job_ptr), tl.load(job_ptr + 1), tl.load(job_ptr + 8)
    to = _place(buffers_ptr, tl.load(job_ptr + 2), y, x)
    to_list, a_list, b_list = tl.load(job_ptr + 3), tl.load(job_ptr + 5), tl.load(job_ptr + 7)
    a_buffer, b_buffer = tl.load(job_ptr + 4), tl.load(job_ptr + 6)
    weights, bias = tl.load(job_ptr + 9), tl.load(job_ptr + 10)
    activation, kind = tl.load(job_ptr + 11), tl.load(job_ptr + 12)
    slope = tl.load(numbers_ptr + tl.load(job_ptr + 13))
    a_ptrs = memory_ptrs[:, None] + _place(buffers_ptr, a_buffer, y, x)
    b_ptrs = memory_ptrs[:, None] + _place(buffers_ptr, tl.maximum(b_buffer, 0), y, x)
    for first in range(0, count, BLOCK_O):
        o = first + tl.arange(0, BLOCK_O)
        owned = exists[:, None] & (o < count)[None, :]
        value = tl.zeros((BLOCK_N, BLOCK_O), tl.float32)
        if op == 0:
            value = _products(
                memory_ptrs, exists, buffers_ptr, a_buffer, lists_ptr + a_list, numbers_ptr + weights, o, count, K,
                y, x, BLOCK_N, BLOCK_O, BLOCK_K,
            )  # fmt: skip
            value += tl.load(numbers_ptr + bias + o, o < count, 0.0)[None, :]
        elif op == 7:
            # How far apart the constants of images, channels, rows and pixels are; 0 where all are alike.
            at = constants_ptr + b_list + image[:, None] * weights + o[None, :] * bias
            value = tl.load(at + y * K + x * kind, owned, 0.0)
        else:
            a = tl.load(a_ptrs + tl.load(lists_ptr + a_list + o, o < count, 0)[None, :], owned, 0.0)
            b = a
            if op == 6:
                b = tl.load(a_ptrs + tl.load(lists_ptr + a_list + count + o, o < count, 0)[None, :], owned, 0.0)
                if b_buffer >= 0:
                    a += tl.load(b_ptrs + tl.load(lists_ptr + b_list + o, o < count, 0)[None, :], owned, 0.0)
                    b += tl.load(b_ptrs + tl.load(lists_ptr + b_list + count + o, o < count, 0)[None, :], owned, 0.0)
                if kind == 0:
                    a = activate(a, "tanh")
                value = a * sigmoid(b)
            elif op == 4:
                value = tl.load(numbers_ptr + weights) * a + tl.load(numbers_ptr + bias)
            elif op == 5:
                value = a
            else:
                b = tl.load(b_ptrs + tl.load(lists_ptr + b_list + o, o < count, 0)[None, :], owned, 0.0)
                value = tl.where(op == 1, a + b, tl.where(op == 2, a - b, a * b))
        value = _activated(value, activation, slope)
        tl.store(memory_ptrs[:, None] + to + tl.load(lists_ptr + to_list + o, o < count, 0)[None, :], value, owned)


@triton.jit
def _logits(ptrs, exists, first, temperature, COUNT: tl.constexpr, BLOCK: tl.constexpr):
    k = first + tl.arange(0, BLOCK)[None, :]
    logit = tl.load(ptrs[:, None] + k, exists[:, None] & (k < COUNT), 0.0) / temperature
    return tl.where(k < COUNT, logit, -float("inf"))


@triton.jit
def _category(ptrs, exists, u, temperature, COUNT: tl.constexpr, BLOCK: tl.constexpr):
    """The first of COUNT logits up to which the probabilities add up to more than u."""
    largest = tl.max(_logits(ptrs, exists, 0, temperature, COUNT, BLOCK), 1)
    for first in range(BLOCK, COUNT, BLOCK):
        largest = tl.maximum(largest, tl.max(_logits(ptrs, exists, first, temperature, COUNT, BLOCK), 1))
    total = tl.zeros_like(u)
    for first in range(0, COUNT, BLOCK):
        logit = _logits(ptrs, exists, first, temperature, COUNT, BLOCK)
        total += tl.sum(exp(logit - largest[:, None], tl.float32), 1)
    before, passed = tl.zeros_like(u), tl.zeros(u.shape, tl.int32)
    for first in range(0, COUNT, BLOCK):
        weight = exp(_logits(ptrs, exists, first, temperature, COUNT, BLOCK) - largest[:, None], tl.float32)
        cumulated = before[:, None] + tl.cumsum(weight, 1)
        # Beyond COUNT sums stay what they are, and count only where all do.
        passed += tl.sum((cumulated <= (u * total)[:, None]).to(tl.int32), 1)
        before += tl.sum(weight, 1)
    return tl.minimum(passed, COUNT - 1)


@triton.jit
def _mixed(params_ptrs, u_ptrs, exists, red, green, chosen, temperature, channel: tl.constexpr, C: tl.constexpr,
           K: tl.constexpr, LEVELS: tl.constexpr):  # fmt: skip
    """Channel `channel` of a mixture's component, at the nearest level; halves, which have no probability, go up."""
    mean = tl.load(params_ptrs + K * (1 + channel) + chosen, exists, 0.0)
    t_ptrs = params_ptrs + K * (1 + 2 * C) + chosen
    if channel == 1:
        mean += activate(tl.load(t_ptrs, exists, 0.0), "tanh") * red
    if channel == 2:
        mean += activate(tl.load(t_ptrs + K, exists, 0.0), "tanh") * red
        mean += activate(tl.load(t_ptrs + 2 * K, exists, 0.0), "tanh") * green
    log_scale = tl.load(params_ptrs + K * (1 + C + channel) + chosen, exists, 0.0)
    scale = exp(tl.maximum(log_scale, _LEAST_LOG_SCALE), tl.float32) * temperature
    u = tl.load(u_ptrs + 1 + channel, exists, 0.5)
    scaled = (mean + scale * tl.log(u / (1.0 - u)) + 1.0) * (0.5 * (LEVELS - 1))
    level = tl.floor(tl.minimum(tl.maximum(scaled, 0.0), LEVELS - 1.0) + 0.5)
    return level * (2.0 / (LEVELS - 1)) - 1.0


@triton.jit
def _known(value, image_ptrs, given_ptrs, seen_ptrs, exists, HAS_GIVEN: tl.constexpr):
    """The value that a channel has in the end, a drawn one or the given one; kept in the image and for the network."""
    if HAS_GIVEN:
        value = tl.where(tl.load(given_ptrs, exists, 0) != 0, tl.load(image_ptrs, exists, 0.0), value)
    tl.store(image_ptrs, value, exists)
    tl.store(seen_ptrs, value, exists)
    return value


@triton.jit(do_not_specialize=["n_images", "n_rows", "n_columns", "row_jobs", "pixel_jobs"])
def _causal_sampler_kernel(
    images_ptr, parameters_ptr, memory_ptr, given_ptr, uniforms_ptr, jobs_ptr, lists_ptr, buffers_ptr, numbers_ptr,
    constants_ptr, colors_ptr, image_numbers, n_images, n_rows, n_columns, row_jobs, pixel_jobs, outputs, P,
    temperature,
    C: tl.constexpr, COLORS: tl.constexpr, HEAD: tl.constexpr, COMPONENTS: tl.constexpr, LEVELS: tl.constexpr,
    BLOCK_L: tl.constexpr, SAMPLES: tl.constexpr, HAS_GIVEN: tl.constexpr, HAS_PARAMETERS: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """One program owns BLOCK_N images and walks their pixels in raster order.

    Of a row first every row job at all pixels, then at each pixel the pixel jobs, the draws of each color among them.
    """
    image = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    exists = image < n_images
    memory_ptrs = memory_ptr + image * image_numbers
    area = n_rows * n_columns
    columns: tl.constexpr = C if HEAD <= _CATEGORICAL else C + 1
    before = row_jobs * n_columns
    # One loop for both kinds, so that the code of a job is there once.
    for y in range(0, n_rows):
        for stage in range(0, before + n_columns * pixel_jobs):
            of_row = stage < before
            x = tl.where(of_row, stage % n_columns, (stage - before) // pixel_jobs)
            job = tl.where(of_row, stage // n_columns, row_jobs + (stage - before) % pixel_jobs)
            if tl.load(jobs_ptr + job * _JOB) != _DRAW:
                _run_job(
                    memory_ptrs, exists, image, jobs_ptr, job, lists_ptr, buffers_ptr, numbers_ptr, constants_ptr, y, x,
                    BLOCK_N, BLOCK_O, BLOCK_K,
                )  # fmt: skip
            else:
                color = tl.load(jobs_ptr + job * _JOB + 1)
                pixel = y * n_columns + x
                params_ptrs = memory_ptrs + _place(buffers_ptr, outputs, y, x)
                seen_ptrs = memory_ptrs + _place(buffers_ptr, 0, y, x)
                image_ptrs = images_ptr + image * (C * area) + pixel
                given_ptrs = given_ptr + image * (C * area) + pixel
                u_ptrs = uniforms_ptr + (image * area + pixel) * columns
                if HEAD > _CATEGORICAL and SAMPLES:
                    u = tl.load(u_ptrs, exists, 0.5)
                    chosen = _category(params_ptrs, exists, u, temperature, COMPONENTS, BLOCK_L)
                    red = tl.zeros((BLOCK_N,), tl.float32)
                    green = red
                    for channel in tl.static_range(C):
                        value = _mixed(
                            params_ptrs, u_ptrs, exists, red, green, chosen, temperature, channel, C, COMPONENTS, LEVELS
                        )
                        value = _known(
                            value, image_ptrs + channel * area, given_ptrs + channel * area, seen_ptrs + channel,
                            exists, HAS_GIVEN,
                        )  # fmt: skip
                        if channel == 0:
                            red = value
                        else:
                            green = value
                else:
                    for channel in range(0, C):
                        if tl.load(colors_ptr + channel) == color:
                            to_ptrs = image_ptrs + channel * area
                            if SAMPLES:
                                u = tl.load(u_ptrs + channel, exists, 0.5)
                                if HEAD == _BERNOULLI:
                                    logit = tl.load(params_ptrs + channel, exists, 0.0)
                                    value = tl.where(u < sigmoid(logit / temperature), 1.0, 0.0)
                                else:
                                    logits_ptrs = params_ptrs + channel * LEVELS
                                    level = _category(logits_ptrs, exists, u, temperature, LEVELS, BLOCK_L)
                                    value = level.to(tl.float32) / (LEVELS - 1)
                                _known(
                                    value, to_ptrs, given_ptrs + channel * area, seen_ptrs + channel, exists, HAS_GIVEN
                                )
                            else:
                                tl.store(seen_ptrs + channel, tl.load(to_ptrs, exists, 0.0), exists)
                if HAS_PARAMETERS:
                    if color == COLORS - 1:
                        for first in range(0, P, BLOCK_O):
                            p = first + tl.arange(0, BLOCK_O)[None, :]
                            wanted = exists[:, None] & (p < P)
                            to_ptrs = (parameters_ptr + image * (P * area) + pixel)[:, None] + p.to(tl.int64) * area
                            tl.store(to_ptrs, tl.load(params_ptrs[:, None] + p, wanted, 0.0), wanted)
            tl.debug_barrier()  # other threads of this program read next what these have written


def aot_cases() -> list[AotCase]:
    """Tiny stacks, one for each head: the kernel does not depend on the network."""
    cases = []
    for name, head, channels, outputs, given in (
        ("bernoulli", (0, 1, 1, 2), 1, 1, False),
        ("categorical, given", (1, 3, 1, 256), 3, 768, True),
        ("mixture", (2, 4, 10, 256), 3, 100, False),
    ):
        ends = Buffer(channels, "pixel", 2, 1, 1, (1,) * channels), Buffer(outputs, "pixel", passes=(0,) * outputs)
        taps = tuple((tap, tap // 3 - 1, tap % 3 - 1) for tap in range(4))
        conv = Conv(Span(1, 0, outputs), Span(0, 0, channels), 0, 0, taps, 9)
        plan = Plan(ends, (conv,), ("conv",), (), (0,) * channels)
        binding = Binding([meta(outputs, channels, 3, 3)], [None], [])
        n, columns = 64, 28 * 28 * head[1]
        images = meta(n, channels, 28, 28)
        kept = meta(n, channels, 28, 28, dtype=torch.int32) if given else None
        parameters = meta(n, outputs, 28, 28) if given else None
        args = (plan, binding, head, images, kept, meta(n, columns), 1.0, parameters)
        cases.append(AotCase(name, causal_sampler, args))
        if head[0] == 0:
            finished = meta(n, outputs, 28, 28)
            args = (plan, binding, head, images, None, None, 1.0, finished)
            cases.append(AotCase("parameters of finished images", causal_sampler, args))
    return cases


def causal_sampler(
    plan: Plan,
    binding: Binding,
    head: Sequence[int],
    images: Tensor,
    given: Tensor | None,
    uniforms: Tensor | None,
    temperature: float,
    parameters: Tensor | None,
) -> None:
    """Draws float32 images in place; arguments as those of :func:`fastvae.ops.causal_sampler.causal_sampler`."""
    n, channels, height, width = images.shape
    program = program_of(plan, binding, width, images.device)
    kind, _, components, levels = head
    memory = images.new_zeros(ceil_div(n, _IMAGES) * _IMAGES, program.image_numbers)
    launch(
        _causal_sampler_kernel, ceil_div(n, _IMAGES), images, images if parameters is None else parameters, memory,
        images if given is None else given.to(torch.int32).contiguous(), images if uniforms is None else uniforms,
        program.jobs, program.lists, program.buffers, program.numbers(binding), program.constants(binding),
        program.colors, program.image_numbers, n, height, width, program.row_jobs, program.pixel_jobs,
        len(plan.buffers) - 1, plan.parameter_channels, float(temperature),
        C=channels, COLORS=plan.num_colors, HEAD=kind, COMPONENTS=components, LEVELS=levels,
        BLOCK_L=min(next_power_of_2(components if kind > 1 else levels), _BLOCK_L), SAMPLES=uniforms is not None,
        HAS_GIVEN=given is not None, HAS_PARAMETERS=parameters is not None, BLOCK_N=_IMAGES, BLOCK_O=_BLOCK_O,
        BLOCK_K=_BLOCK_K, **launch_options(_WARPS),
    )  # fmt: skip
