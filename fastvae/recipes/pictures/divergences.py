"""Parts of the KL divergence, as PNG files: of layers over epochs, and of single units."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from ..evaluation.features import LEAST
from ..evaluation.units import Units
from .grids import save

__all__ = ["draw_kl_terms", "draw_units"]

COLORS = ("#1f6fb4", "#d1571b", "#3b8f4a", "#7a4fa3", "#a8832a", "#4b5a66")
DEAD = "#c9ced4"
# More layers share one scale of colours. A legend names so many.
MOST_LAYERS, MOST_NAMED = len(COLORS), 12
# The lowest divergence that a shade differs for, nats.
FAINTEST = 1e-2


def draw_kl_terms(
    terms: Mapping[str, Sequence[tuple[int, float]]],
    steps_per_epoch: int,
    path: Path,
    *,
    images: str = "test images",
    layer: str = "layer",
) -> None:
    """The KL divergence of each layer of latents against the epoch, on a logarithmic scale where there are several.

    Args:
        terms: (step, nats) pairs by the name of the term, from the lowest layer up.
        steps_per_epoch: to turn steps into epochs.
        path: the PNG file.
        images: what they were measured on.
        layer: what a layer is called.
    """
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    for i, (name, points) in enumerate(terms.items()):
        epochs, values = zip(*(((step + 1) / steps_per_epoch, value) for step, value in points), strict=True)
        label = f"one {layer}" if name.endswith("kl") else f"{layer} {name.rpartition('kl')[2]}"
        # A line through one point cannot be seen.
        style: dict[str, Any] = {"marker": "o" if len(points) == 1 else None, "markersize": 4, "linewidth": 1.8}
        axes.plot(epochs, values, color=color_of(i, len(terms)), label=label, **style)
    # Layers differ by orders of magnitude; estimates of an unused one may fall below 0.
    if len(terms) > 1:
        axes.set_yscale("symlog", linthresh=0.1)
        axes.yaxis.set_major_formatter("{x:g}")
        handles = axes.get_lines()[:: -(-len(terms) // MOST_NAMED)]
        axes.legend(handles=handles, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5), reverse=True)
    axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]) if len(terms) == 1 else None)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlim(left=0)
    axes.set_xlabel("epoch")
    axes.set_ylabel("KL divergence (nats)")
    of_layers = f" of the latents of each {layer}" if len(terms) > 1 else ""
    axes.set_title(f"KL divergence{of_layers}, {images}", fontsize=11)
    axes.grid(axis="y", linewidth=0.4, alpha=0.5)
    axes.spines[["top", "right"]].set_visible(False)
    save(figure, path)


def color_of(index: int, layers: int) -> Any:
    """The colour of a layer, from below."""
    return COLORS[index] if layers <= MOST_LAYERS else colormaps["viridis"](0.95 * index / (layers - 1))


def draw_units(units: Units, path: Path, *, layer: str = "layer") -> None:
    """The KL part of every unit of each layer of latents, largest first; units that are not active are grey.

    Up to six layers have a panel each, more are the rows of one map.

    Args:
        units: of a model that knows its units.
        path: the PNG file.
        layer: what a layer is called.
    """
    draw = draw_panels if len(units.number) <= MOST_LAYERS else draw_map
    draw(units, path, layer)


def sort_units(units: Units, index: int) -> tuple[list[float], list[bool]]:
    """KL parts of the units of a layer, largest first, and whether each unit is active."""
    order = sorted(range(units.number[index]), key=lambda unit: -units.kl[index][unit])
    active = [units.mean_variance[index][unit] > LEAST**2 for unit in order]
    return [units.kl[index][unit] for unit in order], active


def draw_panels(units: Units, path: Path, layer: str) -> None:
    layers = len(units.number)
    figure = Figure(figsize=(6.4, 1.5 + 1.3 * layers), layout="constrained")
    rows: Any = figure.subplots(layers, 1, squeeze=False)[::-1, 0]
    for i, axes in enumerate(rows):
        heights, active = sort_units(units, i)
        colors = [color_of(i, layers) if on else DEAD for on in active]
        axes.bar(range(len(heights)), heights, width=0.8 if len(heights) <= 100 else 1.0, color=colors)
        axes.set_xlim(-0.8, len(heights) - 0.2)
        axes.set_xticks([])
        axes.spines[["top", "right"]].set_visible(False)
        axes.axhline(0.0, color="black", linewidth=0.6)
        name = f"{layer} {i + 1}: " if layers > 1 else ""
        axes.set_title(f"{name}{units.active[i]} of {units.number[i]} units active", fontsize=10, loc="right")
    dead = Line2D([], [], color=DEAD, linewidth=6, label="not active")
    if sum(units.active) < sum(units.number):
        rows[-1].legend(handles=[dead], frameon=False, loc="upper left", bbox_to_anchor=(0.0, 1.25), fontsize=9)
    rows[0].set_xlabel("units, by their part in the divergence")
    figure.supylabel("KL divergence (nats)", fontsize=10)
    save(figure, path)


def draw_map(units: Units, path: Path, layer: str) -> None:
    layers, most = len(units.number), max(units.number)
    shades = np.full((layers, most), np.nan)
    for i in range(layers):
        heights, active = sort_units(units, i)
        shades[i, : len(heights)] = np.where(active, heights, np.nan)
    figure = Figure(figsize=(6.4, 2.0 + min(0.16 * layers, 5.0)), layout="constrained")
    axes = figure.subplots()
    axes.set_facecolor(DEAD)
    # Units differ by orders of magnitude.
    scale = LogNorm(FAINTEST, max(float(np.nanmax(shades, initial=1.0)), 1.0), clip=True)
    shown = axes.imshow(shades, aspect="auto", interpolation="nearest", cmap="viridis", norm=scale)
    figure.colorbar(shown, ax=axes, label="KL divergence (nats)", pad=0.02, format="{x:g}")
    numbers = range(0, layers, -(-layers // 16))
    axes.set_yticks(numbers, [str(i + 1) for i in numbers])
    counts = axes.secondary_yaxis("right")
    counts.set_yticks(numbers, [str(units.active[i]) for i in numbers])
    counts.set_ylabel("active units")
    axes.set(xlabel="units, by their part in the divergence; grey: not active", ylabel=layer)
    axes.set_title(f"{sum(units.active)} of {sum(units.number)} units active", fontsize=11)
    axes.set_xticks([])
    save(figure, path)
