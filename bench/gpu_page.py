"""The page that a check of a GPU leaves: its steps, how each ended, and the table of its measurements."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from . import report, tuning
from .rows import Row, read_rows


def write_page(records: Path) -> Path:
    found = read_rows([records])
    page = records.with_suffix(".md")
    page.write_text(_render_page(found))
    return page


def _render_page(found: Sequence[Row]) -> str:
    header = next(record for record in found if record["kind"] == "header")
    described = header["environment"]
    gpu = described.get("gpu")
    machine = (
        f"{gpu['name']}, {gpu['memory_gib']} GiB, CUDA {gpu['cuda']}" if gpu else f"{described['cpu']} (rehearsal)"
    )
    versions = ", ".join(f"{name} {version}" for name, version in described["versions"].items())
    lines = [
        f"# gpu-check: {machine}",
        "",
        f"{described['date']}, commit {described['commit'] or 'unknown'}, {versions}.",
        "",
        "| step | outcome | seconds | last line |",
        "| --- | --- | ---: | --- |",
    ]
    for record in found:
        if record["kind"] == "step":
            # The last line of a successful measurement belongs to its table, which the page shows below.
            tells = record["outcome"] != "ok" or not record["name"].startswith(("bench", "tune"))
            last = (record.get("output") or [""])[-1].replace("|", "\\|") if tells else ""
            lines.append(f"| {record['name']} | {record['outcome']} | {record.get('seconds', '')} | {last} |")
    for record in found:
        if record["kind"] == "left_out":
            lines += ["", f"Left out for want of time: {'; '.join(record['cases'])}."]
    tuned = [record for record in found if record["kind"] == "tuning"]
    table = tuning.build_table(tuned) if tuned else report.build_table(found)
    return "\n".join([*lines, "", "## Measurements", "", table])
