"""The lecture's tables: published figures beside those of runs."""

from __future__ import annotations

import json
import math
import shlex
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..errors import RecipeError

__all__ = ["TABLES", "Line", "Table", "flatten", "read_result", "sort_runs", "write_table"]


@dataclass(frozen=True)
class Line:
    """A system in a table.

    Args:
        name: as the lecture has it.
        recipe: of the runs.
        published: the published figures, one for each column.
        settings: what the runs' results have beside the recipe; a settings' name, and its value.
    """

    name: str
    recipe: str
    published: tuple[str, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)

    def holds(self, result: Mapping[str, Any]) -> bool:
        """Whether a run is of this line."""
        found = flatten(result)
        return found.get("recipe") == self.recipe and all(found.get(k) == v for k, v in self.settings.items())


@dataclass(frozen=True)
class Table:
    """A table of the lecture.

    Args:
        title: above it.
        columns: names of the figures in results, with the head of their column and the name of their standard error.
        lines: the systems.
        repeated: what differs between runs of one line, whose figures are averaged; other lines have their best run.
        usual: settings of the published runs, with their values; runs with others have lines of their own.
    """

    title: str
    columns: Mapping[str, tuple[str, str]]
    lines: tuple[Line, ...]
    repeated: str | None = None
    usual: Mapping[str, Any] = field(default_factory=dict)


def flow(depth: int, width: int) -> dict[str, Any]:
    return {"posterior": "iaf", "depth": depth, "width": width}


TABLES = {
    "ssl": Table(
        "MNIST with 100 labels, test error in %",
        {"error": ("test error, %", "standard_error")},
        (
            Line("M1 + TSVM", "m1", ("11.82 ± 0.25",), {"classifier": "tsvm"}),
            Line("M1 + self-training SVM", "m1", ("",), {"classifier": "self-training"}),
            Line("M1 + SVM", "m1", ("",), {"classifier": "svm"}),
            Line("M2", "m2", ("11.97",)),
            Line("M1 + M2", "m1m2", ("3.33 ± 0.14",)),
            Line("VAT", "vat", ("2.12",)),
            Line("Ladder network", "ladder", ("1.06 ± 0.37",)),
            Line("ADGM", "adgm", ("0.96 ± 0.02",), {"kind": "adgm"}),
            Line("SDGM", "adgm", ("1.32 ± 0.07",), {"kind": "sdgm"}),
        ),
        repeated="label_seed",
        usual={"labels": 100, "data": "mnist"},
    ),
    "one": Table(
        "Dynamically binarised MNIST, test images, nats",
        {"elbo": ("bound", "elbo_error"), "log_p": ("log p(x)", "log_p_error")},
        (
            Line("Convolutional VAE + HVI", "hvi", ("-83.49", "-81.94")),
            Line("DLGM, two layers + IWAE", "iwae", ("", "-82.90"), {"layers": 2}),
            Line("IWAE, one layer", "iwae", ("", "-84.78"), {"layers": 1}),
            Line("LVAE", "lvae", ("", "-81.74"), {"inference": "ladder"}),
            Line("DRAW", "draw", ("-80.97", "")),
            Line("Diagonal covariance", "iaf_vae", ("-84.08 ± 0.10", "-81.08 ± 0.08"), {"posterior": "diagonal"}),
            Line("IAF, depth 2, width 320", "iaf_vae", ("-82.02 ± 0.08", "-79.77 ± 0.06"), flow(2, 320)),
            Line("IAF, depth 2, width 1920", "iaf_vae", ("-81.17 ± 0.08", "-79.30 ± 0.08"), flow(2, 1920)),
            Line("IAF, depth 4, width 1920", "iaf_vae", ("-80.93 ± 0.09", "-79.17 ± 0.08"), flow(4, 1920)),
            Line("IAF, depth 8, width 1920", "iaf_vae", ("-80.80 ± 0.07", "-79.10 ± 0.07"), flow(8, 1920)),
            Line("Dense VAE, diagonal", "vae", ("", ""), {"posterior": "diagonal"}),
            Line("Dense VAE, full covariance", "vae", ("", ""), {"posterior": "triangular"}),
        ),
    ),
}


def flatten(result: Mapping[str, Any]) -> dict[str, Any]:
    """A result, and the settings of its run, by name."""
    parts = result.get("config", {})
    inner = {k: v for part in parts.values() if isinstance(part, dict) for k, v in part.items()} if parts else {}
    return {**inner, **result}


