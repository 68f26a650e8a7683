"""What the check of a GPU does: its steps, their commands and their time limits.

The limits of all steps but the last measurements fit into the whole time together.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from pathlib import Path

from .steps import Step

LIMIT_S = 530.0
_ROOT = Path(__file__).resolve().parent.parent
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

# Arguments of python -m bench and seconds; the most important first, since the last are left out when time runs out.
FIRST_MEASUREMENTS = (
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
MEASUREMENTS = (
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
TUNED = (
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


_BACKEND = """
import torch, fastvae
print(fastvae.backend.report())
chosen = fastvae.backend.resolve("auto", torch.empty(1, device="{device}"))
raise SystemExit(f"impl='auto' chooses {{chosen}} on {device}" if chosen == "reference" else 0)
"""


def plan_steps(stage: Path, records: Path, rehearse: bool, tune: bool = False) -> list[Step]:
    """All steps; they run where the built package is the only ``fastvae`` in sight."""
    source, place = stage / "source", stage / "run"
    shutil.copytree(_ROOT, source, ignore=_NOT_COPIED)
    shutil.copytree(source, place, ignore=lambda folder, names: ["fastvae"] if Path(folder) == source else [])
    python = sys.executable
    install = [python, "-m", "pip", "install", "--no-build-isolation", "--no-deps", "--no-index"]
    if tune:
        # The sampler's case seeds a generator in every call, which no capture allows.
        steps = [
            _measure(place, records, *which, "--device", "cuda", "--tune", *["--graphs"] * ("sampler" not in which[0]))
            for which in TUNED
        ]
    elif rehearse:
        checks = [Step("tests", _run_pytest("tests/bench"), 250, place)]
        steps = [*checks, *(_measure(place, records, *which) for which in _REHEARSED)]
    else:
        first, others = (
            [_measure(place, records, *which, "--device", "cuda") for which in measurements]
            for measurements in (FIRST_MEASUREMENTS, MEASUREMENTS)
        )
        # Each test of offsets has most of the memory to itself.
        offsets, aot = "tests/gpu/test_offsets.py", "tests/kernels/test_aot.py"
        steps = [
            Step("gpu tests", _run_pytest("tests/gpu", f"--ignore={offsets}", workers=8), 60, place),
            Step("offsets beyond 2^31", _run_pytest(offsets), 55, place),
            *first,
            # Compilation for other targets needs no GPU.
            Step("tests", _run_pytest("tests", "--ignore=tests/gpu", f"--ignore={aot}", workers=12), 125, place),
            *(Step(tool, sanitize(tool), 45, place) for tool in ("memcheck", "racecheck")),
            *others,
        ]
    return [
        Step("build", [*install, "--target", str(place), str(source)], 150 if rehearse else 90, stage),
        Step("backend", [python, "-c", _BACKEND.format(device="cpu" if rehearse else "cuda")], 30, place),
        *steps,
    ]


def _run_pytest(*arguments: str, workers: int = 1) -> list[str]:
    command = [sys.executable, "-m", "pytest", *arguments, "-q", "--tb=short", "-p", "no:cacheprovider"]
    if importlib.util.find_spec("xdist") and workers > 1:
        command += ["-n", str(min(workers, os.cpu_count() or 1))]
    return command


def sanitize(tool: str) -> list[str]:
    """The command that runs every op in bfloat16, which earlier tests compile, under a tool of compute-sanitizer."""
    found = shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path="/usr/local/cuda/bin")
    if found is None:
        return [sys.executable, "-c", "print('left out: compute-sanitizer is not installed')"]
    # Blocks of PyTorch's own cache would hide reads beyond a tensor.
    return [
        "env",
        "PYTORCH_NO_CUDA_MEMORY_CACHING=1",
        found,
        f"--tool={tool}",
        "--error-exitcode=9",
        "--report-api-errors=no",
        *_run_pytest("tests/gpu/test_dtypes.py", "-k", "bfloat16"),
    ]


def _measure(place: Path, records: Path, name: str, selection: str, seconds: int, *device: str) -> Step:
    budget = ["--budget", str(max(seconds - 20, 10)), "--json", str(records)]
    return Step(name, [sys.executable, "-m", "bench", *selection.split(), *device, *budget], seconds, place)
