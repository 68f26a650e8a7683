"""The GPU check, as far as a machine without a GPU can tell."""

import os
import signal
import sys
import time
from pathlib import Path

import pytest
import torch

from bench import floors, gpu_check, gpu_page, gpu_plan, gpu_warm, gpu_work
from bench.rows import append_rows, read_rows
from bench.steps import Step, start_step
from tests.gpu import conftest as on_gpu

PARTS = list(gpu_plan.LIMITS_S)


def run(step, folder, limit_s=60):
    return start_step(step, os.environ, folder).finish(limit_s)


def say(name, code, folder, **options):
    return Step(name, [sys.executable, "-I", "-c", code], 60, folder, **options)


@pytest.fixture
def records(tmp_path):
    path = tmp_path / "out" / "gpu-check-first.jsonl"
    described = {"date": "2026-01-01", "commit": "abc", "versions": {"torch": "2.13"}, "cpu": "a processor"}
    append_rows(path, [{"kind": "header", "environment": described, "part": "first"}])
    return path


def run_all(steps, records, seconds=60):
    return gpu_check.run_steps(steps, records, time.monotonic() + seconds, records.parents[1] / "stage")


def test_without_a_gpu_it_says_so_and_fails(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu_check.main(["--out", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert "a CUDA device that torch can use" in said
    assert "--rehearse" in said
    assert list(tmp_path.iterdir()) == []


def test_missing_packages_are_named(monkeypatch):
    monkeypatch.setattr(gpu_check.importlib.util, "find_spec", lambda module: None)
    lacking = "\n".join(gpu_check.find_missing())
    assert all(name in lacking for name in ("numpy", "pytest", "hypothesis", "triton"))


@pytest.mark.parametrize("part", PARTS)
def test_commands_name_what_exists(part, tmp_path):
    steps = gpu_plan.plan_steps(part, tmp_path)
    assert len({step.name for step in steps}) == len(steps)
    for step in steps:
        if "bench.gpu_work" in step.command:
            words = step.command[step.command.index("bench.gpu_work") + 1 :]
            assert gpu_work._build_parser().parse_args(words).work in words
    # What is timed has the machine to itself.
    assert all(step.alone for step in steps if step.name.startswith(("machine", "floors", "baselines", "tune")))


def test_every_floor_is_measured():
    assert list(gpu_plan.FLOORS_S) == floors.list_ops()
    assert ",".join(gpu_plan.BASELINES_S).split(",") == floors.list_ops(compiled=True)
    assert list(gpu_plan.TUNE_S) == [case.op for case in floors.TUNED]
    warmed = [call for unit in gpu_warm.list_units() for call in unit.calls]
    assert len(set(warmed)) == len(warmed)
    for floor in floors.FLOORS:
        assert (floor.case, floor.ours) in warmed
        assert ((floor.case, "compile") in warmed) == floor.compiles


def test_tests_come_first_and_compiled_baselines_last(tmp_path):
    names = [step.name for step in gpu_plan.plan_steps("first", tmp_path) if not step.background]
    kinds = list(dict.fromkeys(name.split()[0] for name in names))
    assert kinds == ["tests", "machine", "floors", "baselines"]
    (tests,) = [step.command for step in gpu_plan.plan_steps("first", tmp_path) if step.name == "tests"]
    files = [Path(word).stem for word in tests if word.startswith("tests/gpu/")]
    # Every file once, but that of offsets; first the one whose tests share no kernels.
    assert files[0] == "test_dtypes"
    assert {*files, "test_offsets"} == {path.stem for path in Path(on_gpu.__file__).parent.glob("test_*.py")}
    assert len(set(files)) == len(files)


def test_wheels_are_installed_before_all_else(tmp_path):
    (tmp_path / "peer-1-py3-none-any.whl").touch()
    first, *others = gpu_plan.plan_steps("first", tmp_path, tmp_path, tmp_path / "site")
    assert first.name == "wheels"
    assert not first.background
    assert str(tmp_path / "peer-1-py3-none-any.whl") in first.command
    assert [step.name for step in others] == [step.name for step in gpu_plan.plan_steps("first", tmp_path)]


def test_tools_that_are_absent_are_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_plan.shutil, "which", lambda *_, **__: None)
    record = run(Step("memcheck", gpu_plan.sanitize("memcheck"), 60, tmp_path), tmp_path)
    assert (record["outcome"], record["output"]) == ("ok", ["left out: compute-sanitizer is not installed"])
    assert "left out: ncu" in gpu_plan.profile(tmp_path / "counters.csv")[-1]


def test_tools_are_given_what_they_know(tmp_path, monkeypatch):
    tool = tmp_path / "compute-sanitizer"
    tool.write_text("#!/bin/sh\necho --kernel-regex\n")
    tool.chmod(0o755)
    monkeypatch.setattr(gpu_plan.shutil, "which", lambda *_, **__: str(tool))
    memcheck, initcheck = (gpu_plan.sanitize(name) for name in ("memcheck", "initcheck"))
    assert "--tool=memcheck" in memcheck
    assert "--kernel-regex" in memcheck
    # Writes of other kernels count, too, and NaN in new tensors would be one.
    assert "--kernel-regex" not in initcheck
    assert "FASTVAE_UNFILLED=1" in initcheck
    tool.write_text("#!/bin/sh\n")
    assert "--kernel-regex" not in gpu_plan.sanitize("memcheck")


def test_a_step_tells_how_it_ended(tmp_path):
    good = run(say("good", "print('said')", tmp_path), tmp_path)
    assert (good["outcome"], good["output"]) == ("ok", ["said"])
    assert run(say("bad", "raise SystemExit(3)", tmp_path), tmp_path)["outcome"] == "failed (exit status 3)"


def test_a_step_over_its_limit_is_killed_with_its_children(tmp_path):
    grandchild = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1]])"
    child = "import os, time; open('pid', 'w').write(str(os.getpid())); print('begun', flush=True); time.sleep(600)"
    record = run(Step("long", [sys.executable, "-I", "-c", grandchild, child], 2, tmp_path), tmp_path, 2)
    assert record["outcome"] == "stopped after its 2 s"
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


