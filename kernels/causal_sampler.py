"""Cached sampling of whole batches in one launch: a program owns some images and walks over their pixels.

A plan becomes jobs. A job is a record of integers that every program reads; it computes the channels of a node that
belong to one pass. A program keeps the activations of its images in global memory. The rows of each buffer form a ring,
and channels vary fastest.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..structure.sampling_plan import Binding, Buffer, Conv, Plan, Span
from ..structure.sampling_records import HeadCode, HeadRecord
from ._activations import sigmoid
from ._launch import AotCase, launch, meta
from ._matrix import launch_options
from ._pixel_heads import draw_category, draw_mixture, keep_value
from ._sampler_jobs import COLOR_AT, DRAW, JOB_FIELDS, OP_AT, locate, run_job
from ._sampler_program import get_program
from ._tiles import ceil_div, next_power_of_2

# Images of a program: the least that a matrix product takes.
_IMAGES = 16
_BLOCK_O, _BLOCK_K, _BLOCK_L, _WARPS = 32, 32, 16, 8
_BERNOULLI = tl.constexpr(int(HeadCode.BERNOULLI))
_MIXTURE = tl.constexpr(int(HeadCode.LOGISTIC_MIXTURE))


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

    In each row it runs every row job at all pixels, then the pixel jobs pixel by pixel. A job of each color draws.
    """
    image = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    exists = image < n_images
    memory_ptrs = memory_ptr + image * image_numbers
    area = n_rows * n_columns
    columns: tl.constexpr = C + 1 if HEAD == _MIXTURE else C
    before = row_jobs * n_columns
    # One loop for both kinds of jobs: the kernel has the code of a job once.
    for y in range(0, n_rows):
        for stage in range(0, before + n_columns * pixel_jobs):
            of_row = stage < before
            x = tl.where(of_row, stage % n_columns, (stage - before) // pixel_jobs)
            job = tl.where(of_row, stage // n_columns, row_jobs + (stage - before) % pixel_jobs)
            if tl.load(jobs_ptr + job * JOB_FIELDS + OP_AT) != DRAW:
                run_job(
                    memory_ptrs, exists, image, jobs_ptr, job, lists_ptr, buffers_ptr, numbers_ptr, constants_ptr, y, x,
                    BLOCK_N, BLOCK_O, BLOCK_K,
                )  # fmt: skip
            else:
                color = tl.load(jobs_ptr + job * JOB_FIELDS + COLOR_AT)
                pixel = y * n_columns + x
                params_ptrs = memory_ptrs + locate(buffers_ptr, outputs, y, x)
                seen_ptrs = memory_ptrs + locate(buffers_ptr, 0, y, x)
                image_ptrs = images_ptr + image * (C * area) + pixel
                given_ptrs = given_ptr + image * (C * area) + pixel
                u_ptrs = uniforms_ptr + (image * area + pixel) * columns
                if HEAD == _MIXTURE and SAMPLES:
                    u = tl.load(u_ptrs, exists, 0.5)
                    chosen = draw_category(params_ptrs, exists, u, temperature, COMPONENTS, BLOCK_L)
                    red = tl.zeros((BLOCK_N,), tl.float32)
                    green = red
                    for channel in tl.static_range(C):
                        value = draw_mixture(
                            params_ptrs, u_ptrs, exists, red, green, chosen, temperature, channel, C, COMPONENTS, LEVELS
                        )
                        value = keep_value(
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
                                    level = draw_category(logits_ptrs, exists, u, temperature, LEVELS, BLOCK_L)
                                    value = level.to(tl.float32) / (LEVELS - 1)
                                keep_value(
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
            tl.debug_barrier()  # other threads of this program read these numbers next


def aot_cases() -> list[AotCase]:
    """Tiny stacks, one for each head: the kernel does not depend on the network."""
    cases = []
    for name, head, channels, outputs, given in (
        ("bernoulli", HeadRecord(HeadCode.BERNOULLI, 1, 1, 2), 1, 1, False),
        ("categorical, given", HeadRecord(HeadCode.CATEGORICAL, 3, 1, 256), 3, 768, True),
        ("mixture", HeadRecord(HeadCode.LOGISTIC_MIXTURE, 4, 10, 256), 3, 100, False),
    ):
        ends = Buffer(channels, "pixel", 2, 1, 1, (1,) * channels), Buffer(outputs, "pixel", passes=(0,) * outputs)
        taps = tuple((tap, tap // 3 - 1, tap % 3 - 1) for tap in range(4))
        conv = Conv(Span(1, 0, outputs), Span(0, 0, channels), 0, 0, taps, 9)
        plan = Plan(ends, (conv,), ("conv",), (), (0,) * channels)
        binding = Binding([meta(outputs, channels, 3, 3)], [None], [])
        n, columns = 64, 28 * 28 * head.columns
        images = meta(n, channels, 28, 28)
        kept = meta(n, channels, 28, 28, dtype=torch.int32) if given else None
        parameters = meta(n, outputs, 28, 28) if given else None
        args = (plan, binding, head, images, kept, meta(n, columns), 1.0, parameters)
        cases.append(AotCase(name, causal_sampler, args))
        if head.kind == HeadCode.BERNOULLI:
            finished = meta(n, outputs, 28, 28)
            args = (plan, binding, head, images, None, None, 1.0, finished)
            cases.append(AotCase("parameters of finished images", causal_sampler, args))
    return cases


def causal_sampler(
    plan: Plan,
    binding: Binding,
    head: HeadRecord,
    images: Tensor,
    given: Tensor | None,
    uniforms: Tensor | None,
    temperature: float,
    parameters: Tensor | None,
) -> None:
    """Draws float32 images in place; the arguments are those of :func:`fastvae.ops.causal_sampler.causal_sampler`."""
    n, channels, height, width = images.shape
    program = get_program(plan, binding, width, images.device)
    categories = head.components if head.kind == HeadCode.LOGISTIC_MIXTURE else head.levels
    memory = images.new_zeros(ceil_div(n, _IMAGES) * _IMAGES, program.image_numbers)
    launch(
        _causal_sampler_kernel, ceil_div(n, _IMAGES), images, images if parameters is None else parameters, memory,
        images if given is None else given.to(torch.int32).contiguous(), images if uniforms is None else uniforms,
        program.jobs, program.lists, program.buffers, program.gather_numbers(binding),
        program.gather_constants(binding), program.colors, program.image_numbers, n, height, width,
        program.row_jobs, program.pixel_jobs, len(plan.buffers) - 1, plan.parameter_channels, float(temperature),
        C=channels, COLORS=plan.num_colors, HEAD=int(head.kind), COMPONENTS=head.components, LEVELS=head.levels,
        BLOCK_L=min(next_power_of_2(categories), _BLOCK_L), SAMPLES=uniforms is not None,
        HAS_GIVEN=given is not None, HAS_PARAMETERS=parameters is not None, BLOCK_N=_IMAGES, BLOCK_O=_BLOCK_O,
        BLOCK_K=_BLOCK_K, **launch_options(_WARPS),
    )  # fmt: skip
