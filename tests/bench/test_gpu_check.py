"""The GPU check, as far as a machine without a GPU can tell."""

import os
import sys
import time

import torch

from bench import __main__ as command
from bench import gpu_check, gpu_plan
from bench.rows import append_rows
from bench.steps import Step, run_step


def test_without_a_gpu_it_says_so_and_fails(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu_check.main(["--out", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert "a CUDA device that torch can use" in said
    assert "--rehearse" in said
    assert list(tmp_path.iterdir()) == []


def test_missing_tools_are_named(monkeypatch):
    monkeypatch.setattr(gpu_check.shutil, "which", lambda tool: None)
    monkeypatch.setattr(gpu_check.importlib.util, "find_spec", lambda module: None)
    lacking = "\n".join(gpu_check.find_missing(needs_gpu=False))
    for item in ("nanobind", "scikit-build-core", "pytest", "cmake", "ninja", "C++ compiler"):
        assert item in lacking
    assert "CUDA" not in lacking


def test_all_but_the_last_measurements_find_their_time(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_plan.shutil, "copytree", lambda *_, **__: None)
    steps = gpu_plan.plan_steps(tmp_path, tmp_path / "gpu-check.jsonl", False)
    last = [step.name for step in steps].index("racecheck")
    assert sum(step.limit_s for step in steps[: last + 1]) <= gpu_plan.LIMIT_S
    assert all(step.name.startswith("bench ") for step in steps[last + 1 :])
    (everything,) = [step.command for step in steps if step.name == "tests"]
    assert "--ignore=tests/gpu" in everything


def test_measurements_name_what_exists():
    parser = command._build_parser()
    for _, selection, _ in (*gpu_plan.FIRST_MEASUREMENTS, *gpu_plan.MEASUREMENTS):
        options = parser.parse_args([*selection.split(), "--device", "cuda", "--list"])
        assert command._choose_cases(options)
        assert command._choose_providers(options)


def test_tuning_fits_and_names_what_exists(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_plan.shutil, "copytree", lambda *_, **__: None)
    steps = gpu_plan.plan_steps(tmp_path, tmp_path / "gpu-tune.jsonl", False, True)
    assert sum(step.limit_s for step in steps) <= gpu_plan.LIMIT_S
    assert [step.name for step in steps[2:]] == [name for name, _, _ in gpu_plan.TUNED]
    for _, selection, _ in gpu_plan.TUNED:
        options = command._build_parser().parse_args([*selection.split(), "--device", "cuda", "--tune", "--list"])
        assert command._choose_cases(options)


def test_sanitizer_is_left_out_where_there_is_none(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_check.shutil, "which", lambda *_, **__: None)
    record = run_step(Step("memcheck", gpu_plan.sanitize("memcheck"), 60, tmp_path), 60, os.environ)
    assert (record["outcome"], record["output"]) == ("ok", ["left out: compute-sanitizer is not installed"])
    monkeypatch.setattr(gpu_check.shutil, "which", lambda *_, **__: "compute-sanitizer")
    assert "--tool=racecheck" in gpu_plan.sanitize("racecheck")


def test_a_step_tells_how_it_ended(tmp_path):
    good = run_step(Step("good", [sys.executable, "-c", "print('said')"], 60, tmp_path), 60, os.environ)
    bad = run_step(Step("bad", [sys.executable, "-c", "raise SystemExit(3)"], 60, tmp_path), 60, os.environ)
    assert (good["outcome"], good["output"]) == ("ok", ["said"])
    assert bad["outcome"] == "failed (exit status 3)"


def test_a_step_over_its_limit_is_killed_with_its_children(tmp_path):
    grandchild = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1]])"
    child = "import os, time; open('pid', 'w').write(str(os.getpid())); print('begun', flush=True); time.sleep(600)"
    record = run_step(Step("long", [sys.executable, "-c", grandchild, child], 5, tmp_path), 5, os.environ)
    assert record["outcome"] == "stopped after its 5 s"
    assert record["output"] == ["begun"]
    pid = int((tmp_path / "pid").read_text())
    for _ in range(100):
        if not _alive(pid):
            break
        time.sleep(0.05)
    assert not _alive(pid)


def _alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as stat:
            # An orphan that was killed may wait as a zombie for init to collect it.
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_every_step_is_on_disk_before_the_next(tmp_path, monkeypatch):
    """The second step reads the record of the first; what follows a failed build is recorded as not run."""
    records = tmp_path / "gpu-check.jsonl"
    append_rows(records, [header()])
    look = f'raise SystemExit(0 if \'"name": "first"\' in open({str(records)!r}).read() else 1)'
    steps = [
        Step("first", [sys.executable, "-c", "pass"], 60, tmp_path),
        Step("second", [sys.executable, "-c", look], 60, tmp_path),
        Step("late", [sys.executable, "-c", "pass"], 60, tmp_path),
    ]
    done = gpu_check.run_steps(steps[:2], records, time.monotonic() + 120, tmp_path)
    assert [step["outcome"] for step in done] == ["ok", "ok"]
    done = gpu_check.run_steps(steps[2:], records, time.monotonic(), tmp_path)
    assert [step["outcome"] for step in done] == ["not run: the time was over"]
    page = (tmp_path / "gpu-check.md").read_text()
    assert all(f"| {name} |" in page for name in ("first", "second", "late"))


def test_nothing_runs_on_a_build_that_failed(tmp_path):
    records = tmp_path / "gpu-check.jsonl"
    append_rows(records, [header()])
    steps = [
        Step("build", [sys.executable, "-c", "raise SystemExit(1)"], 60, tmp_path),
        Step("tests", [sys.executable, "-c", "pass"], 60, tmp_path),
    ]
    done = gpu_check.run_steps(steps, records, time.monotonic() + 120, tmp_path)
    assert [step["outcome"] for step in done] == ["failed (exit status 1)", "not run: the build failed"]


def header():
    described = {"date": "2026-01-01", "commit": "abc", "versions": {"torch": "2.13"}, "cpu": "a processor"}
    return {"kind": "header", "environment": described, "rehearsal": True}
