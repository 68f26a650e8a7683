"""Cached sampling of whole batches: for each row of the images a few launches over all its pixels, and one that draws.

A plan becomes blocks, see `_sampler_records`: columns that a program computes for its pixels at once. What depends on
the rows above only is computed for all images and columns together; a launch has many programs. One more launch then
walks along the row. Its programs have an image or a few each, and read all weights of the pixel's chain for every
pixel, each time in the same order: the next ones are on their way while the present ones are multiplied.

The activations of an image are in global memory. The rows of each buffer form a ring, and channels vary fastest.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..structure.sampling_plan import Binding, Buffer, Conv, Pointwise, Span
from ..structure.sampling_plan import Plan as SamplingPlan
from ..structure.sampling_records import HeadCode, HeadRecord
from ._launch import AotCase, Plan, by_shape, meta
from ._matrix import launch_options
from ._pixel_heads import draw_pixel
from ._sampler_blocks import (
    BLOCK_FIELDS,
    COLOR_AT,
    DRAW,
    END_RUN_AT,
    FIRST_OP_AT,
    FIRST_RUN_AT,
    OP_FIELDS,
    OP_SITE_AT,
    OP_STEP_AT,
    RUN_FIELDS,
    SITE_AT,
    SOURCE_AT,
    STEP_AT,
    finish_block,
    load_weights,
    multiply_run,
    multiply_terms,
    start_value,
)
from ._sampler_program import get_program
from ._tiles import ceil_div, next_power_of_2

# Columns of a block, terms of a run at one pixel, logits that a draw takes at once, and warps for each image.
_BLOCK_O, _BLOCK_K, _BLOCK_L, _WARPS = 128, 64, 256, 4
# Pixels of a program that computes rows, the least that a matrix product takes; terms of a step, warps and stages.
_PIXELS, _ROW_BLOCK_K, _ROW_WARPS, _ROW_STAGES = 16, 16, 8, 3
# Images of a program: one as long as a large device runs all programs at once; then two, which share what is read.
_WAVE, _MOST_IMAGES = 264, 2


@triton.jit(
    do_not_specialize=[
        "n_images", "n_columns", "y", "phase", "table_numbers", "blocks_at", "ops_at", "first_block", "end_block"
    ]
)  # fmt: skip
def _causal_sampler_row_kernel(
    memory_ptr, tables_ptr, lists_ptr, numbers_ptr, constants_ptr, image_numbers, n_images, n_columns, y, phase,
    table_numbers, blocks_at, ops_at, first_block, end_block,
    BLOCK_N: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """One program owns BLOCK_N pixels of row y, of all images, and computes some blocks there one after another."""
    position = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    image, x = (position // n_columns).to(tl.int64), position % n_columns
    exists = image < n_images
    memory_ptrs = memory_ptr + image * image_numbers
    runs_ptr = tables_ptr + phase * table_numbers
    blocks_ptr, ops_ptr = runs_ptr + blocks_at, runs_ptr + ops_at
    for block in range(first_block, end_block):
        block_ptr = blocks_ptr + block * BLOCK_FIELDS
        sums = tl.zeros((BLOCK_N, BLOCK_O), tl.float32)
        for run in range(tl.load(block_ptr + FIRST_RUN_AT), tl.load(block_ptr + END_RUN_AT)):
            run_ptr = runs_ptr + run * RUN_FIELDS
            sums = multiply_run(sums, memory_ptrs, exists, numbers_ptr, run_ptr, x, BLOCK_K, BLOCK_O)
        value = start_value(
            sums, memory_ptrs, constants_ptr, exists, image, block_ptr, lists_ptr, numbers_ptr, y, x, BLOCK_O
        )
        finish_block(value, memory_ptrs, exists, block_ptr, ops_ptr, lists_ptr, numbers_ptr, x, BLOCK_O)
        tl.debug_barrier()  # other threads of this program read these numbers next


@triton.jit(
    do_not_specialize=[
        "n_images", "n_rows", "n_columns", "y", "phase", "table_numbers", "blocks_at", "ops_at", "first_run",
        "first_block", "end_block", "P",
    ]
)  # fmt: skip
def _causal_sampler_pixel_kernel(
    memory_ptr, tables_ptr, lists_ptr, numbers_ptr, constants_ptr, images_ptr, parameters_ptr, given_ptr, uniforms_ptr,
    colors_ptr, image_numbers, n_images, n_rows, n_columns, y, phase, table_numbers, blocks_at, ops_at, first_run,
    first_block, end_block, P, temperature,
    C: tl.constexpr, COLORS: tl.constexpr, HEAD: tl.constexpr, COMPONENTS: tl.constexpr, LEVELS: tl.constexpr,
    COLUMNS: tl.constexpr, BLOCK_L: tl.constexpr, SAMPLES: tl.constexpr, HAS_GIVEN: tl.constexpr,
    HAS_PARAMETERS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_K: tl.constexpr,
    PARTS: tl.constexpr,
):  # fmt: skip
    """One program owns BLOCK_N images and walks along row y: at each pixel it computes blocks, some of which draw.

    The weights of a run are loaded while those of the run before are multiplied, also from pixel to pixel.
    """
    image = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    exists = image < n_images
    memory_ptrs = memory_ptr + image * image_numbers
    runs_ptr = tables_ptr + phase * table_numbers
    blocks_ptr, ops_ptr = runs_ptr + blocks_at, runs_ptr + ops_at
    area = n_rows * n_columns
    weight = load_weights(numbers_ptr, runs_ptr + first_run * RUN_FIELDS, BLOCK_K, BLOCK_O)
    for x in range(0, n_columns):
        for block in range(first_block, end_block):
            block_ptr = blocks_ptr + block * BLOCK_FIELDS
            sums = tl.zeros((PARTS, BLOCK_N, BLOCK_O), tl.float32)
            for run in range(tl.load(block_ptr + FIRST_RUN_AT), tl.load(block_ptr + END_RUN_AT)):
                run_ptr = runs_ptr + run * RUN_FIELDS
                following = load_weights(numbers_ptr, run_ptr + RUN_FIELDS, BLOCK_K, BLOCK_O)
                sums = multiply_terms(sums, weight, memory_ptrs, exists, run_ptr, x, BLOCK_K, BLOCK_O, PARTS)
                weight = following
            if tl.load(block_ptr + SOURCE_AT) == DRAW:
                pixel, color = y * n_columns + x, tl.load(block_ptr + COLOR_AT)
                op_ptr = ops_ptr + tl.load(block_ptr + FIRST_OP_AT) * OP_FIELDS
                params_ptrs = memory_ptrs + tl.load(block_ptr + SITE_AT) + x * tl.load(block_ptr + STEP_AT)
                seen_ptrs = memory_ptrs + tl.load(op_ptr + OP_SITE_AT) + x * tl.load(op_ptr + OP_STEP_AT)
                draw_pixel(
                    params_ptrs, seen_ptrs,
                    images_ptr + image * (C * area) + pixel, given_ptr + image * (C * area) + pixel,
                    uniforms_ptr + (image * area + pixel) * COLUMNS, colors_ptr, exists, color, area, temperature,
                    C, HEAD, COMPONENTS, LEVELS, BLOCK_L, SAMPLES, HAS_GIVEN,
                )  # fmt: skip
                if HAS_PARAMETERS:
                    if color == COLORS - 1:
                        for first in range(0, P, BLOCK_O):
                            p = first + tl.arange(0, BLOCK_O)[None, :]
                            wanted = exists[:, None] & (p < P)
                            to_ptrs = (parameters_ptr + image * (P * area) + pixel)[:, None] + p.to(tl.int64) * area
                            tl.store(to_ptrs, tl.load(params_ptrs[:, None] + p, wanted, 0.0), wanted)
            else:
                value = start_value(
                    tl.sum(sums, 0), memory_ptrs, constants_ptr, exists, image, block_ptr, lists_ptr, numbers_ptr, y, x,
                    BLOCK_O,
                )  # fmt: skip
                finish_block(value, memory_ptrs, exists, block_ptr, ops_ptr, lists_ptr, numbers_ptr, x, BLOCK_O)
            tl.debug_barrier()  # other threads of this program read these numbers next


def aot_cases() -> list[AotCase]:
    """Tiny stacks, one for each head: the kernels do not depend on the network."""
    cases = []
    for name, head, channels, outputs, images, given in (
        ("bernoulli", HeadRecord(HeadCode.BERNOULLI, 1, 1, 2), 1, 1, 64, False),
        ("bernoulli, many images", HeadRecord(HeadCode.BERNOULLI, 1, 1, 2), 1, 1, 1024, False),
        ("categorical, given", HeadRecord(HeadCode.CATEGORICAL, 3, 1, 256), 3, 768, 64, True),
        ("mixture", HeadRecord(HeadCode.LOGISTIC_MIXTURE, 4, 10, 256), 3, 100, 64, False),
    ):
        buffers = (
            Buffer(channels, "pixel", 2, 1, 1, (1,) * channels),
            Buffer(outputs, "row"),
            *(Buffer(outputs, "pixel", passes=(0,) * outputs) for _ in range(2)),
        )
        above, before = tuple((tap, -1, tap - 1) for tap in range(3)), ((3, 0, -1),)
        nodes = (
            Conv(Span(1, 0, outputs), Span(0, 0, channels), 0, 0, above, 9),
            Conv(Span(2, 0, outputs), Span(0, 0, channels), 0, 0, before, 9),
            Pointwise(Span(3, 0, outputs), Span(2, 0, outputs), Span(1, 0, outputs), "add"),
        )
        plan = SamplingPlan(buffers, nodes, ("conv",), (), (0,) * channels)
        binding = Binding([meta(outputs, channels, 3, 3)], [None], [])
        # Images of one row: each row has the same launches.
        x, columns = meta(images, channels, 1, 28), 28 * head.columns
        kept = meta(images, channels, 1, 28, dtype=torch.int32) if given else None
        parameters = meta(images, outputs, 1, 28) if given else None
        args = (plan, binding, head, x, kept, meta(images, columns), 1.0, parameters)
        cases.append(AotCase(name, causal_sampler, args))
        if name == "bernoulli":
            args = (plan, binding, head, x, None, None, 1.0, meta(images, outputs, 1, 28))
            cases.append(AotCase("parameters of finished images", causal_sampler, args))
    return cases


def causal_sampler(
    plan: SamplingPlan,
    binding: Binding,
    head: HeadRecord,
    images: Tensor,
    given: Tensor | None,
    uniforms: Tensor | None,
    temperature: float,
    parameters: Tensor | None,
) -> None:
    """Draws float32 images in place; the arguments are those of :func:`fastvae.ops.causal_sampler.causal_sampler`."""
    n, _, height, width = images.shape
    program = get_program(plan, binding, height, width, images.device, _BLOCK_O, _BLOCK_K)
    memory = images.new_zeros(n, program.image_numbers)
    shared = (
        memory, program.tables, program.lists, program.gather_numbers(binding), program.gather_constants(binding)
    )  # fmt: skip
    drawn = (
        images, images if parameters is None else parameters,
        images if given is None else given.to(torch.int32).contiguous(), images if uniforms is None else uniforms,
        program.colors,
    )  # fmt: skip
    table = _Table(
        program.image_numbers, program.tables.shape[1], program.blocks_at, program.ops_at, program.period,
        tuple(program.row_blocks), program.first_run, program.pixel_blocks,
    )  # fmt: skip
    has = uniforms is not None, given is not None, parameters is not None
    numbers = plan.num_colors, plan.parameter_channels, float(temperature)
    for rows, pixels in _plan(images.get_device(), images.shape, table, head, numbers, has):
        for blocks in rows:
            blocks.launch(*shared)
        pixels.launch(*shared, *drawn)


class _Table(NamedTuple):
    """What launches say of a program's tables."""

    image_numbers: int
    numbers: int
    blocks_at: int
    ops_at: int
    period: int
    row_blocks: Sequence[tuple[int, int]]
    first_run: int
    pixel_blocks: Sequence[int]


