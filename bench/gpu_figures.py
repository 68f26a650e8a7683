"""Figures that no code can tell: seconds for the rehearsal of a check, counts and predictions for the table of floors.

Edit them here when a kernel or a compiler changes.
"""

from __future__ import annotations

from typing import NamedTuple

# Seconds of one core for a distinct specialisation of a kernel: compilation for sm_90 by Triton 3.6, and gcc for the
# launcher that 3.6 makes of each signature.
KERNEL_S, LAUNCHER_S = 0.46, 0.25
# More processes than cores share the machine while the tests run.
CONTENTION = 1.3
# The measurement of the limits in one type.
LIMIT_S = 1.5
# A process until its first launch: imports, and the device's context.
START_S = 5.0
# torch.compile: its imports, a graph out of nothing, the same graph out of the cache.
COMPILER_START_S, GRAPH_S, CACHED_GRAPH_S = 3.0, 9.0, 1.5
# The same for a whole training step with its optimiser.
STEP_GRAPH_S, CACHED_STEP_GRAPH_S = 66.0, 18.0
# A test without its compilations; the collection of all tests.
TEST_S, COLLECTION_S = 0.3, 4.0
# Tests that are about no problem of tests/gpu/problems.py, on one worker.
OTHER_TESTS_S = 15.0
# A row before its timing, then each provider under each timer.
ROW_S, TIMER_S = 0.7, 0.2
# Rows whose single calls are long: the loop over whole passes, the check of a sampler, the building of a model.
LONG_ROWS_S = {"naive": 10.0, "causal_sampler": 3.0, "training_step": 6.0}
# Tests of offsets, which fill gigabytes, and their kernels; a tool of compute-sanitizer slows a test down.
OFFSETS_TESTS, OFFSETS_KERNELS, OFFSETS_TEST_S = 14, 40, 1.5
SANITIZED_TEST_S, SANITIZED_START_S = 2.0, 20.0
# A profiler's start, and its passes for each kernel.
PROFILER_START_S, PROFILED_KERNEL_S = 15.0, 0.5


# Kernels of one floor by op, about: what is compiled before is shared out by them.
KERNELS = {"training_step": 25, "autoregressive_flow": 14, "masked_conv2d": 8}


def kernel_seconds(op: str) -> float:
    """The kernels of an op in one dtype, and the calls that need them."""
    return KERNELS.get(op, 4) * (KERNEL_S + LAUNCHER_S) + LONG_ROWS_S.get(op, 0.0)


def compile_seconds(op: str) -> float:
    """One graph of an op's reference, out of nothing."""
    return STEP_GRAPH_S if op == "training_step" else GRAPH_S


def cached_compile_seconds(op: str) -> float:
    """The same graph out of the cache."""
    return CACHED_STEP_GRAPH_S if op == "training_step" else CACHED_GRAPH_S


class Rates(NamedTuple):
    """What a device gives by estimate: bytes per second of a copy; operations per second of products."""

    copy: float
    half: float
    single: float


H100 = Rates(3.0e12, 8.0e14, 5.9e13)


class Figure(NamedTuple):
    """Of one row: what was counted in compiled code for sm_90, and the time predicted from it on an H100, µs."""

    counts: str
    low: float
    high: float


