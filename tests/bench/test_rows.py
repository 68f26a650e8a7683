"""Rows on disk, and tables and pictures out of rows."""

import json

import pytest

from bench import report, wording
from bench.rows import append_rows, group_by_case, read_rows


def row(provider, p50, run="2026-01-01", **changes):
    """A row as the runner writes it, without ratios."""
    made = {
        "kind": "row",
        "op": "diag_gaussian",
        "entry": "rsample",
        "variant": "",
        "mode": "fwdbwd",
        "shape": "1024x64",
        "dtype": "float32",
        "device": "cpu",
        "timer": "host",
        "provider": provider,
        "impl": provider,
        "run": run,
        "quick": False,
        "p50_us": p50,
        "gbps": 4.0,
        "gflops": 1.0,
        "bytes": 4000,
        "flops": 1000,
        "bound": "memory",
        "percent_of_limit": 20.0,
        "in_cache": True,
        "copy_gbps": 20.0,
        "matmul_gflops": 80.0,
        "temporary_bytes": 2048,
        "environment": {
            "cpu": "a processor",
            "threads": 2,
            "isa": "avx2",
            "commit": "abc",
            "versions": {"torch": "2.13"},
        },
    }
    return made | changes


def pair(run, ours, eager):
    return [
        row("fastvae", ours, run, vs_reference=eager / ours),
        row("reference", eager, run, vs_fastvae=ours / eager),
    ]


def test_appended_records_come_back(tmp_path):
    path = tmp_path / "new" / "rows.jsonl"
    append_rows(path, pair("a", 1, 2))
    append_rows(path, pair("b", 1, 3))
    assert read_rows([path]) == pair("a", 1, 2) + pair("b", 1, 3)


def test_a_line_cut_off_at_the_end_is_left_out(tmp_path):
    path = tmp_path / "rows.jsonl"
    append_rows(path, pair("a", 1, 2))
    path.write_text(path.read_text()[:-40])
    assert read_rows([path]) == pair("a", 1, 2)[:1]


def test_a_broken_line_in_the_middle_is_refused(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"kind": \n' + json.dumps({"kind": "row"}) + "\n")
    with pytest.raises(ValueError, match=r"rows\.jsonl, line 1"):
        read_rows([path])


def test_runs_never_mix():
    """A later run of one provider alone shows alone, not beside times of an earlier run."""
    groups = group_by_case([*pair("2026-01-01", 10, 20), row("fastvae", 5, "2026-02-01")])
    assert [set(group) for group in groups] == [{"fastvae"}]
    assert groups[0]["fastvae"]["p50_us"] == 5


def test_machines_and_timers_are_cases_of_their_own():
    other = row("fastvae", 3)
    other["environment"] = {**other["environment"], "cpu": "another processor"}
    assert len(group_by_case([row("fastvae", 1), other, row("fastvae", 2, timer="graph")])) == 3


def test_a_provider_that_failed_is_said_to_have_failed():
    failed = row("compile", 0.0, error="RuntimeError: no compiler")
    del failed["timer"]
    text = report.build_table([*pair("2026-01-01", 10, 20), failed])
    assert "| failed |" in text
    assert "- compile, `diag_gaussian` rsample fwdbwd [1024x64] float32: RuntimeError: no compiler" in text


def test_table_holds_times_ratios_limit_and_memory():
    text = report.build_table(pair("2026-01-01", 12.0, 84.0))
    assert "a processor, 2 threads, avx2; torch 2.13; commit abc" in text
    line = next(line for line in text.splitlines() if "`diag_gaussian` rsample" in line)
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells == [
        "`diag_gaussian` rsample",
        "fwdbwd",
        "[1024, 64]",
        "float32",
        "12 µs",
        "84 µs",
        "7.00",
        "4 GB/s",
        "20 %°",
        "2 KiB / 2 KiB",
    ]
    assert "copy 20 GB/s, float32 product 80 GFLOP/s" in text


def test_quick_rows_are_marked():
    assert "quick run" in report.build_table([row("fastvae", 1, quick=True)])
    assert "quick run" not in report.build_table([row("fastvae", 1)])


@pytest.mark.parametrize(
    ("microseconds", "text"), [(0.5, "0.5 µs"), (12.34, "12.3 µs"), (1500, "1.5 ms"), (2345678, "2346 ms")]
)
def test_durations(microseconds, text):
    assert wording.format_duration(microseconds) == text


@pytest.mark.parametrize(("count", "text"), [(0, "0 B"), (1023, "1023 B"), (1023 * 1024, "1023 KiB"), (2**21, "2 MiB")])
def test_sizes(count, text):
    assert wording.format_size(count) == text


def test_report_writes_table_and_pictures(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    path = tmp_path / "rows.jsonl"
    append_rows(path, pair("a", 1.0, 2.0))
    assert report.main([str(path), "--out", str(tmp_path / "out")]) == 0
    written = {p.name for p in (tmp_path / "out").iterdir()}
    assert written == {"table.md", "speed-overview.png", "speed-diag_gaussian.png", "roofline.png"}
    page = (tmp_path / "out" / "table.md").read_text()
    assert all(f"({name})" in page for name in written - {"table.md"})


def test_pictures_of_another_machine_say_what_differs(tmp_path):
    plots = pytest.importorskip("bench.plots")
    other = [changed | {"environment": changed["environment"] | {"threads": 4}} for changed in pair("a", 1.0, 2.0)]
    drawn = plots.draw_all(group_by_case(pair("a", 1.0, 2.0)) + group_by_case(other), tmp_path)
    shown = ("speed-overview", "speed-diag_gaussian", "roofline")
    assert [path.stem for path in drawn] == [*shown, *(f"{name}-4-threads" for name in shown)]


def test_report_of_a_missing_file_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        report.main([str(tmp_path / "none.jsonl")])
    assert stopped.value.code == 2
    assert "none.jsonl" in capsys.readouterr().err
