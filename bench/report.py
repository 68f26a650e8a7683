"""A Markdown table and pictures out of measured rows."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path

from .rows import Group, Row, find_timed, group_by_case, read_rows
from .wording import (
    TITLES,
    format_duration,
    format_range,
    format_size,
    name_commit,
    name_machine,
    name_shape,
    name_work,
)

_WHOLE = (
    "training_step",
    "class_step",
    "auxiliary_step",
    "leapfrog_step",
    "density_step",
    "evaluation",
    "model_sample",
    "demo",
)
_QUICK = "**From a quick run: these times show that it works, not how fast it is.**"
_NOTE = """\
Times are medians of interleaved samples. *vs* is how many times faster fastvae is; both times come from one run.
*eager* is the reference implementation in plain PyTorch. *compile* is `torch.compile` of it, and
*fastvae + compile* `torch.compile` of the model that holds our ops. *Limit* is the
share of the speed that the machine allows: the bytes that must move at the copy bandwidth of the same run,
or the operations at the rate of its matrix product, whichever takes longer. ° marks work that fits the last
cache: no copy through memory bounds it. *Temporary* is peak memory beyond the results of a call: first that of
fastvae, after the stroke that of eager. *own forward*, beside an inverse, is fastvae's forward pass of the same
network. *whole passes* runs one of them for every pixel drawn. *whole product*, beside a masked layer, multiplies the
weight without its mask. *repeated inputs* copies them for every class, beside one-hot codes. Of a masked network only
the weights that the mask keeps are counted. *channels last* is the other layout of a convolution's images."""


def build_table(records: Iterable[Row]) -> str:
    """The rows as Markdown: one heading per kind of work, machine, timer and commit, one line per case."""
    groups = group_by_case(records)
    if not groups:
        return "No rows."
    sections = []
    ordered = sorted(groups, key=lambda group: (find_timed(group)["op"] not in _WHOLE, _title_section(group)))
    for title, members in groupby(ordered, key=_title_section):
        sections.append(f"### {title}\n\n{_build_section(list(members))}")
    quick = [_QUICK] if any(find_timed(group).get("quick") for group in groups) else []
    return "\n\n".join([*quick, *sections, _NOTE]) + "\n"


def _title_section(group: Group) -> str:
    row = find_timed(group)
    what = "Whole jobs" if row["op"] in _WHOLE else "Ops"
    return f"{what}. {name_machine(row)}; {name_commit(row)}"


def _build_section(groups: list[Group]) -> str:
    providers = [name for name in TITLES if any(name in group for group in groups)]
    ours = [name for name in ("fastvae", "cpp", "triton") if name in providers]
    main = ours[0] if ours else None
    others = [name for name in providers if name not in ours]
    header = ["work", "mode", "shape", "dtype", *(TITLES[name] for name in providers)]
    if main:
        header += [f"vs {TITLES[name]}" for name in others] + ["rate", "limit", "temporary"]
    lines = [_join_cells(header), _join_cells(["---"] * 4 + ["---:"] * (len(header) - 4))]
    for group in groups:
        row = find_timed(group)
        cells = [name_work(row), row["mode"], name_shape(row), row["dtype"]]
        cells += [_format_time(group.get(name)) for name in providers]
        if main:
            cells += [_format_ratio(group, main, name) for name in others] + _format_rates(group, main)
        lines.append(_join_cells(cells))
    failures = [
        f"- {TITLES[name]}, {name_work(row)} {row['mode']} [{row['shape']}] {row['dtype']}: {row['error']}"
        for group in groups
        for name, row in group.items()
        if "error" in row
    ]
    return "\n".join([*lines, "", _format_limits(groups), *(["", "Failed:", "", *failures] if failures else [])])


def _join_cells(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _format_time(row: Row | None) -> str:
    if row is None:
        return ""
    return "failed" if "error" in row else format_duration(row["p50_us"])


def _format_ratio(group: Group, main: str, other: str) -> str:
    ratio = group.get(main, {}).get(f"vs_{other}")
    return "" if ratio is None else f"{ratio:.2f}" if ratio < 10 else f"{ratio:.1f}"


def _format_rates(group: Group, main: str) -> list[str]:
    row = group.get(main)
    if row is None or "error" in row:
        return ["", "", ""]
    rate = f"{row['gbps']:.3g} GB/s" if row["bound"] == "memory" else f"{row['gflops']:.3g} GFLOP/s"
    cached = "°" if row["in_cache"] else ""
    temporary = [
        format_size(group[n]["temporary_bytes"]) for n in (main, "reference") if "temporary_bytes" in group.get(n, {})
    ]
    percent = row["percent_of_limit"]
    share = f"{percent:.0f}" if percent >= 10 else f"{percent:.2g}"
    return [rate, f"{share} %{cached}", " / ".join(temporary)]


def _format_limits(groups: list[Group]) -> str:
    rows = [row for group in groups for row in group.values() if "copy_gbps" in row]
    if not rows:
        return ""
    copies = [row["copy_gbps"] for row in rows]
    products = {
        dtype: [r["matmul_gflops"] for r in rows if r["dtype"] == dtype] for dtype in {r["dtype"] for r in rows}
    }
    measured = ", ".join(f"{dtype} product {format_range(rates)} GFLOP/s" for dtype, rates in sorted(products.items()))
    return f"Limits measured in these runs: copy {format_range(copies)} GB/s, {measured}."


def write_report(records: Sequence[Row], folder: Path) -> list[Path]:
    """Writes ``table.md`` and, where matplotlib is installed, the pictures that it shows."""
    folder.mkdir(parents=True, exist_ok=True)
    pictures = _draw_pictures(records, folder)
    shown = "".join(f"\n![{path.stem.replace('-', ' ')}]({path.name})\n" for path in pictures)
    page = folder / "table.md"
    page.write_text(build_table(records) + shown)
    return [page, *pictures]


def _draw_pictures(records: Sequence[Row], folder: Path) -> list[Path]:
    # A table needs no matplotlib.
    try:
        from . import plots
    except ImportError as error:
        print(f"no pictures: {error}; they need pip install matplotlib", file=sys.stderr)
        return []
    return plots.draw_all(group_by_case(records), folder)


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench report", description=__doc__)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="JSON lines that python -m bench wrote")
    parser.add_argument("--out", type=Path, metavar="DIR", help="for table.md and pictures; else the table is printed")
    options = parser.parse_args(arguments)
    try:
        records = read_rows(options.files)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    if options.out is None:
        print(build_table(records))
        return 0
    for path in write_report(records, options.out):
        print(path)
    return 0
