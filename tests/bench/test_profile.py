"""Division of a job's time among its ops."""

import json

import pytest
import torch

from bench import profile, registry, roofline, runner
from bench.__main__ import main
from bench.task import Shape


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("fastvae::tril_gaussian_bwd", "ours"),
        ("aten::addmm", "products"),
        ("aten::mkldnn_convolution", "convolutions"),
        ("aten::_fused_adam_", "optimizer"),
        ("aten::mul", "others"),
    ],
)
def test_kinds(name, kind):
    assert profile.find_kind(name) == kind


def choose_case():
    return registry.select_cases("cpu", ops=["training_step"], variants=["triangular"], shapes=[Shape(5, 3)])[0]


def test_shares_are_those_of_one_run(monkeypatch):
    recorded = {"fastvae::tril_gaussian_bwd": 0.1, "aten::addmm": 0.4, "aten::mul": 0.2, "aten::add": 0.05}
    monkeypatch.setattr(profile, "record_ops", lambda call, runs: (1.0, recorded))
    case, limits = choose_case(), roofline.Limits(copy=1e10, matmul=1e11)
    row = profile.profile(case, "fastvae", limits)
    assert row["shares"] == pytest.approx(
        {"ours": 0.1, "products": 0.4, "convolutions": 0, "optimizer": 0, "others": 0.25, "python": 0.25}
    )
    assert row["floor_us"] == pytest.approx(limits.seconds(registry.find_task(case).work(case)) * 1e6, abs=0.1)
    assert 0 <= row["waiting"] <= 1


def test_recorded_ops_are_those_of_the_job():
    case = choose_case()
    task = registry.find_task(case)
    call = runner.prepare(task, case, "fastvae", runner.make_input_sets(task, case)).calls[0]
    with torch.enable_grad():
        _, ops = profile.record_ops(call, 1)
    kinds = {profile.find_kind(name) for name, seconds in ops.items() if seconds > 0}
    assert {"ours", "products", "optimizer", "others"} <= kinds


def test_command_keeps_rows_and_the_newest_of_each_case(tmp_path, capsys):
    file = tmp_path / "profiles.jsonl"
    for _ in range(2):
        assert (
            main(["profile", "--op", "density_step", "--shape", "4x3", "--impl", "fastvae", "--json", str(file)]) == 0
        )
        assert "`density_step` step maf-5x512 | [4, 3] | fastvae |" in capsys.readouterr().out
    assert len([json.loads(line) for line in file.read_text().splitlines()]) == 2
    assert len(file.with_suffix(".md").read_text().splitlines()) == 3
