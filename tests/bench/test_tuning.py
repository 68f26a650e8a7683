"""Alternatives to the rules of the kernels' tiles."""

import contextlib
import functools
import importlib
from dataclasses import replace

import pytest
import torch

from bench import __main__ as command
from bench import gpu_rehearsal, registry, tuning
from bench.rows import read_rows
from bench.task import Case, Shape


def case_of(op, dtype="float32"):
    task = registry.load_tasks(op)[0]
    return Case(op, task.entry, task.variant, "fwd", Shape(16, 16), dtype, "cuda")


def test_every_op_has_alternatives():
    assert set(tuning.ALTERNATIVES) == set(registry.list_stems())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("op", list(tuning.ALTERNATIVES))
def test_values_hold_and_are_taken_back(op, dtype):
    for alternative in tuning.ALTERNATIVES[op](case_of(op, dtype)):
        places = [(importlib.import_module(f"fastvae.kernels.{module}"), name) for module, name in alternative.values]
        before = [getattr(module, name) for module, name in places]
        with contextlib.suppress(RuntimeError), alternative.apply():
            assert [getattr(module, name) for module, name in places] == list(alternative.values.values())
            raise RuntimeError
        assert [getattr(module, name) for module, name in places] == before


def test_rules_choose_anew():
    """Launchers remember what rules chose for the sizes of earlier calls."""
    tiles = importlib.import_module("fastvae.kernels._tiles")
    rule = tiles.row_tile(64, 64, 1)
    with tuning.Alternative("busy 1", {("_tiles", "_BUSY"): 1, ("_tiles", "_WARPS"): 1}).apply():
        assert tiles.row_tile(64, 64, 1) != rule
    assert tiles.row_tile(64, 64, 1) == rule


def test_names_of_an_op_differ():
    for op, make in tuning.ALTERNATIVES.items():
        names = [alternative.name for alternative in make(case_of(op))]
        assert len(set(names)) == len(names) > 1


def test_run(tmp_path, monkeypatch, capsys):
    """In Triton's interpreter, or on a GPU."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    monkeypatch.setattr("bench.roofline._choose_copy_bytes", lambda device: 1 << 16)
    monkeypatch.setattr("bench.roofline._choose_width", lambda device: 32)
    path = tmp_path / "rows.jsonl"
    selection = ["--op", "diag_gaussian", "--entry", "rsample", "--shape", "4x16", "--mode", "fwdbwd"]
    assert command.main([*selection, "--device", device, "--tune", "--quick", "--json", str(path)]) == 0
    rows = read_rows([path])
    assert {row["kind"] for row in rows} == {"tuning"}
    assert all(row["p50_us"] > 0 for row in rows)
    names = [alternative.name for alternative in tuning.ALTERNATIVES["diag_gaussian"](case_of("diag_gaussian"))]
    assert [row["provider"] for row in rows] == ["rule", *names]
    printed = capsys.readouterr().out
    assert all(f"{name}: " in printed for name in names)


def test_table_tells_failures():
    case = {"kind": "tuning", "run": "r", "op": "o", "entry": "e", "variant": "", "mode": "fwd", "shape": "1x1"}
    case |= {"dtype": "float32", "device": "cuda", "environment": {"gpu": {"name": "a GPU"}}}
    rows = [
        {**case, "provider": name, "timer": "events", "p50_us": time}
        for name, time in (("rule", 10.0), ("slow", 20.0), ("quick", 5.0))
    ]
    rows.append({**case, "provider": "bad", "error": "OutOfResources"})
    assert tuning.build_table(rows).splitlines()[2:] == [
        "| o e  fwd 1x1 float32 events | 10 µs | quick: 2.000 x; slow: 0.500 x; bad: OutOfResources |"
    ]
    failed = [{**row, "error": "no"} if row["provider"] == "rule" else row for row in rows]
    assert "| failed | rule: no; bad: OutOfResources |" in tuning.build_table(failed)


@pytest.mark.parametrize("columns", [64, 320, 1920])
def test_tiles_that_do_not_fit_leave_the_rule(columns):
    from fastvae.kernels._matrix import MatrixTile, matrix_tile

    rows, rule = 16384, matrix_tile(16384, columns, torch.bfloat16)
    for alternative in tuning._vary_matrix_tiles(case_of("masked_linear", "bfloat16")):
        with alternative.apply():
            tile = matrix_tile(rows, columns, torch.bfloat16)
        wanted = MatrixTile(*map(int, alternative.name.removeprefix("tile ").split("x")))
        fills = wanted.columns < 128 or columns % wanted.columns == 0
        assert tile == (wanted if fills and 10 * wanted.programs(rows, columns) >= 9 * 132 else rule)


def test_fewer_registers_reach_the_launch():
    case = replace(case_of("masked_linear", "bfloat16"), mode="fwdbwd")
    task = tuning.add_alternatives(registry.find_task(case), case)
    rule, fewer = (gpu_rehearsal.record_case(case, name, task) for name in ("rule", "registers 96"))
    limits = [
        (launch.meta.get("maxnreg"), other.meta.get("maxnreg")) for launch, other in zip(rule, fewer, strict=True)
    ]
    assert any(after == 96 != before for before, after in limits)
    assert all(after in (96, before) for before, after in limits)


def test_choices_made_before_are_forgotten(monkeypatch):
    """A tile that a module keeps for a shape would hide every alternative."""
    from fastvae.kernels import _matrix

    kept = functools.lru_cache(_matrix.matrix_tile)
    monkeypatch.setattr(_matrix, "matrix_tile", kept)
    shape = (16384, 1920, torch.bfloat16)
    rule = kept(*shape)
    with tuning.Alternative("smaller", {("_matrix", "_HALF_TILES"): ((64, 64, 64, 4, 3),)}).apply():
        assert kept(*shape) != rule
    assert kept(*shape) == rule
