"""Division of a job's time among its ops."""

import json

import pytest

from bench import profile, registry, roofline
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


def test_shares_are_those_of_one_run():
    (case,) = registry.select_cases("cpu", ops=["training_step"], variants=["triangular"], shapes=[Shape(5, 3)])
    row = profile.profile(case, "fastvae", roofline.Limits(copy=1e10, matmul=1e11))
    assert row["shares"].keys() == set(profile.KINDS)
    assert sum(row["shares"].values()) == pytest.approx(1, abs=1e-2)
    for kind in ("ours", "products", "optimizer", "others", "python"):
        assert row["shares"][kind] > 0
    assert 0 <= row["waiting"] <= 1
    assert 0 < row["floor_us"] < row["p50_us"]


def test_command_keeps_rows_and_the_newest_of_each_case(tmp_path, capsys):
    file = tmp_path / "profiles.jsonl"
    for _ in range(2):
        assert (
            main(["profile", "--op", "density_step", "--shape", "4x3", "--impl", "fastvae", "--json", str(file)]) == 0
        )
        assert "`density_step` step maf-5x512 | [4, 3] | fastvae |" in capsys.readouterr().out
    assert len([json.loads(line) for line in file.read_text().splitlines()]) == 2
    assert len(file.with_suffix(".md").read_text().splitlines()) == 3