def test_every_step_is_on_disk_before_the_next(tmp_path, records):
    """The second step reads the record of the first, which failed; what has no time left is recorded as not run."""
    look = f'raise SystemExit(0 if \'"name": "first"\' in open({str(records)!r}).read() else 1)'
    steps = [say("first", "print('all of it ' * 99); raise SystemExit(1)", tmp_path), say("second", look, tmp_path)]
    assert [step["outcome"] for step in run_all(steps, records)] == ["failed (exit status 1)", "ok"]
    late = run_all([say("late", "pass", tmp_path)], records, seconds=0)
    assert [step["outcome"] for step in late] == ["not run: the time was over"]
    page = records.with_suffix(".md").read_text()
    assert all(f"| {name} |" in page for name in ("first", "second", "late"))
    assert "all of it " * 99 in records.with_suffix(".log").read_text()


def test_what_is_timed_waits_for_the_background(tmp_path, records):
    wait = "import pathlib, time\nwhile not pathlib.Path('tested').exists(): time.sleep(0.01)\n"
    steps = [
        say("beside", wait + "pathlib.Path('ready').touch()", tmp_path, background=True),
        say("tests", "open('tested', 'w')", tmp_path),
        say("timed", "open('ready')", tmp_path, alone=True),
    ]
    done = run_all(steps, records)
    assert [(step["name"], step["outcome"]) for step in done] == [(n, "ok") for n in ("tests", "beside", "timed")]


def test_the_background_ends_with_its_limit(tmp_path, records):
    slow = Step("beside", [sys.executable, "-I", "-c", "import time; time.sleep(600)"], 1, tmp_path, background=True)
    done = run_all([slow, say("timed", "pass", tmp_path, alone=True)], records)
    assert [step["outcome"] for step in done] == ["stopped after its 1 s", "ok"]


def test_a_signal_ends_the_check_and_its_steps(tmp_path, records):
    kill = f"import os, pathlib, time; pathlib.Path('pid').write_text(str(os.getpid())); os.kill({os.getpid()}, 15)"
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit), gpu_check.end_on_signals():
        run_all([say("long", kill + "; time.sleep(600)", tmp_path)], records)
    assert signal.getsignal(signal.SIGTERM) == before
    assert not _alive(int((tmp_path / "pid").read_text()))


def test_kernels_are_linked_for_the_check_only(tmp_path):
    for name in ("fastvae", "kernels"):
        (tmp_path / name).mkdir()
    (tmp_path / "kernels" / "one.py").touch()
    link = tmp_path / "fastvae" / "kernels"
    with gpu_check.link_kernels(tmp_path):
        assert (link / "one.py").exists()
    assert not link.is_symlink()
    link.mkdir()
    with gpu_check.link_kernels(tmp_path):
        pass
    assert link.is_dir()