@by_shape
def _plan(
    device: int,
    of_images: Sequence[int],
    table: _Table,
    head: HeadRecord,
    numbers: tuple[int, int, float],
    has: tuple[bool, bool, bool],
) -> list[tuple[list[Plan], Plan]]:
    """For each row of the images the launches of blocks that are computed at once, and that of the pixels.

    `numbers` are colors, parameters of a pixel, and the temperature; `has` says whether the pixels draw, and whether
    given images and parameters are there.
    """
    (n, channels, height, width), (colors, outputs, temperature) = of_images, numbers
    samples, has_given, has_parameters = has
    categories = head.components if head.kind == HeadCode.LOGISTIC_MIXTURE else head.levels
    of_program = min(next_power_of_2(ceil_div(n, _WAVE)), _MOST_IMAGES)
    # More warps for more images: a thread then has as many weights, and the loads of few terms stay cheap.
    warps, found = _WARPS * of_program, []
    for y in range(height):
        row = y, y % table.period, table.numbers, table.blocks_at, table.ops_at
        rows = [
            Plan(
                device, _causal_sampler_row_kernel, ceil_div(n * width, _PIXELS),
                (table.image_numbers, n, width, *row, *blocks),
                BLOCK_N=_PIXELS, BLOCK_O=_BLOCK_O, BLOCK_K=_ROW_BLOCK_K, **launch_options(_ROW_WARPS, _ROW_STAGES),
            )
            for blocks in table.row_blocks
        ]  # fmt: skip
        pixels = Plan(
            device, _causal_sampler_pixel_kernel, ceil_div(n, of_program),
            (
                table.image_numbers, n, height, width, *row, table.first_run, *table.pixel_blocks, outputs,
                temperature,
            ),
            C=channels, COLORS=colors, HEAD=int(head.kind), COMPONENTS=head.components, LEVELS=head.levels,
            COLUMNS=head.columns, BLOCK_L=min(next_power_of_2(categories), _BLOCK_L), SAMPLES=samples,
            HAS_GIVEN=has_given, HAS_PARAMETERS=has_parameters, BLOCK_N=of_program, BLOCK_O=_BLOCK_O,
            BLOCK_K=_BLOCK_K, PARTS=warps, **launch_options(warps),
        )  # fmt: skip
        found.append((rows, pixels))
    return found
