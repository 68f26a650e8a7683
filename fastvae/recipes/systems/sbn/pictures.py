"""Pictures of ``sbn``: what units draw, and estimators side by side.

``python -m fastvae.recipes.systems.sbn.pictures RUN... --out FOLDER`` draws the bounds, and the variances of the
encoder's gradient, of several runs.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from ...errors import RecipeError
from ...pictures.grids import draw_grid, save

__all__ = ["draw_bounds", "draw_filters", "draw_variances", "read_run"]

Rows = Sequence[Mapping[str, float]]


def draw_filters(weight: Tensor, path: Path, *, rows: int = 8, columns: int = 10) -> None:
    """Weights ``(pixels, units)`` of the decoder's last layer, those of the units that matter most, as images.

    Black raises a pixel's probability, white lowers it, grey leaves it.
    """
    largest = weight.detach().square().sum(0).argsort(descending=True)[: rows * columns]
    images = weight.detach()[:, largest].t()
    images = 0.5 + 0.5 * images / images.abs().amax(1, keepdim=True).clamp(min=1e-12)
    blank = images.new_zeros(rows * columns - len(images), images.shape[1])
    draw_grid(torch.cat([images, blank]), rows, columns, "Weights of the decoder's last layer", path)


def draw_bounds(runs: Mapping[str, Rows], path: Path) -> None:
    """The training and validation bounds of runs against the step."""
    axes = _draw(
        runs, path, {"train_elbo": ":", "valid_elbo": "-"}, "ELBO (nats)", "Bound, training (dotted) and validation"
    )
    late = [row["train_elbo"] for rows in runs.values() for row in rows[len(rows) // 10 :]]
    axes.set_ylim(bottom=min(late) - 1.0)
    save(axes.figure, path)


def draw_variances(runs: Mapping[str, Rows], path: Path) -> None:
    """The variances of the encoder's gradient against the step.

    Those of ``nvil`` are smaller by the square of the deviation that it divides its signals by.
    """
    title = "Variance of the encoder's gradient, 50 images"
    axes = _draw(runs, path, {"gradient_variance": "-"}, "sum over weights", title)
    # Units that are certain have no gradient.
    if any(row["gradient_variance"] > 0 for rows in runs.values() for row in rows):
        axes.set_yscale("log")
    save(axes.figure, path)


def _draw(runs: Mapping[str, Rows], path: Path, lines: Mapping[str, str], quantity: str, title: str) -> Any:
    figure = Figure(figsize=(6.4 if len(runs) == 1 else 8.0, 4.2), layout="constrained")
    axes = figure.subplots()
    for i, (name, rows) in enumerate(runs.items()):
        for j, (column, style) in enumerate(lines.items()):
            points = [(row["step"], row[column]) for row in rows if column in row]
            marker = "o" if len(points) == 1 else None
            axes.plot(
                *zip(*points, strict=True), style, color=f"C{i}", marker=marker, markersize=4,
                label=name if j == len(lines) - 1 else None,
            )  # fmt: skip
    axes.set_xlabel("step")
    axes.set_ylabel(quantity)
    axes.set_title(title, fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    if len(runs) > 1:
        axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    else:
        axes.legend(frameon=False)
    return axes


def read_run(folder: Path) -> tuple[str, list[dict[str, float]]]:
    """The estimator of a run, and the rows of its ``metrics.csv``.

    Raises:
        RecipeError: ``folder`` holds no run of ``sbn`` with an epoch.
    """
    try:
        settings = json.loads((folder / "config.json").read_text())
        name = f"{settings['training']['estimator']}, {settings['model']['layers']}"
        with open(folder / "metrics.csv", newline="") as file:
            rows = [{key: float(v) for key, v in row.items() if v} for row in csv.DictReader(file)]
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise RecipeError(f"{folder} holds no run of sbn: {error}") from None
    if not rows:
        raise RecipeError(f"{folder} holds no run of sbn with an epoch")
    return name, rows


def main() -> None:
    parser = argparse.ArgumentParser(prog=f"python -m {__spec__.name}", description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folder of a run")
    parser.add_argument("--out", type=Path, default=Path("."), metavar="FOLDER", help="where the pictures go")
    options = parser.parse_args()
    runs: dict[str, Any] = {}
    try:
        for folder in options.runs:
            name, rows = read_run(folder)
            runs[f"{name} ({folder.name})" if name in runs else name] = rows
        draw_bounds(runs, options.out / "bounds.png")
        draw_variances(runs, options.out / "gradient_variances.png")
    except RecipeError as error:
        parser.exit(1, f"error: {error}\n")


if __name__ == "__main__":
    main()
