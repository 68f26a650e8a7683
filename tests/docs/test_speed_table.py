"""README's speed tables are what ``python -m bench readme`` makes of ``bench/results``."""

from __future__ import annotations

import pytest

from bench import readme
from bench.rows import find_timed, group_by_case, read_rows


def row(provider, p50, run="2026-01-01-aa", cpu="old", **changes):
    case = {"op": "training_step", "entry": "step", "variant": "diagonal", "mode": "step", "shape": "128x32"}
    return {"kind": "row", "provider": provider, "p50_us": p50, "run": run, "dtype": "float32", "device": "cpu",
            "timer": "host", "environment": {"cpu": cpu}, **case, **changes}  # fmt: skip


def test_tables_are_measured():
    text = readme.README.read_text(encoding="utf-8")
    rows = read_rows([readme.ROWS])
    assert readme.write_tables(text, rows) == text
    machine = find_timed(readme.find_last_machine(group_by_case(rows))[0])["environment"]
    assert machine["cpu"] in text
    assert f"torch {machine['versions']['torch'].partition('+')[0]}" in text


def test_the_better_of_ours_and_the_fastest_peer_of_the_newest_machine():
    old = [row("fastvae", 1.0), row("reference", 9.0)]
    new = [
        row(name, p50, "2026-01-02-bb", "new")
        for name, p50 in (("fastvae", 4.0), ("fastvae_compile", 2.0), ("reference", 30.0), ("compile", 3.0),
                          ("zuko", 40.0), ("nflows", 10.0))
    ]  # fmt: skip
    groups = readme.find_last_machine(group_by_case(old + new))
    line = readme.Line("step", "[128, 32]", "training_step.step.diagonal", "step", "128x32", ("zuko", "nflows"))
    last = readme.build_table([line], groups).splitlines()[-1]
    assert last == "| step | [128, 32] | 15 | 1.50 | 5.0, nflows |"


def test_a_case_without_a_row_is_named():
    line = readme.Line("step", "[128, 32]", "training_step.step.diagonal", "step", "256x32")
    with pytest.raises(ValueError, match=r"no row of training_step\.step\.diagonal step 256x32"):
        readme.build_table([line], group_by_case([row("fastvae", 1.0)]))
