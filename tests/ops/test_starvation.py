"""Operations that run out of memory on two threads end with a MemoryError, and the next one is right."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
CLEAN = {"right", "MemoryError", "PyTorch's error"}


def starve(*arguments: str, **environment: str) -> dict[str, dict[str, int]]:
    """How runs of ``tests/starved.py`` ended: for each operation, how many in which way."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.starved", *arguments],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_every_allocation_may_fail(tmp_path):
    """Those of parallel regions, of blocks, of the lists of a call: each fails once."""
    library = tmp_path / "failing_memory.so"
    compiler = os.environ.get("CXX", "c++")
    source = ROOT / "tests" / "csrc" / "failing_memory.cpp"
    subprocess.run([compiler, "-std=c++20", "-O1", "-shared", "-fPIC", "-o", library, source], check=True)
    for name, outcomes in starve("failures", LD_PRELOAD=str(library)).items():
        assert set(outcomes) <= CLEAN, name
        assert outcomes["MemoryError"] >= 5, name


def test_little_memory():
    for name, outcomes in starve("limits", "0.5", "2", "8").items():
        assert set(outcomes) <= CLEAN, (name, outcomes)
