"""The page that a check of a GPU leaves: floors and what was measured, its steps, and the tables of its rows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from . import floors, report, tuning
from .rows import Row, read_rows
from .wording import format_duration

_TABLES = {"floors": "Without torch.compile", "baselines": "Beside torch.compile"}


def write_page(records: Path) -> Path:
    found = read_rows([records])
    page = records.with_suffix(".md")
    page.write_text("\n".join([*_render_summary(found), *_render_tables(found)]) + "\n")
    return page


def summarise(records: Path) -> str:
    """The page without its tables of times."""
    return "\n".join(_render_summary(read_rows([records])))


def _render_summary(found: Sequence[Row]) -> Iterator[str]:
    header = next(record for record in found if record["kind"] == "header")
    described = header["environment"]
    gpu = described.get("gpu")
    machine = f"{gpu['name']}, {gpu['memory_gib']} GiB, CUDA {gpu['cuda']}" if gpu else described["cpu"]
    versions = ", ".join(f"{name} {version}" for name, version in described["versions"].items())
    yield f"# gpu-check, {header['part']} part: {machine}"
    yield ""
    yield f"{described['date']}, commit {described['commit'] or 'unknown'}, {versions}."
    if header["part"] == "first":
        yield from _render_floors(found)
    yield from _render_steps(found)
    yield from _render_left_out(found)


def _render_tables(found: Sequence[Row]) -> Iterator[str]:
    for step, title in _TABLES.items():
        rows = [record for record in found if record.get("step") == step]
        if rows:
            yield from ["", f"## {title}", "", report.build_table(rows)]
    tuned = [record for record in found if record["kind"] == "tuning"]
    if tuned:
        yield from ["", "## Other constants than the kernels' rules choose", "", tuning.build_table(tuned)]


def _render_floors(found: Iterable[Row]) -> Iterator[str]:
    verdicts = floors.judge(found)
    words = [verdict.word for verdict in verdicts]
    counts = ", ".join(f"{words.count(word)} {word}" for word in ("holds", "missed", "not measured"))
    yield from ["", "## Floors", "", f"Of {len(verdicts)}: {counts}.", ""]
    yield "| work | mode | shape | dtype | timer | floor | measured | time | |"
    yield "| --- | --- | --- | --- | --- | --- | ---: | ---: | --- |"
    for verdict, word in zip(verdicts, words, strict=True):
        floor, bar, row, value = verdict
        case = floor.case
        measured = "" if value is None else bar.format(value)
        time = "" if row is None else format_duration(row["p50_us"])
        cells = [case.task, case.mode, str(case.shape), case.dtype, floor.timer, bar.describe(), measured, time]
        yield f"| {' | '.join(cells)} | {f'**{word}**' if word == 'missed' else word} |"


def _render_steps(found: Iterable[Row]) -> Iterator[str]:
    yield from ["", "## Steps", "", "| step | outcome | seconds | last line |", "| --- | --- | ---: | --- |"]
    for record in found:
        if record["kind"] == "step":
            last = (record.get("output") or [""])[-1].replace("|", "\\|")
            yield f"| {record['name']} | {record['outcome']} | {record.get('seconds', '')} | {last} |"
    for record in found:
        if record["kind"] == "limits":
            copy, product = (record[name] * 1e-9 for name in ("copy", "matmul"))
            yield from ["", f"Limits in {record['dtype']}: copy {copy:.4g} GB/s, product {product:.4g} GFLOP/s."]


def _render_left_out(found: Iterable[Row]) -> Iterator[str]:
    cases = [case for record in found if record["kind"] == "left_out" for case in record["cases"]]
    if cases:
        yield from ["", "Left out:", "", *(f"- {case}" for case in cases)]
