"""A Markdown table and plots out of measured rows."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path

from . import results
from .results import Row

_TITLES = {
    "fastvae": "fastvae",
    "cpp": "C++",
    "triton": "Triton",
    "fastvae_channels_last": "fastvae, channels last",
    "reference": "eager",
    "channels_last": "eager, channels last",
    "compile": "compile",
    "distributions": "torch.distributions",
    "zuko": "zuko",
    "nflows": "nflows",
    "pyro": "Pyro",
    "naive": "whole passes",
    "forward": "own forward",
}
_QUICK = "**From a quick run: these times show that it works, not how fast it is.**"
_NOTE = """\
Times are medians of interleaved samples, and *vs* is how many times faster fastvae is; both of one run.
*eager* is the reference implementation in plain PyTorch, *compile* is `torch.compile` of it. *Limit* is the
share of the speed that the machine allows: the bytes that must move at the copy bandwidth of the same run,
or the operations at the rate of its matrix product, whichever takes longer; ° marks work that fits the last
cache, which no copy through memory bounds. *Temporary* is peak memory beyond the results of a call: of
fastvae, after the stroke of eager. *own forward*, beside an inverse, is fastvae's forward pass of the same
network; *whole passes* is one of them for every pixel drawn. Of a masked network only the weights that count are
counted. *channels last* is the other layout of a convolution's images."""


def table(records: Iterable[Row]) -> str:
    """The rows as Markdown: one heading per machine and timer, one line per case."""
    groups = results.by_case(records)
    if not groups:
        return "No rows."
    sections = []
    for title, members in groupby(sorted(groups, key=_title), key=_title):
        sections.append(f"### {title}\n\n{_section_table(list(members))}")
    quick = [_QUICK] if any(_any(group).get("quick") for group in groups) else []
    return "\n\n".join([*quick, *sections, _NOTE]) + "\n"


def _title(group: dict[str, Row]) -> str:
    return machine_of(_any(group))


def machine_of(row: Row) -> str:
    """The machine, the versions and the commit of a row, and how a GPU's calls were issued."""
    environment = row["environment"]
    versions = environment["versions"]
    machine = environment["cpu"] + f", {environment['threads']} threads"
    if environment.get("isa"):
        machine += f", {environment['isa']}"
    if row["device"] == "cuda":
        timer = "CUDA graph replays" if row["timer"] == "graph" else "calls from Python"
        machine = f"{environment['gpu']['name']}, CUDA {environment['gpu']['cuda']}, {timer}"
    return f"{machine}; torch {versions['torch']}; commit {environment['commit'] or 'unknown'}"


def _section_table(groups: list[dict[str, Row]]) -> str:
    providers = [name for name in _TITLES if any(name in group for group in groups)]
    ours = [name for name in ("fastvae", "cpp", "triton") if name in providers]
    main = ours[0] if ours else None
    others = [name for name in providers if name not in ours]
    header = ["work", "mode", "shape", "dtype", *(_TITLES[name] for name in providers)]
    if main:
        header += [f"vs {_TITLES[name]}" for name in others] + ["rate", "limit", "temporary"]
    lines = [_line(header), _line(["---"] * 4 + ["---:"] * (len(header) - 4))]
    for group in groups:
        row = _any(group)
        cells = [_work(row), row["mode"], f"[{row['shape'].replace('x', ', ')}]", row["dtype"]]
        cells += [_time(group.get(name)) for name in providers]
        if main:
            cells += [_ratio(group, main, name) for name in others] + _rates(group, main)
        lines.append(_line(cells))
    failures = [
        f"- {_TITLES[name]}, {_work(row)} {row['mode']} [{row['shape']}] {row['dtype']}: {row['error']}"
        for group in groups
        for name, row in group.items()
        if "error" in row
    ]
    return "\n".join([*lines, "", _limits(groups), *(["", "Failed:", "", *failures] if failures else [])])


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _any(group: dict[str, Row]) -> Row:
    return next(row for row in group.values() if "timer" in row)


def _work(row: Row) -> str:
    return " ".join(part for part in (f"`{row['op']}`", row["entry"], row["variant"]) if part)


def _time(row: Row | None) -> str:
    if row is None:
        return ""
    return "failed" if "error" in row else duration(row["p50_us"])


def duration(microseconds: float) -> str:
    value, unit = (microseconds, "µs") if microseconds < 1000 else (microseconds / 1000, "ms")
    return f"{value:.3g} {unit}" if value < 1000 else f"{value:.0f} {unit}"


def _ratio(group: dict[str, Row], main: str, other: str) -> str:
    ratio = group.get(main, {}).get(f"vs_{other}")
    return "" if ratio is None else f"{ratio:.2f}" if ratio < 10 else f"{ratio:.1f}"


def _rates(group: dict[str, Row], main: str) -> list[str]:
    row = group.get(main)
    if row is None or "error" in row:
        return ["", "", ""]
    rate = f"{row['gbps']:.3g} GB/s" if row["bound"] == "memory" else f"{row['gflops']:.3g} GFLOP/s"
    cached = "°" if row["in_cache"] else ""
    temporary = [
        size(group[n]["temporary_bytes"]) for n in (main, "reference") if "temporary_bytes" in group.get(n, {})
    ]
    percent = row["percent_of_limit"]
    share = f"{percent:.0f}" if percent >= 10 else f"{percent:.2g}"
    return [rate, f"{share} %{cached}", " / ".join(temporary)]


def size(count: int) -> str:
    for unit, scale in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= scale:
            return f"{count / scale:.{3 if count < 1000 * scale else 4}g} {unit}"
    return f"{count} B"


def _limits(groups: list[dict[str, Row]]) -> str:
    rows = [row for group in groups for row in group.values() if "copy_gbps" in row]
    if not rows:
        return ""
    copies = [row["copy_gbps"] for row in rows]
    products = {
        dtype: [r["matmul_gflops"] for r in rows if r["dtype"] == dtype] for dtype in {r["dtype"] for r in rows}
    }
    measured = ", ".join(f"{dtype} product {_range(rates)} GFLOP/s" for dtype, rates in sorted(products.items()))
    return f"Limits measured in these runs: copy {_range(copies)} GB/s, {measured}."


def _range(values: Sequence[float]) -> str:
    low, high = (f"{value:.4g}" for value in (min(values), max(values)))
    return low if low == high else f"{low} to {high}"


def write(records: Sequence[Row], folder: Path) -> list[Path]:
    """Writes ``table.md`` and, where matplotlib is installed, the plots it shows."""
    folder.mkdir(parents=True, exist_ok=True)
    pictures = _plots(records, folder)
    shown = "".join(f"\n![{path.stem}]({path.name})\n" for path in pictures)
    page = folder / "table.md"
    page.write_text(table(records) + shown)
    return [page, *pictures]


def _plots(records: Sequence[Row], folder: Path) -> list[Path]:
    try:
        from . import plots
    except ImportError as error:
        print(f"no plots: {error}; they need pip install matplotlib", file=sys.stderr)
        return []
    return plots.draw(results.by_case(records), folder)


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench report", description=__doc__)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="JSON lines that python -m bench wrote")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder for table.md and plots; else print the table")
    options = parser.parse_args(arguments)
    try:
        records = results.read(options.files)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    if options.out is None:
        print(table(records))
        return 0
    for path in write(records, options.out):
        print(path)
    return 0
