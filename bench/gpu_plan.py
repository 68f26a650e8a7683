"""What the check of a GPU does: the steps of its parts, their commands and their time limits.

Nothing is built: the library is imported from the checkout. Tests come first, then what is measured, the most important
first. A limit is what a step may take where something is wrong. What a part takes by count is in ``gpu_rehearsal.py``.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

from .steps import Step

ROOT = Path(__file__).resolve().parent.parent
# Seconds of each part. The first two, the start of a machine and the transfers fit into a quarter of an hour.
LIMITS_S = {"first": 300.0, "second": 240.0, "tune": 240.0}
WARM_SHARES, TEST_WORKERS = 6, 8
# Names of our kernels: those of C++ begin with a capital behind the underscore.
_OURS = "^_[a-z]|^autoregressive_inverse"
_OFFSETS = "tests/gpu/test_offsets.py"

# Seconds for the rows of each op, first without and then beside torch.compile.
FLOORS_S = {
    "diag_gaussian": 25,
    "tril_gaussian": 25,
    "masked_linear": 18,
    "autoregressive_flow": 22,
    "autoregressive_inverse": 30,
    "masked_conv2d": 20,
    "causal_sampler": 40,
    "training_step": 30,
}
# A compiler takes as long to begin as for several of its graphs: ops share a process.
BASELINES_S = {"diag_gaussian,tril_gaussian,autoregressive_flow": 75, "training_step": 50}
TUNE_S = {"masked_linear": 40, "autoregressive_inverse": 25, "tril_gaussian": 25, "masked_conv2d": 35}


def plan_steps(part: str, folder: Path, wheels: Path | None = None, site: Path | None = None) -> list[Step]:
    """The steps of a part. Their rows go into ``folder``, beside the reports of tests and tools.

    Args:
        part: a name of LIMITS_S.
        folder: where results are written.
        wheels: a folder with wheels of packages that the machine lacks.
        site: where they are installed.
    """
    records = find_records(folder, part)
    before = [] if wheels is None or site is None else [_install(wheels, site)]
    plan = {"first": _plan_first, "second": _plan_second, "tune": _plan_tuning}[part]
    return before + plan(folder, records)


def find_records(folder: Path, part: str) -> Path:
    """The file of all that a part finds; its page and its log are beside it."""
    return folder / f"gpu-check-{part}.jsonl"


def _plan_first(folder: Path, records: Path) -> list[Step]:
    return [
        *_warm("floors", 125),
        Step("tests", _run_tests(folder), 110, ROOT),
        Step("machine", _work("machine", records), 25, ROOT, alone=True),
        *(_measure("floors", op, seconds, records) for op, seconds in FLOORS_S.items()),
        *(_measure("baselines", op, seconds, records) for op, seconds in BASELINES_S.items()),
    ]


def _plan_second(folder: Path, records: Path) -> list[Step]:
    return [
        *_warm("tuned", 90),
        *(Step(tool, sanitize(tool), 100, ROOT, background=True) for tool in ("memcheck", "initcheck")),
        # Each test of offsets has most of the memory to itself.
        Step("offsets beyond 2^31", _run_pytest(folder / "offsets.xml", _OFFSETS, timeout_s=60), 90, ROOT),
        Step("counters", profile(folder / "counters.csv"), 75, ROOT, alone=True),
        *_measure_tuned(records),
    ]


def _plan_tuning(folder: Path, records: Path) -> list[Step]:
    return [*_warm("tuned", 90), *_measure_tuned(records)]


def _measure_tuned(records: Path) -> list[Step]:
    machine = Step("machine", _work("machine", records), 25, ROOT, alone=True)
    return [machine, *(_measure("tune", op, seconds, records) for op, seconds in TUNE_S.items())]


def _run_tests(folder: Path) -> list[str]:
    """Every problem first in each type alone: what that compiles, no other test compiles again."""
    known = [f"tests/gpu/test_{name}.py" for name in ("dtypes", "determinism", "graphs")]
    found = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "tests" / "gpu").glob("test_*.py"))
    others = [path for path in found if path not in (*known, _OFFSETS)]
    return _run_pytest(folder / "tests.xml", *known, *others, workers=TEST_WORKERS, timeout_s=45)


def _install(wheels: Path, site: Path) -> Step:
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-deps", "--no-compile", "--upgrade"]
    return Step("wheels", [*command, "--target", str(site), *map(str, sorted(wheels.glob("*.whl")))], 30, ROOT)


def _warm(what: str, limit_s: float) -> list[Step]:
    command = [sys.executable, "-m", "bench.gpu_warm", what, "--share"]
    return [
        Step(f"warm {what} {i}", [*command, f"{i}/{WARM_SHARES}"], limit_s, ROOT, background=True)
        for i in range(WARM_SHARES)
    ]


def _work(what: str, records: Path, *words: str) -> list[str]:
    return [sys.executable, "-m", "bench.gpu_work", what, *words, "--json", str(records)]


def _measure(what: str, op: str, limit_s: float, records: Path) -> Step:
    return Step(f"{what} {op}", _work(what, records, op), limit_s, ROOT, alone=True)


def _run_pytest(report: Path | None, *arguments: str, workers: int = 1, timeout_s: int = 0) -> list[str]:
    """pytest with a report, a time limit for each test, and workers that take one test after the other."""
    command = [sys.executable, "-m", "pytest", *arguments, "-v", "--tb=short", "-p", "no:cacheprovider"]
    if report is not None:
        command.append(f"--junit-xml={report}")
    if timeout_s and importlib.util.find_spec("pytest_timeout"):
        # By a thread: a process that waits for the device handles no signal.
        command += [f"--timeout={timeout_s}", "--timeout-method=thread"]
    if importlib.util.find_spec("xdist") and workers > 1:
        # Other ways to share tests out run the test again that ended a worker, or wait for ever.
        command += ["-n", str(min(workers, os.cpu_count() or 1)), "--dist=load", "--maxschedchunk=1"]
    return command


def sanitize(tool: str) -> list[str]:
    """The command that runs every op in bfloat16 under a tool of compute-sanitizer."""
    found = _find_tool("compute-sanitizer")
    if found is None:
        return _leave_out("compute-sanitizer")
    # Blocks of PyTorch's own cache would hide reads beyond a tensor; NaN in new tensors, reads of what nobody wrote.
    variables = ["PYTORCH_NO_CUDA_MEMORY_CACHING=1", *["FASTVAE_UNFILLED=1"] * (tool == "initcheck")]
    # initcheck must see who writes, others only our kernels.
    ours = ["--kernel-regex", f"kns={_OURS}"] if tool != "initcheck" and _knows(found, "--kernel-regex") else []
    options = [f"--tool={tool}", "--error-exitcode=9", "--report-api-errors=no", *ours]
    return ["env", *variables, found, *options, *_run_pytest(None, "tests/gpu/test_dtypes.py", "-k", "bfloat16")]


def profile(report: Path) -> list[str]:
    """The command that reads counters of the main kernels into a table."""
    found = _find_tool("ncu")
    if found is None:
        return _leave_out("ncu")
    # The clocks of a rented machine are not ours to set.
    options = ["--set=basic", "--clock-control=none", "--profile-from-start=off", "--target-processes=all"]
    options += [f"--kernel-name=regex:{_OURS}", "--launch-count=60", "--csv", "--page=raw", f"--log-file={report}"]
    return [found, *options, sys.executable, "-m", "bench.gpu_work", "profile"]


def _find_tool(name: str) -> str | None:
    return shutil.which(name) or shutil.which(name, path="/usr/local/cuda/bin")


def _leave_out(name: str) -> list[str]:
    return [sys.executable, "-c", f"print('left out: {name} is not installed')"]


def _knows(tool: str, option: str) -> bool:
    try:
        return option in subprocess.run([tool, "--help"], capture_output=True, text=True, timeout=20).stdout
    except (OSError, subprocess.SubprocessError):
        return False
