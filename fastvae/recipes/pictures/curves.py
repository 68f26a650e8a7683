"""Learning curves, as PNG files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from .grids import save

__all__ = ["IMAGES", "draw_learning_curves"]

# Name, unit and title by the end of a quantity's name.
QUANTITIES = {
    "elbo": ("ELBO", "nats", "evidence lower bound"),
    "log_p": ("log p(x)", "nats", "log-likelihood"),
    "error": ("error", "%", "errors of classification"),
}
# What a title calls the data of a training by their name in its settings.
DATA = {
    "dynamic": "Binarised MNIST",
    "static": "MNIST, binarised once",
    "mnist": "MNIST",
    "digits": "Digits of scikit-learn",
    "frey": "Frey faces",
    "moons": "Half moons",
}
IMAGES = {"test": "test", "valid": "validation"}
COLORS = ("#1f6fb4", "#d1571b", "#3b8f4a", "#7a4fa3")


def draw_learning_curves(
    histories: Mapping[str, Mapping[str, Sequence[tuple[int, float]]]],
    steps_per_epoch: int,
    path: Path,
    *,
    quantity: str = "elbo",
    measured: str = "test",
    data: str = "dynamic",
) -> None:
    """Training and test ELBO against the epoch, one colour a model.

    Args:
        histories: the results of :func:`~fastvae.recipes.training.history.curves_of`, by model name.
        steps_per_epoch: to turn steps into epochs.
        path: the PNG file.
        quantity: ``"elbo"``, ``"log_p"`` or ``"error"``, which ends the names of the curves.
        measured: ``"test"`` or ``"valid"``, which begins the name of the second.
        data: the name of the data in the settings of the training, or a name for the title.
    """
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    shown = []
    for color, (name, history) in zip(COLORS, histories.items(), strict=False):
        # The training ELBO is the mean over an epoch: it belongs to the epoch's middle.
        train = [((step + 1) / steps_per_epoch - 0.5, value) for step, value in history[f"train_{quantity}"]]
        test = [((step + 1) / steps_per_epoch, value) for step, value in history[f"{measured}_{quantity}"]]
        # A line through one point cannot be seen.
        marker = "o" if len(test) == 1 else None
        style: dict[str, Any] = {"color": color, "marker": marker, "markersize": 4}
        axes.plot(*zip(*train, strict=True), **style, linewidth=1, linestyle=":", label=f"{name}, training")
        axes.plot(*zip(*test, strict=True), **style, linewidth=1.8, label=f"{name}, {IMAGES[measured]}")
        shown += [value for epoch, value in test if epoch > 0.1 * test[-1][0]]
        # The legend names both lines, and so both end within the axis.
        shown.append(train[-1][1])
    low, high = min(shown), max(shown)
    span = max(high - low, 1.0)
    axes.set_ylim(low - 0.03 * span, high + 0.15 * span)
    axes.set_xlim(left=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("epoch")
    short, unit, title = QUANTITIES[quantity]
    axes.set_ylabel(f"{short} ({unit})")
    axes.set_title(f"{DATA.get(data, data)}: {title}", fontsize=11)
    axes.grid(axis="y", linewidth=0.4, alpha=0.5)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="best" if quantity == "error" else "lower right")
    save(figure, path)
