"""Every kernel compiles for every target without a GPU, and the machine code is what it should be.

Compilation needs Triton outside its interpreter, hence another process. The installed Triton compiles one case of each
kernel for every target; the Triton of GPU machines compiles all cases for sm_90, and in `make test-all` the installed
one does so too.
"""

import fcntl
import importlib
import json
import os
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from torch.utils._pytree import tree_leaves

from bench import floors
from fastvae.kernels import aot

ROOT = Path(__file__).parents[2]
GPU_TRITON = ROOT / "build" / "triton-3.6.0"
COMPILERS = {
    "installed": ("--brief",),
    "3.6.0": ("--triton", str(GPU_TRITON), "--targets", "sm_90"),
    "installed, all cases": ("--targets", "sm_90"),
}
WIDE = re.compile(r"D = (512|1024)\b")
# What is 128 bits wide for contiguous rows of so many numbers: loads and stores; loads alone where sums are stored.
TILES = {
    "_bernoulli_fwd_kernel",
    "_bernoulli_bwd_kernel",
    "_diag_gaussian_fwd_kernel",
    "_diag_gaussian_bwd_kernel",
    "_diag_gaussian_log_prob_bwd_kernel",
    "_diag_gaussian_kl_bwd_kernel",
    "_tril_gaussian_kl_bwd_kernel",
    "_affine_flow_fwd_kernel",
    "_affine_flow_bwd_kernel",
    "_gaussian_merge_fwd_kernel",
    "_gaussian_merge_bwd_kernel",
}
# Tiles of half types hold two numbers a thread here: more would not fit in its registers. The case that shows most of a
# kernel is of a half type.
NARROW_HALVES = {"_gaussian_merge_fwd_kernel", "_gaussian_merge_bwd_kernel"}
SUMS = {
    "_diag_gaussian_bwd_samples_kernel",
    "_diag_gaussian_log_prob_fwd_kernel",
    "_diag_gaussian_kl_fwd_kernel",
    "_tril_gaussian_kl_fwd_kernel",
}
# Rows of packed triangles are not aligned: their accesses are one element wide.
TRIANGLES = {
    "_tril_gaussian_fwd_kernel",
    "_tril_gaussian_bwd_kernel",
    "_tril_gaussian_log_prob_fwd_kernel",
    "_tril_gaussian_log_prob_bwd_kernel",
}
# Problems large enough for the widest tiles: those of half types, and of float32 where TF32 is allowed.
MATRIX = {
    "_masked_conv2d_bwd_weight_kernel": "128 -> 128",
    "_masked_conv2d_fwd_kernel": "128 -> 128",
    "_masked_linear_fwd_kernel": "1920 -> 1920",
    "_masked_linear_bwd_x_kernel": "1920 -> 1920",
    "_masked_linear_bwd_weight_kernel": "1920 -> 1920",
}
HALF = ("bfloat16", "float16")
# What the largest floor of an op takes: points, parameters or images.
LARGEST = {
    "diag_gaussian": (65536, 1024),
    "tril_gaussian": (4096, 256),
    "masked_linear": (16384, 1920),
    "autoregressive_flow": (16384, 64),
    "autoregressive_inverse": (1024, 64),
    "masked_conv2d": (128, 128, 32, 32),
    "causal_sampler": (64, 1, 1, 28),
}
# Rules that kernels break, by compiler where one alone makes them do so, and why. A kernel that keeps its rule fails.
_LONG_ACTIVATION = "with gelu its widest tile needs more than 128 registers of each thread"
_IMAGES = "pixels of images that are not channels last need more than 128 registers of each thread"
KNOWN: dict[tuple[str, str], dict[str, str]] = {
    ("two programs", "any"): {
        "_masked_linear_fwd_kernel": _LONG_ACTIVATION,
        "_masked_conv2d_fwd_kernel": _IMAGES,
        "_masked_conv2d_bwd_weight_kernel": _IMAGES,
    },
}

of_all_cases = pytest.param("installed, all cases", marks=pytest.mark.thorough)
by_compiler = pytest.mark.parametrize("compiler", ["installed", "3.6.0", of_all_cases])
# What a rule needs cases for that do not show most of a kernel.
with_all_cases = pytest.mark.parametrize("compiler", ["3.6.0", of_all_cases])


