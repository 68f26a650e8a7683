"""The floors of a GPU: rows that exist, bars that are read off them, the processes that measure them."""

from dataclasses import replace
from pkgutil import iter_modules

import pytest
import torch

from bench import floor_table, floors, gpu_figures, gpu_warm, gpu_work, registry, roofline, runner, timing
from bench.floors import Floor, Gain, Share, Within
from bench.rows import read_rows
from bench.task import PROVIDERS, Case, Shape
from fastvae import ops

HERE = Case("diag_gaussian", "rsample", "", "fwd", Shape(8, 6), "float32", "cpu")


@pytest.mark.parametrize("floor", floors.FLOORS, ids=str)
def test_floors_name_what_exists(floor):
    task = registry.find_task(floor.case)
    assert floor.case.mode in task.modes
    for baselines in (False, True)[: 1 + floor.compiles]:
        for provider in floor.providers(baselines):
            assert provider in PROVIDERS
            assert task.offers(provider)
    for bar in floor.bars:
        if isinstance(bar, Gain):
            assert bar.provider in (*floor.beside, "compile")


def test_bars():
    row = {"gbps": 2.5, "copy_gbps": 3.0, "vs_compile": 1.25, "p50_us": 90.0}
    read = {bar: bar.measure(row) for bar in (Share(0.8), Share(0.85), Gain("compile", 1.2), Within(96), Within(80))}
    assert [bar.holds(value) for bar, value in read.items()] == [True, False, True, True, False]
    assert Gain("zuko", 30).measure(row) is None
    assert [bar.format(value) for bar, value in read.items()][1:4] == ["83 %", "1.25 x", "90 µs"]


def test_the_last_row_of_a_case_decides():
    floor = next(floor for floor in floors.FLOORS if floor.compiles and floor.timer == "graph")
    row = {name: getattr(floor.case, name) for name in ("op", "entry", "variant", "mode", "dtype", "device")}
    row |= {"kind": "row", "shape": str(floor.case.shape), "provider": "fastvae", "timer": "graph", "p50_us": 5.0}
    others = [row | {"vs_compile": 9.0, "timer": "events"}, row | {"vs_compile": 9.0, "provider": "compile"}]
    rows = [row | {"vs_compile": 0.5}, row | {"vs_compile": 1.5}, row | {"vs_reference": 3.0}, *others]
    verdicts = [verdict for verdict in floors.judge(rows) if verdict.value is not None]
    assert [(verdict.floor, verdict.value, verdict.word) for verdict in verdicts] == [(floor, 1.5, "holds")]


def test_rows_are_on_disk_before_the_next_row(tmp_path, monkeypatch):
    path, seen = tmp_path / "rows.jsonl", []
    monkeypatch.setattr(roofline, "measure", lambda *_: roofline.Limits(1e9, 1e9))
    monkeypatch.setattr(runner, "_measure_memory", lambda *_: {"peak_bytes": 0})
    monkeypatch.setattr(runner, "check_context", lambda device: seen.append(len(read_rows([path]))))
    monkeypatch.setattr(gpu_work, "has_package", lambda name: name != "distributions")
    chosen = [
        Floor(HERE, ()),
        Floor(HERE, (), beside=("distributions",)),
        Floor(replace(HERE, mode="fwdbwd"), (), beside=("distributions", "reference")),
    ]
    assert gpu_work.measure_floors(chosen, path, baselines=False, plan=timing.QUICK) == 0
    rows = read_rows([path])
    assert [row["provider"] for row in rows if row["kind"] == "row"] == ["fastvae", "reference"] * 2
    assert all(row["step"] == "floors" and row["run"] and row["environment"] for row in rows if row["kind"] == "row")
    assert [row["cases"] for row in rows if row["kind"] == "left_out"] == [
        [f"{case}: distributions is not installed"] for case in (HERE, replace(HERE, mode="fwdbwd"))
    ]
    # A row beside nothing is not measured.
    assert seen == [2, len(rows)]


def test_limits_are_those_of_the_check(tmp_path, monkeypatch):
    path = tmp_path / "rows.jsonl"
    monkeypatch.setattr(roofline, "measure", lambda device, dtype, plan: roofline.Limits(1.0, len(dtype)))
    assert gpu_work.report_machine(path, "cpu") == 0
    monkeypatch.setattr(roofline, "measure", lambda *_: None)
    assert gpu_work.find_limits(path, "bfloat16", "cpu") == roofline.Limits(1.0, 8)
    assert gpu_work.find_limits(path, "float64", "cpu") is None


def test_a_lost_context_ends_the_process(monkeypatch):
    def lose():
        raise RuntimeError("CUDA error: unspecified launch failure\nmore")

    runner.check_context("cpu")
    monkeypatch.setattr(torch.cuda, "synchronize", lose)
    with pytest.raises(runner.LostContextError, match=r"unspecified launch failure$"):
        runner.check_context("cuda")


def test_what_cannot_be_warmed_costs_no_other_its_turn(capsys):
    missing = gpu_warm.Unit("missing", ((replace(HERE, op="no such op"), "fastvae"),), 1.0)
    assert gpu_warm.warm_units([missing, gpu_warm.Unit("good", (), 1.0)], "cpu") == 1
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("cold: missing: ValueError")
    assert said[1].startswith("warm: good")


def test_shares_take_about_as_long():
    units = [gpu_warm.Unit(str(i), (), seconds) for i, seconds in enumerate((5.0, 40.0, 9.0, 9.0, 12.0, 5.0))]
    shares = gpu_warm.share_out(units, 2)
    assert [sum(unit.seconds for unit in share) for share in shares] == [40.0, 40.0]
    assert sorted(unit.name for share in shares for unit in share) == list("012345")


def test_table(monkeypatch):
    kept = [floor for floor in floors.FLOORS if floor.case.op in ("diag_gaussian", "autoregressive_inverse")]
    monkeypatch.setattr(floors, "FLOORS", kept)
    head, _, *lines = floor_table.build_table().splitlines()
    assert head.endswith("| predicted, H100 | measured |")
    assert len(lines) == len({floor.case for floor in kept}) + len(list(floor_table.list_others()))
    assert all(line.endswith("|  |") for line in lines)
    first = lines[0].split(" | ")
    # 3 x 65536 x 1024 floats and as many log-densities as rows, at 3 TB/s.
    assert first[4:8] == ["805.6", "0.403", "memory", "269 µs"]
    row = {name: getattr(kept[0].case, name) for name in ("op", "entry", "variant", "mode", "dtype", "device")}
    row |= {"kind": "row", "shape": "65536x1024", "provider": "fastvae", "timer": "events", "p50_us": 299.0}
    assert floor_table.build_table([row]).splitlines()[2].endswith("| 299 µs |")


def test_every_line_has_a_prediction():
    cases = {floor.case for floor in floors.FLOORS} | set(floor_table.list_others())
    assert set(gpu_figures.FIGURES) == set(map(gpu_figures.name_case, cases))
    assert all(0 < figure.low <= figure.high for figure in gpu_figures.FIGURES.values())


def test_every_op_has_a_line():
    cases = [*(floor.case for floor in floors.FLOORS), *floor_table.list_others()]
    assert {case.op for case in cases} >= set(registry.list_stems()) & {m.name for m in iter_modules(ops.__path__)}
