"""Errors of classification against the number of labels and the epoch, as PNG files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from .grids import save

__all__ = ["ErrorCurves", "draw_errors"]


@dataclass(frozen=True)
class ErrorCurves:
    """The errors of one system, in %.

    Args:
        by_labels: number of labels, mean error, and its standard deviation over choices of labels, each.
        by_epoch: for every run with a record of it, pairs of epoch and test error.
        published: number of labels and error, or None.
    """

    by_labels: Sequence[tuple[int, float, float]]
    by_epoch: Sequence[Sequence[tuple[int, float]]] = field(default=())
    published: tuple[int, float] | None = None


def draw_errors(systems: Mapping[str, ErrorCurves], path: Path) -> None:
    """Test errors against labels and, where a run has a record of its epochs, against these; a colour a system.

    Args:
        systems: by name.
        path: the PNG file.
    """
    with_epochs = any(found.by_epoch for found in systems.values())
    figure = Figure(figsize=(10.6 if with_epochs else 6.0, 4.4), layout="constrained")
    all_axes = figure.subplots(1, 2 if with_epochs else 1, squeeze=False)[0]
    for index, (name, found) in enumerate(systems.items()):
        color = f"C{index % 10}"
        draw_labels(all_axes[0], name, found, color)
        for curve in found.by_epoch:
            marker = "o" if len(curve) == 1 else None
            all_axes[-1].plot(*zip(*curve, strict=True), color=color, linewidth=1.2, marker=marker, markersize=4)
    counts = sorted({labels for found in systems.values() for labels, *_ in found.by_labels})
    all_axes[0].set_xscale("log")
    all_axes[0].set_xticks(counts, [str(count) for count in counts])
    all_axes[0].xaxis.set_minor_locator(NullLocator())
    for axes, label in zip(all_axes, ("labels", "epoch"), strict=False):
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_locator(NullLocator())
        axes.set_xlabel(label)
        axes.set_ylabel("test error (%)")
        axes.grid(axis="y", linewidth=0.4, alpha=0.5)
        axes.spines[["top", "right"]].set_visible(False)
    all_axes[0].set_title("Error against labels; hollow: published", fontsize=11)
    if with_epochs:
        all_axes[-1].set_title("Error against epochs, a line a run", fontsize=11)
    all_axes[0].legend(frameon=False, fontsize=8)
    save(figure, path)


def draw_labels(axes: Axes, name: str, found: ErrorCurves, color: str) -> None:
    labels, errors, deviations = zip(*sorted(found.by_labels), strict=True)
    axes.errorbar(labels, errors, yerr=deviations, color=color, marker="o", markersize=4, capsize=3, label=name)
    if found.published is not None:
        axes.plot(*found.published, color=color, marker="D", markersize=6, fillstyle="none", linestyle="none")
