"""Alternatives to the rules of the kernels' tiles."""

import contextlib
import importlib

import pytest
import torch

from bench import __main__ as command
from bench import registry, results, tuning
from bench.registry import Case, Shape


def case_of(op, dtype="float32"):
    task = registry.tasks(op)[0]
    return Case(op, task.entry, task.variant, "fwd", Shape(16, 16), dtype, "cuda")


def test_every_op_has_alternatives():
    assert set(tuning.ALTERNATIVES) == set(registry.stems())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("op", list(tuning.ALTERNATIVES))
def test_values_hold_and_are_taken_back(op, dtype):
    for alternative in tuning.ALTERNATIVES[op](case_of(op, dtype)):
        places = [(importlib.import_module(f"fastvae.kernels.{module}"), name) for module, name in alternative.values]
        before = [getattr(module, name) for module, name in places]
        with contextlib.suppress(RuntimeError), alternative.applied():
            assert [getattr(module, name) for module, name in places] == list(alternative.values.values())
            raise RuntimeError
        assert [getattr(module, name) for module, name in places] == before


def test_names_of_an_op_differ():
    for op, make in tuning.ALTERNATIVES.items():
        names = [alternative.name for alternative in make(case_of(op))]
        assert len(set(names)) == len(names) > 1


def test_run(tmp_path, monkeypatch, capsys):
    """In Triton's interpreter, or on a GPU."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    monkeypatch.setattr("bench.roofline._copy_bytes", lambda device: 1 << 16)
    monkeypatch.setattr("bench.roofline._width", lambda device: 32)
    path = tmp_path / "rows.jsonl"
    selection = ["--op", "diag_gaussian", "--entry", "rsample", "--shape", "4x16", "--mode", "fwdbwd"]
    assert command.main([*selection, "--device", device, "--tune", "--quick", "--json", str(path)]) == 0
    rows = results.read([path])
    assert {row["kind"] for row in rows} == {"tuning"}
    assert all(row["p50_us"] > 0 for row in rows)
    names = [alternative.name for alternative in tuning.ALTERNATIVES["diag_gaussian"](case_of("diag_gaussian"))]
    assert [row["provider"] for row in rows] == ["fastvae", *names]
    printed = capsys.readouterr().out
    assert all(f"{name}: " in printed for name in names)
