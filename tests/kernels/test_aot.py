"""Every kernel compiles for every target without a GPU, and the machine code is what it should be.

Compilation needs Triton outside its interpreter, hence another process.
"""

import importlib
import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from fastvae.kernels import aot

ROOT = Path(__file__).parents[2]
# What is 128 bits wide for contiguous float32 rows of 512: loads and stores; loads alone where sums are stored.
TILES = {
    "_diag_gaussian_fwd_kernel",
    "_diag_gaussian_bwd_kernel",
    "_diag_gaussian_log_prob_bwd_kernel",
    "_diag_gaussian_kl_bwd_kernel",
    "_tril_gaussian_kl_bwd_kernel",
    "_affine_flow_fwd_kernel",
    "_affine_flow_bwd_kernel",
}
SUMS = {
    "_diag_gaussian_bwd_samples_kernel",
    "_diag_gaussian_log_prob_fwd_kernel",
    "_diag_gaussian_kl_fwd_kernel",
    "_tril_gaussian_kl_fwd_kernel",
}
MATRIX = {
    "_masked_conv2d_bwd_weight_kernel",
    "_masked_conv2d_fwd_kernel",
    "_masked_linear_fwd_kernel",
    "_masked_linear_bwd_x_kernel",
    "_masked_linear_bwd_weight_kernel",
}


def run(*arguments: str, interpret: str = "0") -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "fastvae.kernels.aot", *arguments]
    environment = os.environ | {"TRITON_INTERPRET": interpret}
    return subprocess.run(command, env=environment, capture_output=True, text=True)


# Problems large enough for the widest tiles: those of half types, and of float32 where TF32 is allowed.
LARGE = {
    "_masked_linear_fwd_kernel": "1920 -> 1920",
    "_masked_linear_bwd_x_kernel": "1920 -> 1920",
    "_masked_linear_bwd_weight_kernel": "1920 -> 1920",
    "_masked_conv2d_fwd_kernel": "128 -> 128",
    "_masked_conv2d_bwd_weight_kernel": "128 -> 128",
}


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    path = tmp_path_factory.mktemp("aot") / "rows.json"
    finished = run("--json", str(path))
    assert finished.returncode == 0, finished.stdout[-4000:] + finished.stderr[-4000:]
    return finished.stdout, json.loads(path.read_text())


def test_every_kernel_compiles_for_every_target(report):
    _, rows = report
    assert [row for row in rows if row["error"]] == []
    compiled = {(row["kernel"], row["target"]) for row in rows}
    modules = [importlib.import_module(f"fastvae.kernels.{stem}") for stem in aot.stems()]
    kernels = {name for module in modules for name in vars(module) if name.endswith("_kernel")}
    assert compiled == {(kernel, target) for kernel in kernels for target in aot.TARGETS}


def test_instructions_of_every_row_are_counted(report):
    _, rows = report
    assert [row for row in rows if not row["instructions"]] == []


def test_no_local_memory(report):
    """On no target by the Triton that development is pinned to; by others on sm_90, which tiles are chosen for."""
    _, rows = report
    pinned = f"triton=={version('triton')}" in (ROOT / "constraints.txt").read_text().split()
    targets = aot.TARGETS if pinned else ("sm_90",)
    assert [row for row in rows if row["local"] and row["target"] in targets] == []


@pytest.mark.parametrize("target", aot.TARGETS)
def test_wide_accesses(report, target):
    _, rows = report
    aligned = [row for row in rows if row["target"] == target and row["case"].startswith("float32, D = 512")]
    assert {row["kernel"] for row in aligned} >= TILES | SUMS
    narrow = [row for row in aligned if row["kernel"] in TILES | SUMS and not row["loads_128"]]
    narrow += [row for row in aligned if row["kernel"] in TILES and not row["stores_128"]]
    assert narrow == []


@pytest.mark.parametrize("target", aot.TARGETS)
def test_matrix_instructions(report, target):
    _, rows = report
    half = [
        row
        for row in rows
        if row["target"] == target and row["kernel"] in MATRIX and row["case"].startswith(("bfloat16", "float16"))
    ]
    assert {row["kernel"] for row in half} == MATRIX
    assert [row for row in half if not row["matrix"]] == []


@pytest.mark.parametrize("dtype", ["bfloat16", "tf32"])
@pytest.mark.parametrize("kernel", sorted(MATRIX))
def test_large_products_are_those_of_a_warp_group(report, kernel, dtype):
    """Four warps of Hopper multiply together; and all that multiplies, multiplies so."""
    _, rows = report
    large = [
        row
        for row in rows
        if (row["kernel"], row["target"]) == (kernel, "sm_90")
        and row["case"].startswith(f"{dtype}, ")
        and LARGE[kernel] in row["case"]
    ]
    assert large
    assert [row for row in large if not row["matrix"] == row["warp_group"] > 0] == []


def test_noise_needs_no_shared_memory(report):
    """Drawn in the layout of the loads: see `in_layout_of`. The forward pass reduces, the backward pass does not."""
    _, rows = report
    (row,) = [
        row
        for row in rows
        if (row["kernel"], row["case"], row["target"])
        == ("_diag_gaussian_bwd_kernel", "float32, D = 512, seed", "sm_90")
    ]
    assert row["shared"] == 0


@pytest.mark.parametrize("target", aot.TARGETS)
def test_sampler_loads_vectors_of_weights(report, target):
    """Of each run at a pixel, and of each step along the terms of a row."""
    _, rows = report
    for kernel, least in (("_causal_sampler_pixel_kernel", 8), ("_causal_sampler_row_kernel", 4)):
        chosen = [row for row in rows if (row["kernel"], row["target"]) == (kernel, target)]
        assert chosen
        assert [row for row in chosen if row["loads_128"] < least] == []


def test_table_has_a_line_per_row(report):
    table, rows = report
    assert len(table.splitlines()) == 1 + len(rows)


def test_failures_are_reported():
    finished = run("--targets", "sm_35", "--stems", "affine_flow")  # LLVM knows it, ptxas no longer
    assert finished.returncode == 1
    assert "compilations failed" in finished.stderr


def test_unknown_stems_are_named():
    finished = run("--stems", "affine_flow,no_such")
    assert finished.returncode == 2
    assert "got no_such" in finished.stderr


def test_interpreter_is_refused():
    finished = run("--targets", "sm_90", interpret="1")
    assert finished.returncode != 0
    assert "TRITON_INTERPRET" in finished.stderr
