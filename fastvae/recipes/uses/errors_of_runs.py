"""The errors of several runs of semi-supervised learning, by system and number of labels."""

from __future__ import annotations

import csv
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from ..errors import RecipeError
from ..pictures.errors import ErrorCurves
from .tables import TABLES, Line, flatten, read_result, sort_runs

__all__ = ["gather_errors"]

TABLE = TABLES["ssl"]


@dataclass
class Found:
    """What the runs of one line have: errors by number of labels, and epochs with their errors."""

    line: Line
    errors: dict[int, list[float]] = field(default_factory=dict)
    epochs: list[list[tuple[int, float]]] = field(default_factory=list)

    def to_curves(self) -> ErrorCurves:
        points = [
            (labels, statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0)
            for labels, values in self.errors.items()
        ]
        published = self.line.published[0].split(" ")[0]
        known = (int(TABLE.usual["labels"]), float(published)) if published else None
        return ErrorCurves(points, [curve for curve in self.epochs if curve], known)


def gather_errors(folders: Sequence[Path]) -> dict[str, ErrorCurves]:
    """The errors of runs, by the name of their line of the table ``ssl``; of other data than MNIST with these.

    Args:
        folders: of runs, as of :func:`~fastvae.recipes.uses.tables.read_result`.

    Raises:
        RecipeError: a folder has no result with an error and a number of labels, or one of no line of the table.
    """
    of_name: dict[str, Found] = {}
    for folder in folders:
        result = flatten(read_result(folder))
        ((line, _),) = (found for found in sort_runs(replace(TABLE, usual={}), [result]) if found[1])
        if not {"labels", "error"} <= result.keys():
            raise RecipeError(f"{folder} must have a result with an error and a number of labels")
        data = result.get("data", TABLE.usual["data"])
        if data != TABLE.usual["data"]:
            line = replace(line, name=f"{line.name}, {data}", published=("",))
        found = of_name.setdefault(line.name, Found(line))
        # A run of its own may hold several choices of labels.
        found.errors.setdefault(int(result["labels"]), []).extend(result.get("errors") or [float(result["error"])])
        found.epochs.append(read_epochs(folder))
    return {name: found.to_curves() for name, found in of_name.items()}


def read_epochs(folder: Path) -> list[tuple[int, float]]:
    """Epochs and test errors in the ``metrics.csv`` beside a result; none if there is no such file.

    Raises:
        RecipeError: the file is no record of epochs.
    """
    path = (folder if folder.is_dir() else folder.parent) / "metrics.csv"
    if not path.exists():
        return []
    try:
        with open(path, newline="") as file:
            rows = [(row.get("epoch"), row.get("test_error")) for row in csv.DictReader(file)]
        return [(int(epoch), float(error)) for epoch, error in rows if epoch and error]
    except (OSError, ValueError) as error:
        raise RecipeError(f"{path} must be the metrics.csv of a finished run: {error}") from None
