"""Operations that run out of memory on two threads end with a MemoryError, and the next one is right."""

import json
import os
import subprocess

from tests.support.processes import ROOT, run_module

CLEAN = {"right", "MemoryError", "PyTorch's error"}


def starve(*arguments: str, **environment: str) -> dict[str, dict[str, int]]:
    """How runs of each operation end: how many in which way."""
    done = run_module("starved_operations", *arguments, environment=environment)
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