# By the name of a case.
FIGURES: dict[str, Figure] = {
    "diag_gaussian.rsample fwd [65536x1024] float32": Figure(
        "46.6 instructions an element (94 to 105 µs of issue); 64 registers, 32 warps a multiprocessor", 285, 310
    ),
    "diag_gaussian.rsample fwdbwd [65536x1024] float32": Figure("two kernels", 575, 620),
    "diag_gaussian.rsample fwd [65536x1024] bfloat16": Figure(
        "40.8 instructions an element (82 to 92 µs of issue); 24 warps a multiprocessor", 150, 170
    ),
    "diag_gaussian.rsample fwdbwd [65536x1024] bfloat16": Figure("two kernels", 300, 340),
    "diag_gaussian.rsample fwdbwd [128x32] float32": Figure("2 launches", 4, 8),
    "diag_gaussian.rsample fwdbwd [50x100x50] float32": Figure("2 launches", 5, 10),
    "tril_gaussian.rsample.dense fwd [4096x256] float32": Figure(
        "1015 instructions a tile, 64 registers, one warp a program (165 to 190 µs of issue)", 210, 260
    ),
    "tril_gaussian.rsample.dense fwdbwd [4096x256] float32": Figure("two kernels", 625, 780),
    "tril_gaussian.rsample.dense fwd [65536x64] float32": Figure("as above", 225, 280),
    "tril_gaussian.rsample.dense fwdbwd [65536x64] float32": Figure("two kernels", 650, 820),
    "tril_gaussian.rsample.dense fwdbwd [512x64] float32": Figure("2 launches", 8, 14),
    "masked_linear.linear fwd [16384x1920] bfloat16": Figure(
        "75 instructions a step, 2 HGMMA 64x128x16; 117 registers, two programs a multiprocessor", 100, 115
    ),
    "masked_linear.linear fwdbwd [16384x1920] bfloat16": Figure(
        "102 and 78 instructions a step; 125 and 128 registers, two programs a multiprocessor", 330, 350
    ),
    "autoregressive_flow.flow.1920-1920 fwd [16384x64] bfloat16": Figure("4 launches", 150, 190),
    "autoregressive_flow.flow.1920-1920 fwdbwd [16384x64] bfloat16": Figure(
        "9 launches and one for each split layer", 480, 600
    ),
    "autoregressive_flow.flow.320-320 fwdbwd [128x32] float32": Figure("9 launches", 32, 53),
    "autoregressive_inverse.inverse.512-512 fwd [1024x64] float32": Figure(
        "1650 cycles a feature, 264 of them products; one wave of 128 blocks", 53, 63
    ),
    "masked_conv2d.convolution.7x7-B-128-128 fwd [128x32] bfloat16": Figure(
        "153 instructions a step of 128x128x64; 121 registers, two programs a multiprocessor", 215, 250
    ),
    "masked_conv2d.convolution.7x7-B-128-128 fwdbwd [128x32] bfloat16": Figure(
        "220 instructions a step of the weight's gradient; 106 registers, 250 programs, 0.95 of a wave", 850, 930
    ),
    "masked_conv2d.convolution.3x3-B-128-128 fwd [128x32] bfloat16": Figure("as 7 x 7, 5 taps instead of 25", 50, 62),
    # The gradient of the weight at the rate of 7 x 7, 270 TFLOP/s; that of the images as forward.
    "masked_conv2d.convolution.3x3-B-128-128 fwdbwd [128x32] bfloat16": Figure(
        "as 7 x 7; 260 programs for the weight, 0.98 of a wave", 200, 245
    ),
    "causal_sampler.sample.gated-7x64 fwd [64x784] float32": Figure(
        "31 000 cycles a pixel, half of them instructions; 224 launches", 16_000, 18_000
    ),
    # Of each flow forward: 105 µs, 75 of them the wide product, half masked, at 60 % of the rate; backward: 220 µs,
    # of which 140 are two products, and 65 what norms, factors and sums of parts read and write.
    "training_step.step.iaf-8x1920 step [512x32] float32": Figure(
        "170 launches; 50 GFLOP of products that masks leave; 31 million weights: 0.87 GB of Adam", 2800, 4200
    ),
    # Below are ops without a floor. A device issues 927 thousand million instructions of warps a second. PyTorch's
    # products of float32 count as 50 TFLOP/s.
    "affine_flow.forward fwd [65536x1024] float32": Figure(
        "81 instructions an element (183 µs of issue); 40 registers, 48 warps a multiprocessor", 380, 430
    ),
    "affine_flow.forward fwdbwd [65536x1024] float32": Figure("backward 72 instructions an element", 1050, 1180),
    "gaussian_merge.rsample fwd [65536x1024] float32": Figure(
        "159 instructions an element (361 µs of issue); 128 registers, 16 warps a multiprocessor", 480, 600
    ),
    "gaussian_merge.rsample fwdbwd [65536x1024] float32": Figure(
        "backward 183 instructions an element; 96 registers", 1350, 1650
    ),
    "bernoulli.sample fwd [65536x1024] float32": Figure(
        "90 instructions an element (203 µs of issue); 61 registers, 32 warps a multiprocessor", 220, 280
    ),
    "bernoulli.sample fwdbwd [65536x1024] float32": Figure("backward 49 instructions an element", 510, 600),
    "class_linear.layer.784 fwd [4096x512] float32": Figure("PyTorch's product and one kernel", 95, 115),
    "class_linear.layer.784 fwdbwd [4096x512] float32": Figure("two products, one kernel and a sum more", 320, 400),
    "gated_activation.gate.768_channels_last fwd [48x64] float32": Figure(
        "69 instructions an output (176 µs of issue); 31 registers, 64 warps a multiprocessor", 320, 370
    ),
    "gated_activation.gate.768_channels_last fwdbwd [48x64] float32": Figure(
        "backward 78 instructions an output", 860, 1000
    ),
    "logistic_mixture.likelihood fwd [256x32] float32": Figure(
        "5800 instructions a pixel (52 µs of issue); 40 registers", 60, 80
    ),
    "logistic_mixture.likelihood fwdbwd [256x32] float32": Figure(
        "backward 8600 instructions a pixel (76 µs of issue); 62 registers", 150, 195
    ),
    "linear_bernoulli.log_prob fwd [128x512x400] float32": Figure(
        "PyTorch's product (820 µs) and one kernel (202 µs of issue)", 1000, 1150
    ),
    "linear_bernoulli.log_prob fwdbwd [128x512x400] float32": Figure("four products and two kernels", 3500, 4000),
    "mlp_bernoulli.log_prob fwd [128x512x400] float32": Figure(
        "no kernel of its own: PyTorch's products (1280 µs), then that of `linear_bernoulli`", 1480, 1700
    ),
    "mlp_bernoulli.log_prob fwdbwd [128x512x400] float32": Figure(
        "the products of both passes, two kernels", 5300, 6100
    ),
    "latent_gradient.gradient fwd [4096x400] float32": Figure("six products of PyTorch and five kernels", 200, 250),
    "linear_tril_gaussian.rsample_with_kl fwd [4096x400x128] float32": Figure(
        "no kernel of its own: PyTorch's product (550 µs), then those of `tril_gaussian`", 610, 700
    ),
    "linear_tril_gaussian.rsample_with_kl fwdbwd [4096x400x128] float32": Figure("three products", 1850, 2100),
    # A program holds a row of points; each weighs all pixels of its image anew.
    "attention_window.read fwd [4096x28] float32": Figure(
        "16 384 programs of 8 warps, 610 instructions each (87 µs of issue); 39 registers", 90, 130
    ),
    "attention_window.read fwdbwd [4096x28] float32": Figure(
        "4 launches; 1050 instructions a warp of the window's gradient; 79 registers", 280, 400
    ),
    "attention_window.write fwd [4096x28] float32": Figure(
        "8192 programs of 4 warps, about 1000 instructions each (35 µs of issue)", 35, 55
    ),
    "attention_window.write fwdbwd [4096x28] float32": Figure("3 launches", 220, 310),
}


def name_case(case: object) -> str:
    """A case's name without its device."""
    return str(case).rpartition(" ")[0]
