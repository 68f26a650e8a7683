"""Rows of results as JSON lines: appended as they come, read back and grouped for tables and pictures."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

Row = dict[str, Any]
# The providers of one case: ``{provider: row}``, all rows of one run.
Group = dict[str, Row]
_CASE = ("op", "entry", "variant", "mode", "shape", "dtype", "device", "timer")


def append_rows(path: Path, records: Iterable[Row]) -> None:
    """Adds one line per record; an interruption leaves the earlier lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        for record in records:
            file.write(json.dumps(record) + "\n")


def read_rows(paths: Iterable[Path]) -> list[Row]:
    """All records of the files, in order.

    Raises:
        ValueError: a line is not a JSON object; the last line of a run that was cut off is left out instead.
    """
    return [record for path in paths for record in _read_file(path)]


def _read_file(path: Path) -> Iterator[Row]:
    lines = path.read_text().splitlines()
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            if number == len(lines):
                return
            raise ValueError(f"{path.name}, line {number}: not a JSON object ({error})") from None
        yield record


def group_by_case(records: Iterable[Row]) -> list[Group]:
    """Rows grouped by case, as ``{provider: row}``, each group from the last run that measured the case.

    Rows of different runs never meet in a group: every ratio within one comes from one run. A provider that failed
    before it was timed leaves a row without a timer, which joins every group of its case and run.
    """
    groups: dict[tuple[Any, ...], dict[str, Group]] = {}
    failed: list[Row] = []
    for row in records:
        if row.get("kind") != "row":
            continue
        if "timer" not in row:
            failed.append(row)
            continue
        case = (_find_processor(row), *(row[key] for key in _CASE))
        groups.setdefault(case, {}).setdefault(row["run"], {})[row["provider"]] = row
    latest = []
    for runs in groups.values():
        run, group = max(runs.items(), key=lambda item: item[0])
        sample = next(iter(group.values()))
        for row in failed:
            if row["run"] == run and all(row[key] == sample[key] for key in _CASE[:-1]):
                group.setdefault(row["provider"], row)
        latest.append(group)
    return latest


def find_timed(group: Group) -> Row:
    """A timed row; its case, machine and commit are those of the whole group."""
    return next(row for row in group.values() if "timer" in row)


def _find_processor(row: Row) -> str:
    environment = row["environment"]
    return environment["gpu"]["name"] if row["device"] == "cuda" else environment["cpu"]
