"""Results as JSON lines: appended as they come, read back by the report."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

Row = dict[str, Any]
_CASE = ("op", "entry", "variant", "mode", "shape", "dtype", "device", "timer")


def append(path: Path, records: Iterable[Row]) -> None:
    """Adds one line per record; what was written before an interruption stays."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        for record in records:
            file.write(json.dumps(record) + "\n")


def read(paths: Iterable[Path]) -> list[Row]:
    """All records of the files, in order.

    Raises:
        ValueError: a line is not a JSON object; the last line of a run that was cut off is left out instead.
    """
    return [record for path in paths for record in _records(path)]


def _records(path: Path) -> Iterator[Row]:
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


def by_case(records: Iterable[Row]) -> list[dict[str, Row]]:
    """Rows grouped by case, as ``{provider: row}``, each group from the last run that measured the case.

    Rows of different runs never meet in a group, so every ratio within one comes from one run. Rows without
    a timer, of providers that failed before they were timed, join every group of their case and run.
    """
    groups: dict[tuple[Any, ...], dict[str, dict[str, Row]]] = {}
    failed: list[Row] = []
    for row in records:
        if row.get("kind") != "row":
            continue
        if "timer" not in row:
            failed.append(row)
            continue
        case = (_machine(row), *(row[key] for key in _CASE))
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


def _machine(row: Row) -> str:
    environment = row["environment"]
    return environment["gpu"]["name"] if row["device"] == "cuda" else environment["cpu"]