def test_results_go_where_they_are_fetched_from(monkeypatch):
    monkeypatch.setenv("OUT", "fetched")
    assert gpu_check._find_folder() == Path("fetched")
    monkeypatch.delenv("OUT")
    monkeypatch.setattr(gpu_check.environment, "describe_gpu", lambda: {"name": "NVIDIA H200"})
    assert gpu_check._find_folder().parts[-3:] == ("bench", "results", "nvidia-h200")


def test_steps_share_caches_and_import_the_checkout(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "carried")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    variables = gpu_check.make_variables(tmp_path)
    assert variables["PYTHONPATH"].split(os.pathsep) == [str(gpu_plan.ROOT), str(tmp_path / "site"), "carried"]
    assert "TRITON_INTERPRET" not in variables
    assert {variables[name] for name in ("TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR")} == {
        str(tmp_path / name) for name in ("triton", "inductor")
    }


def test_a_whole_check(tmp_path, monkeypatch, capsys):
    """With steps of no work: what is written where, what is said, how it ends."""
    described = {"date": "2026-01-01", "commit": "abc", "versions": {"torch": "2.11"}, "cpu": "a processor"}
    monkeypatch.setenv("OUT", str(tmp_path))
    monkeypatch.setattr(gpu_check, "_STAGE", tmp_path / "stage")
    monkeypatch.setattr(gpu_check, "find_missing", list)
    monkeypatch.setattr(gpu_check.environment, "describe", lambda device: described)
    steps = [say("tests", "pass", tmp_path), say("floors", "raise SystemExit(1)", tmp_path)]
    monkeypatch.setattr(gpu_check, "plan_steps", lambda *_: steps[:1])
    assert gpu_check.main([]) == 0
    monkeypatch.setattr(gpu_check, "plan_steps", lambda *_: steps)
    assert gpu_check.main(["first"]) == 1
    told = capsys.readouterr()
    assert "| tests | ok |" in told.out
    assert "floors: failed (exit status 1)" in told.err
    # What a machine gives back is a few files in one folder.
    names = {path.name for path in tmp_path.iterdir() if path.is_file()}
    assert names == {f"gpu-check-first.{suffix}" for suffix in ("jsonl", "md", "log")}
    assert len(read_rows([tmp_path / "gpu-check-first.jsonl"])) == 3


def test_an_error_that_stays_ends_its_worker(monkeypatch):
    left = []

    def synchronize():
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setenv("PYTEST_XDIST_WORKER", "gw0")
    on_gpu.end_if_lost(lambda: None, left.append)
    assert left == []
    on_gpu.end_if_lost(synchronize, left.append)
    assert left == [70]
    monkeypatch.delenv("PYTEST_XDIST_WORKER")
    with pytest.raises(pytest.exit.Exception, match="the device is lost"):
        on_gpu.end_if_lost(synchronize, left.append)
    assert left == [70]


def test_a_page_holds_floors_against_rows(records):
    (floor,) = [f for f in floors.select("masked_linear") if f.case.mode == "fwd"]
    row = {name: getattr(floor.case, name) for name in ("op", "entry", "variant", "mode", "dtype", "device")}
    row |= {
        "kind": "row",
        "shape": str(floor.case.shape),
        "timer": "events",
        "run": "r",
        "step": "floors",
        "p50_us": 120.0,
    }
    row |= {"environment": {"gpu": {"name": "a GPU", "cuda": "13"}, "commit": "abc", "versions": {"torch": "2.11"}}}
    row["environment"] |= {"cpu": "c", "threads": 1}
    row |= {"provider": "fastvae", "vs_dense": 1.4, "p50_us": 120.0, "gbps": 1, "gflops": 1, "bound": "compute"}
    row |= {"percent_of_limit": 50.0, "in_cache": False, "copy_gbps": 1, "matmul_gflops": 1}
    append_rows(records, [row])
    page = gpu_page.write_page(records).read_text()
    line = next(line for line in page.splitlines() if "masked_linear" in line and "1.5 x dense" in line)
    assert "| 1.40 x | 120 µs | **missed** |" in line
    assert f"1 missed, {sum(len(f.bars) for f in floors.FLOORS) - 1} not measured" in page
    assert "## Without torch.compile" in page


def test_what_was_left_out_is_on_the_page(records):
    append_rows(records, [{"kind": "left_out", "cases": ["zuko is not installed"]}])
    assert "- zuko is not installed" in gpu_page.write_page(records).read_text()
    assert read_rows([records])[-1]["kind"] == "left_out"
