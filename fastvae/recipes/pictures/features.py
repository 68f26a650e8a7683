"""Features by class, as PNG files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from .grids import save

__all__ = ["draw_features", "find_components"]


def find_components(features: np.ndarray, count: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """The principal components of rows ``(N, F)``, ``(N, count)``, and the share of the variance of each.

    Rows of fewer columns have zeros for the rest.
    """
    centred = features - features.mean(0)
    left, values, _ = np.linalg.svd(centred, full_matrices=False)
    components, shares = np.zeros((len(features), count)), np.zeros(count)
    kept = min(count, len(values))
    components[:, :kept] = left[:, :kept] * values[:kept]
    shares[:kept] = values[:kept] ** 2 / max(float((values**2).sum()), 1e-30)
    return components, shares


def draw_features(features: np.ndarray, labels: np.ndarray, path: Path, *, title: str, most: int = 5000) -> None:
    """The first two principal components of features, a colour for each class.

    Args:
        features: ``(N, F)``.
        labels: classes, ``(N,)``.
        path: the PNG file.
        title: of the picture.
        most: points that are drawn, evenly spread.
    """
    rows = np.arange(min(most, len(features))) * len(features) // min(most, len(features))
    components, shares = find_components(features[rows].astype(np.float64))
    figure = Figure(figsize=(6.4, 5.6), layout="constrained")
    axes = figure.subplots()
    first, second = components.T
    drawn = axes.scatter(first, second, s=4, c=labels[rows], cmap="tab10", vmin=-0.5, vmax=9.5, linewidths=0)
    axes.legend(
        *drawn.legend_elements(num=sorted(set(labels[rows].tolist()))),
        frameon=False,
        loc="center left",
        bbox_to_anchor=(1.0, 0.5),
    )
    axes.set_xlabel(f"first component ({100 * shares[0]:.0f} % of the variance)")
    axes.set_ylabel(f"second component ({100 * shares[1]:.0f} %)")
    axes.set_title(title, fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    save(figure, path)
