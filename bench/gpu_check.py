"""``make gpu-check``: build, test and measure on a machine with a GPU, into one JSON and one Markdown file.

Needs PyTorch, Triton and the build tools, but no network. Every step has a time limit, and its record is on
disk before the next begins: what was done when the time was over, or the machine gone, is kept. The limits of all steps
but the last measurements fit into the whole time together.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import shutil
import sys
import sysconfig
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from . import environment, report, results, tuning
from .steps import Step, run_step

_ROOT = Path(__file__).resolve().parent.parent
_LIMIT_S = 530.0
_LEAST_S = 8.0
_NOT_COPIED = shutil.ignore_patterns(
    ".git",
    ".venv",
    "build",
    "dist",
    "demo-out",
    "results",
    ".*_cache",
    "__pycache__",
    "*.so",
    ".hypothesis",
    ".cache",
)

# Arguments of python -m bench and seconds; the most telling first, since the last ones go when time runs out.
_FIRST_MEASUREMENTS = (
    (
        "bench diag_gaussian rsample",
        "--op diag_gaussian --entry rsample --dtype fp32 --shape 4096x1024,65536x1024,128x32,50x100x50 --graphs",
        40,
    ),
    (
        "bench tril_gaussian rsample",
        "--op tril_gaussian --entry rsample --variant dense --dtype fp32"
        " --shape 4096x256,65536x64,512x64,256x256 --graphs",
        40,
    ),
)
_MEASUREMENTS = (
    (
        "bench masked_linear",
        "--op masked_linear --entry linear --dtype bf16,fp32 --shape 16384x1920,1024x1920,128x320 --graphs",
        45,
    ),
    ("bench masked_conv2d", "--op masked_conv2d --entry convolution --dtype bf16,fp32 --graphs", 45),
    ("bench autoregressive_flow", "--op autoregressive_flow --entry flow --impl fastvae,reference,compile", 40),
    ("bench causal_sampler", "--op causal_sampler --impl fastvae,reference,forward", 45),
    (
        "bench autoregressive_inverse",
        "--op autoregressive_inverse --entry inverse --shape 1024x64 --mode fwd --impl fastvae,reference,forward,zuko",
        40,
    ),
    ("bench training_step", "--op training_step --dtype fp32 --graphs", 45),
    ("bench logistic_mixture", "--op logistic_mixture --mode fwdbwd --graphs", 35),
    ("bench gated_activation", "--op gated_activation --graphs", 35),
    ("bench gated_stack", "--op gated_stack --dtype fp32 --graphs", 30),
    ("bench affine_flow", "--op affine_flow --mode fwdbwd --graphs", 30),
    (
        "bench densities",
        "--op diag_gaussian,tril_gaussian --entry log_prob,kl --dtype fp32 --shape 4096x256 --mode fwdbwd",
        35,
    ),
    (
        "bench packed and bfloat16",
        "--op tril_gaussian,diag_gaussian --entry rsample --dtype bf16,fp32 --shape 4096x256 --mode fwdbwd",
        30,
    ),
)
# With --tune: the kernels with other tiles than their rules choose.
_TUNED = (
    (
        "tune masked_linear",
        "--op masked_linear --entry linear --shape 16384x1920 --dtype bf16 --mode fwdbwd",
        55,
    ),
    ("tune masked_conv2d", "--op masked_conv2d --entry convolution --dtype bf16 --mode fwdbwd", 60),
    ("tune tril_gaussian", "--op tril_gaussian --entry rsample --dtype fp32 --shape 4096x256,65536x64", 50),
    (
        "tune autoregressive_inverse",
        "--op autoregressive_inverse --entry inverse --shape 1024x64 --mode fwd",
        35,
    ),
    ("tune causal_sampler", "--op causal_sampler --shape 64x784", 45),
    ("tune diag_gaussian", "--op diag_gaussian --entry rsample --dtype fp32,bf16 --shape 65536x1024", 45),
    ("tune logistic_mixture", "--op logistic_mixture --mode fwdbwd", 35),
    ("tune autoregressive_flow", "--op autoregressive_flow --entry flow --dtype bf16 --mode fwdbwd", 45),
    ("tune gated_activation", "--op gated_activation --dtype bf16 --mode fwdbwd", 35),
)
_REHEARSED = (
    (
        "bench",
        "--quick --device cpu --entry rsample,step --shape 16x8 --impl fastvae,reference,distributions",
        120,
    ),
)


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    lacking = missing(needs_gpu=not options.rehearse)
    if lacking:
        print(
            "gpu-check cannot run here; it lacks:",
            *(f"  - {item}" for item in lacking),
            sep="\n",
            file=sys.stderr,
        )
        if not options.rehearse:
            print("python -m bench.gpu_check --rehearse does what a CPU can do of it.", file=sys.stderr)
        return 2
    device = "cpu" if options.rehearse else "cuda"
    folder = options.out or (_ROOT / "build" / "gpu-check" if options.rehearse else _results_folder())
    records = folder / ("gpu-tune.jsonl" if options.tune else "gpu-check.jsonl")
    records.unlink(missing_ok=True)
    header = {"kind": "header", "environment": environment.describe(device), "rehearsal": options.rehearse}
    results.append(records, [header])
    with tempfile.TemporaryDirectory(prefix="gpu-check-") as stage:
        steps = _steps(Path(stage), records, options.rehearse, options.tune)
        done = _run(steps, records, time.monotonic() + options.limit, Path(stage))
    page = _write_page(records)
    print(f"results: {records.name} and {page.name} in {os.path.relpath(folder)}")
    bad = [f"{step['name']}: {step['outcome']}" for step in done if step["outcome"] != "ok"]
    if bad:
        print("gpu-check FAILED:", *(f"  - {line}" for line in bad), sep="\n", file=sys.stderr)
    return 1 if bad else 0


def missing(*, needs_gpu: bool) -> list[str]:
    """What this machine lacks for the check, each with a hint."""
    lacking = []
    if needs_gpu and not torch.cuda.is_available():
        lacking.append("a CUDA device that torch can use (torch.cuda.is_available() is False)")
    modules = ["numpy", "nanobind", "scikit_build_core", "pytest", "hypothesis"] + ["triton"] * needs_gpu
    for module in modules:
        if importlib.util.find_spec(module) is None:
            lacking.append(f"the Python package {module.replace('_', '-')}")
    for tool in ("cmake", "ninja"):
        if shutil.which(tool) is None and importlib.util.find_spec(tool) is None:
            lacking.append(f"the build tool {tool}")
    if not any(map(shutil.which, filter(None, (os.environ.get("CXX"), "c++", "g++", "clang++")))):
        lacking.append("a C++ compiler (c++, g++ or clang++)")
    if not (Path(sysconfig.get_paths()["include"]) / "Python.h").exists():
        lacking.append("the headers of Python (python3-dev)")
    return lacking


def _steps(stage: Path, records: Path, rehearse: bool, tune: bool = False) -> list[Step]:
    """All steps; they run where the built package is the only ``fastvae`` in sight."""
    source, place = stage / "source", stage / "run"
    shutil.copytree(_ROOT, source, ignore=_NOT_COPIED)
    shutil.copytree(source, place, ignore=lambda folder, names: ["fastvae"] if Path(folder) == source else [])
    python = sys.executable
    install = [python, "-m", "pip", "install", "--no-build-isolation", "--no-deps", "--no-index"]
    if tune:
        # The sampler's case seeds a generator in every call, which no capture allows.
        steps = [
            _measurement(
                place, records, *which, "--device", "cuda", "--tune", *["--graphs"] * ("sampler" not in which[0])
            )
            for which in _TUNED
        ]
    elif rehearse:
        checks = [Step("tests", _pytest("tests/bench"), 250, place)]
        steps = [*checks, *(_measurement(place, records, *which) for which in _REHEARSED)]
    else:
        first, others = (
            [_measurement(place, records, *which, "--device", "cuda") for which in measurements]
            for measurements in (_FIRST_MEASUREMENTS, _MEASUREMENTS)
        )
        # Each test of offsets has most of the memory to itself.
        offsets, aot = "tests/gpu/test_offsets.py", "tests/kernels/test_aot.py"
        steps = [
            Step("gpu tests", _pytest("tests/gpu", f"--ignore={offsets}", workers=8), 60, place),
            Step("offsets beyond 2^31", _pytest(offsets), 55, place),
            *first,
            # What is compiled for targets that are not here needs no GPU.
            Step("tests", _pytest("tests", "--ignore=tests/gpu", f"--ignore={aot}", workers=12), 125, place),
            *(Step(tool, _sanitizer(tool), 45, place) for tool in ("memcheck", "racecheck")),
            *others,
        ]
    return [
        Step("build", [*install, "--target", str(place), str(source)], 150 if rehearse else 90, stage),
        Step("backend", [python, "-c", _BACKEND.format(device="cpu" if rehearse else "cuda")], 30, place),
        *steps,
    ]


def _pytest(*arguments: str, workers: int = 1) -> list[str]:
    command = [sys.executable, "-m", "pytest", *arguments, "-q", "--tb=short", "-p", "no:cacheprovider"]
    if importlib.util.find_spec("xdist") and workers > 1:
        command += ["-n", str(min(workers, os.cpu_count() or 1))]
    return command


def _sanitizer(tool: str) -> list[str]:
    """Every op in bfloat16, whose kernels earlier tests have compiled, under a tool of compute-sanitizer."""
    found = shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path="/usr/local/cuda/bin")
    if found is None:
        return [sys.executable, "-c", "print('left out: compute-sanitizer is not installed')"]
    # Blocks of PyTorch's own cache would hide what lies beyond a tensor.
    return [
        "env",
        "PYTORCH_NO_CUDA_MEMORY_CACHING=1",
        found,
        f"--tool={tool}",
        "--error-exitcode=9",
        "--report-api-errors=no",
        *_pytest("tests/gpu/test_dtypes.py", "-k", "bfloat16"),
    ]


def _measurement(place: Path, records: Path, name: str, selection: str, seconds: int, *device: str) -> Step:
    budget = ["--budget", str(max(seconds - 20, 10)), "--json", str(records)]
    return Step(name, [sys.executable, "-m", "bench", *selection.split(), *device, *budget], seconds, place)


_BACKEND = """
import torch, fastvae
print(fastvae.backend.report())
chosen = fastvae.backend.resolve("auto", torch.empty(1, device="{device}"))
raise SystemExit(f"impl='auto' chooses {{chosen}} on {device}" if chosen == "reference" else 0)
"""


def _run(steps: Sequence[Step], records: Path, deadline: float, stage: Path) -> list[dict[str, Any]]:
    variables = {name: value for name, value in os.environ.items() if name not in ("TRITON_INTERPRET", "PYTHONPATH")}
    # Packages that were carried along, but no other fastvae than the one that is built.
    carried = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    carried = [path for path in carried if not (Path(path) / "fastvae").exists()]
    variables |= {"PYTHONPATH": os.pathsep.join(carried)} if carried else {}
    variables |= {
        "TORCHINDUCTOR_CACHE_DIR": str(stage / "inductor"),
        "TRITON_CACHE_DIR": str(stage / "triton"),
        "FASTVAE_COMMIT": environment.commit() or "unknown",
    }
    done: list[dict[str, Any]] = []
    for step in steps:
        left = deadline - time.monotonic()
        if done and done[0]["outcome"] != "ok":
            record = {"name": step.name, "outcome": "not run: the build failed"}
        elif left < _LEAST_S:
            record = {"name": step.name, "outcome": "not run: the time was over"}
        else:
            print(f"gpu-check: {step.name} (at most {min(step.limit_s, left):.0f} s)", flush=True)
            record = run_step(step, min(step.limit_s, left), variables)
        done.append(record)
        results.append(records, [{"kind": "step", **record}])
        _write_page(records)
        if record["outcome"] != "ok":
            print(*record.get("output", []), record["outcome"], sep="\n", file=sys.stderr, flush=True)
    return done


def _write_page(records: Path) -> Path:
    found = results.read([records])
    page = records.with_suffix(".md")
    page.write_text(_page(found))
    return page


def _page(found: Sequence[results.Row]) -> str:
    header = next(record for record in found if record["kind"] == "header")
    described = header["environment"]
    gpu = described.get("gpu")
    machine = (
        f"{gpu['name']}, {gpu['memory_gib']} GiB, CUDA {gpu['cuda']}" if gpu else f"{described['cpu']} (rehearsal)"
    )
    versions = ", ".join(f"{name} {version}" for name, version in described["versions"].items())
    lines = [
        f"# gpu-check: {machine}",
        "",
        f"{described['date']}, commit {described['commit'] or 'unknown'}, {versions}.",
        "",
        "| step | outcome | seconds | last line |",
        "| --- | --- | ---: | --- |",
    ]
    for record in found:
        if record["kind"] == "step":
            # The last line of a measurement that went well is that of its table, which follows.
            tells = record["outcome"] != "ok" or not record["name"].startswith(("bench", "tune"))
            last = (record.get("output") or [""])[-1].replace("|", "\\|") if tells else ""
            lines.append(f"| {record['name']} | {record['outcome']} | {record.get('seconds', '')} | {last} |")
    for record in found:
        if record["kind"] == "left_out":
            lines += ["", f"Left out for want of time: {'; '.join(record['cases'])}."]
    tuned = [record for record in found if record["kind"] == "tuning"]
    return "\n".join([*lines, "", "## Measurements", "", tuning.table(tuned) if tuned else report.table(found)])


def _results_folder() -> Path:
    name = re.sub(r"[^a-z0-9]+", "-", environment.gpu()["name"].lower()).strip("-")
    return _ROOT / "bench" / "results" / name


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.gpu_check",
        description="Builds, tests and measures on a GPU, and writes gpu-check.jsonl and gpu-check.md; with --tune "
        "measures other tiles than the kernels' rules choose, and writes gpu-tune.jsonl and gpu-tune.md.",
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="where to write; bench/results/<GPU> by default")
    parser.add_argument("--limit", type=float, default=_LIMIT_S, metavar="SECONDS", help=f"for all; {_LIMIT_S:g}")
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--tune", action="store_true", help="other tiles than the kernels' rules choose")
    kind.add_argument("--rehearse", action="store_true", help="what goes on a CPU, in miniature, into build/")
    return parser


if __name__ == "__main__":
    sys.exit(main())