def run(*arguments: str, interpret: str = "0") -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "fastvae.kernels.aot", *arguments]
    environment = os.environ | {"TRITON_INTERPRET": interpret}
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def run_once(compiler: str, folder: Path) -> tuple[str, list[dict]]:
    """The report's table and rows. Workers that share `folder` make it once."""
    rows, table = folder / f"aot-{compiler}.json", folder / f"aot-{compiler}.txt"
    with (folder / f"aot-{compiler}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not table.exists():
            finished = run(*COMPILERS[compiler], "--json", str(rows))
            assert finished.returncode == 0, finished.stdout[-4000:] + finished.stderr[-4000:]
            table.write_text(finished.stdout)
    return table.read_text(), json.loads(rows.read_text())


@pytest.fixture(scope="module")
def report_of(tmp_path_factory):
    """The table and the rows of a compiler."""
    assert GPU_TRITON.is_dir(), f"{GPU_TRITON} is missing: make {GPU_TRITON.relative_to(ROOT)}/installed"
    folder = tmp_path_factory.getbasetemp()
    folder = folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder
    return lambda compiler: run_once(compiler, folder)


@pytest.fixture
def rows(report_of, compiler):
    return report_of(compiler)[1]


@pytest.fixture
def hopper(rows):
    """The rows for the GPU that tiles are chosen for."""
    return [row for row in rows if row["target"] == "sm_90"]


def assert_met(rule: str, compiler: str, broken: list[dict]) -> None:
    """The kernels that break the rule are those that are known to."""
    cases = {(row["kernel"], row["case"]) for row in broken}
    known = set(KNOWN.get((rule, "any"), {})) | set(KNOWN.get((rule, compiler), {}))
    assert {kernel for kernel, _ in cases} == known, cases


@by_compiler
def test_every_kernel_compiles_for_every_target(rows, compiler):
    assert [row for row in rows if row["error"]] == []
    compiled = {(row["kernel"], row["target"]) for row in rows}
    modules = [importlib.import_module(f"fastvae.kernels.{stem}") for stem in aot.stems()]
    kernels = {name for module in modules for name in vars(module) if name.endswith("_kernel")}
    targets = aot.TARGETS if compiler == "installed" else ("sm_90",)
    assert compiled == {(kernel, target) for kernel in kernels for target in targets}


@pytest.mark.parametrize("op", [op for op in floors.list_ops() if op != "training_step"])
def test_cases_have_the_shapes_of_the_floors(op):
    """So that the report's waves are those of what is measured."""
    wanted = {(floor.case.dtype, LARGEST[op]) for floor in floors.select(op) if floor.timer == "events"}
    stems = [stem for stem in aot.stems() if stem in (op, f"{op}_gradients")]
    for stem in stems:
        arguments = [argument for case in aot.cases(stem) for argument in tree_leaves(case.args)]
        tensors = [t for t in arguments if isinstance(t, torch.Tensor)]
        found = {(str(t.dtype).removeprefix("torch."), tuple(t.shape)) for t in tensors}
        assert wanted <= found, stem


@by_compiler
def test_triton_is_the_one_that_was_asked_for(rows, compiler):
    assert {row["triton"] for row in rows} == {compiler if compiler == "3.6.0" else version("triton")}


@by_compiler
def test_instructions_of_every_row_are_counted(rows):
    assert [row for row in rows if not row["instructions"]] == []


@by_compiler
def test_no_local_memory(rows, compiler):
    """On no target by the Triton that development is pinned to; by others on sm_90, which tiles are chosen for."""
    pinned = f"triton=={version('triton')}" in (ROOT / "constraints.txt").read_text().split()
    targets = aot.TARGETS if pinned and compiler == "installed" else ("sm_90",)
    assert [row for row in rows if row["local"] and row["target"] in targets] == []


@pytest.mark.parametrize("target", aot.TARGETS)
def test_wide_accesses(report_of, target):
    _, rows = report_of("installed")
    aligned = [row for row in rows if row["target"] == target and WIDE.search(row["case"])]
    assert {row["kernel"] for row in aligned} >= (TILES | SUMS) - NARROW_HALVES
    narrow = [row for row in aligned if row["kernel"] in TILES | SUMS and not row["loads_128"]]
    narrow += [row for row in aligned if row["kernel"] in TILES and not row["stores_128"]]
    assert narrow == []


@with_all_cases
def test_rows_are_coalesced_16_bytes_a_thread(hopper):
    aligned = [
        (row, request)
        for row in hopper
        if row["kernel"] in TILES | SUMS and row["case"].startswith("float32, ") and WIDE.search(row["case"])
        for request in row["requests"]
    ]
    assert {row["kernel"] for row, _ in aligned} == TILES | SUMS
    assert [(row["kernel"], request) for row, request in aligned if request["bytes"] != 16] == []
    assert [(row["kernel"], request) for row, request in aligned if request["sectors"] != request["least"]] == []


@with_all_cases
def test_triangles_are_coalesced(hopper):
    """An access of a warp takes the sectors that its bytes fill, and one more where they begin inside of one."""
    triangles = [
        (row, request)
        for row in hopper
        if row["kernel"] in TRIANGLES and ("D = 256" in row["case"] or "D = 512" in row["case"])
        for request in row["requests"]
        if request["argument"] in ("tril_ptr", "d_tril_ptr")
    ]
    assert {row["kernel"] for row, _ in triangles} == TRIANGLES
    assert [(row["case"], request) for row, request in triangles if request["sectors"] > request["least"] + 1] == []


@pytest.mark.parametrize("target", aot.TARGETS)
def test_matrix_instructions(report_of, target):
    _, rows = report_of("installed")
    half = [row for row in rows if row["target"] == target and row["kernel"] in MATRIX and row["case"].startswith(HALF)]
    assert {row["kernel"] for row in half} == set(MATRIX)
    assert [row for row in half if not row["matrix"]] == []


@with_all_cases
@pytest.mark.parametrize("dtype", ["bfloat16", "tf32"])
@pytest.mark.parametrize("kernel", sorted(MATRIX))
def test_large_products_are_those_of_a_warp_group(hopper, kernel, dtype):
    """Four warps of Hopper multiply together; and all that multiplies, multiplies so."""
    large = [
        row
        for row in hopper
        if row["kernel"] == kernel and row["case"].startswith(f"{dtype}, ") and MATRIX[kernel] in row["case"]
    ]
    assert large
    assert [row for row in large if not row["matrix"] == row["warp_group"] > 0] == []


@with_all_cases
def test_no_product_waits_for_the_one_before(hopper, compiler):
    assert_met("serialised", compiler, [row for row in hopper if row["serialised"]])


@with_all_cases
def test_two_programs_of_a_matrix_kernel_share_a_multiprocessor(hopper, compiler):
    """In half types: one program's products cover what the other one does between its own."""
    half = [row for row in hopper if row["kernel"] in MATRIX and row["case"].startswith(HALF)]
    assert {row["kernel"] for row in half} == set(MATRIX)
    assert_met("two programs", compiler, [row for row in half if row["resident"] < 2])


@with_all_cases
def test_loops_are_free_of_calls_and_wide_divisions(hopper, compiler):
    """Elementary functions of float64 call subroutines."""
    fast = [row for row in hopper if not row["case"].startswith("float64")]
    assert_met("calls", compiler, [row for row in fast if row["calls"] or row["divisions"]])


@with_all_cases
def test_noise_needs_no_shared_memory(hopper):
    """Drawn in the layout of the loads: see `in_layout_of`. The forward pass reduces, the backward pass does not."""
    (row,) = [
        row
        for row in hopper
        if (row["kernel"], row["case"]) == ("_diag_gaussian_bwd_kernel", "float32, D = 1024, seed")
    ]
    assert row["shared"] == 0


@pytest.mark.parametrize("target", aot.TARGETS)
def test_sampler_loads_vectors_of_weights(report_of, target):
    """Of each run at a pixel, and of each step along the terms of a row."""
    _, rows = report_of("installed")
    for kernel, least in (("_causal_sampler_pixel_kernel", 8), ("_causal_sampler_row_kernel", 4)):
        chosen = [row for row in rows if (row["kernel"], row["target"]) == (kernel, target)]
        assert chosen
        assert [row for row in chosen if row["loads_128"] < least] == []


@by_compiler
def test_table_has_a_line_per_row(report_of, compiler):
    table, rows = report_of(compiler)
    assert len(table.splitlines()) == 1 + len(rows)


def test_failures_are_reported():
    finished = run("--targets", "sm_35", "--stems", "affine_flow")  # LLVM knows it, ptxas no longer
    assert finished.returncode == 1
    assert "compilations failed" in finished.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--stems", "affine_flow,no_such"), "got no_such"),
        (("--triton", "no_such"), "--triton must be a folder with the package triton, got no_such"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    finished = run(*arguments)
    assert finished.returncode == 2
    assert message in finished.stderr


def test_interpreter_is_refused():
    finished = run("--targets", "sm_90", interpret="1")
    assert finished.returncode != 0
    assert "TRITON_INTERPRET" in finished.stderr