def read_result(folder: Path) -> dict[str, Any]:
    """The ``result.json`` of a run.

    Raises:
        RecipeError: it is missing or no result.
    """
    path = folder / "result.json" if folder.is_dir() else folder
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise RecipeError(f"{path} must be the result.json of a finished run: {error}") from None
    if not isinstance(found, dict) or "recipe" not in found:
        raise RecipeError(f"{path} must be the result.json of a finished run, which names its recipe; this names none")
    return found


def sort_runs(table: Table, results: Sequence[Mapping[str, Any]]) -> list[tuple[Line, list[Mapping[str, Any]]]]:
    """The lines with their runs. Runs with other than the usual settings have lines below, without published figures.

    Raises:
        RecipeError: a run belongs to no line of the table.
    """
    runs: dict[str, dict[str, list[Mapping[str, Any]]]] = {line.name: {"": []} for line in table.lines}
    for result in results:
        line = next((line for line in table.lines if line.holds(result)), None)
        if line is None:
            names = ", ".join(dict.fromkeys(line.recipe for line in table.lines))
            raise RecipeError(
                f"a run of {result['recipe']} is on no line of this table, whose lines are of {names}, some with "
                "settings of their own"
            )
        runs[line.name].setdefault(_name_unusual(table, result), []).append(result)
    found = []
    for line in table.lines:
        found.append((line, runs[line.name].pop("")))
        for other in sorted(runs[line.name]):
            name = f"{line.name}, {other}"
            found.append((replace(line, name=name, published=("",) * len(line.published)), runs[line.name][other]))
    return found


def _name_unusual(table: Table, result: Mapping[str, Any]) -> str:
    found = flatten(result)
    return ", ".join(f"{name} {found[name]}" for name, value in table.usual.items() if found.get(name, value) != value)


def write_table(table: Table, results: Sequence[Mapping[str, Any]]) -> list[str]:
    """The table in Markdown: a line for each system, those without a run too, and the commands below.

    Args:
        table: one of :data:`TABLES`.
        results: of runs, as of :func:`read_result`.

    Raises:
        RecipeError: a run belongs to no line of the table.
    """
    of_line = sort_runs(table, results)
    heads = [head for head, _ in table.columns.values()]
    columns = ["system", *(f"{head}, {whose}" for head in heads for whose in ("published", "here"))]
    columns += ["runs", "epochs", "minutes"]
    lines = [f"**{table.title}**", "", _row(columns), _row(["---"] * len(columns))]
    commands = []
    for line, runs in of_line:
        cells = [line.name]
        chosen = runs if table.repeated else _best(runs, table)
        for published, (name, (_, error)) in zip(line.published, table.columns.items(), strict=True):
            cells += [published, _figure(chosen, name, error)]
        minutes = [sum(_numbers(chosen, "seconds")) / 60 / len(chosen)] if chosen else []
        epochs = sorted({run["epochs"] for run in chosen if "epochs" in run})
        cells += [str(len(chosen)) if chosen else "", ", ".join(map(str, epochs)), *(f"{m:.0f}" for m in minutes)]
        lines.append(_row(cells + [""] * (len(columns) - len(cells))))
        commands += [f"- {line.name}: `{_command(run['command'])}`" for run in chosen if "command" in run]
    return [*lines, "", *commands] if commands else lines


def _command(line: str) -> str:
    """A command as a user types it, wherever the program is."""
    return " ".join(["fastvae", *map(shlex.quote, shlex.split(line)[1:])])


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _best(runs: list[Mapping[str, Any]], table: Table) -> list[Mapping[str, Any]]:
    name = list(table.columns)[-1]
    return [max(runs, key=lambda run: run.get(name) or -math.inf)] if runs else []


def _numbers(runs: Sequence[Mapping[str, Any]], name: str) -> list[float]:
    return [float(run[name]) for run in runs if run.get(name) is not None]


def _figure(runs: Sequence[Mapping[str, Any]], name: str, error: str) -> str:
    """The mean and the standard deviation of several runs; the figure and the standard error of one."""
    # A run of its own may hold several choices of labels.
    values = [value for run in runs for value in run.get("errors", ()) or _numbers([run], name)]
    if not values:
        return ""
    spread = statistics.stdev(values) if len(values) > 1 else next(iter(_numbers(runs, error)), None)
    mean = f"{statistics.fmean(values):.2f}"
    return mean if spread is None else f"{mean} ± {spread:.2f}"
