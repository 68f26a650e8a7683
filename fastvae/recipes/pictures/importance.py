"""What many importance samples change, as PNG files."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from ..evaluation.bounds import standard_error
from .grids import save

__all__ = ["bounds_by_samples", "draw_bounds_by_samples"]

COLOR = "#1f6fb4"


def bounds_by_samples(log_w: Tensor) -> dict[int, Tensor]:
    """The importance-weighted bound of 1, 2, 4, ... of K samples for each image, a mean over groups of samples.

    Args:
        log_w: log-weights ``(K, N)``, nats; K a power of two.

    Returns:
        Bounds ``(N,)`` by the number of samples.
    """
    sizes = [2**power for power in range(len(log_w).bit_length())]
    return {size: (log_w.unflatten(0, (-1, size)).logsumexp(1) - math.log(size)).mean(0) for size in sizes}


@torch.no_grad()
def draw_bounds_by_samples(
    name: str, model: Any, x: Tensor, path: Path, *, samples: int = 512, chunk: int = 64, seed: int = 0
) -> None:
    """The bound against the number K of samples, and beside it how many of K the weights' entropy is worth.

    Args:
        name: of the model.
        model: its ``encode`` and ``log_weights`` are called.
        x: binary images ``(N, pixels)``.
        path: the PNG file.
        samples: the largest K, a power of two.
        chunk: samples at a time.
        seed: of the noise.
    """
    generator, posterior = torch.Generator().manual_seed(seed), model.encode(x)
    drawn = [model.log_weights(x, posterior, chunk, generator=generator) for _ in range(-(-samples // chunk))]
    log_w = torch.cat(drawn)[:samples].double()
    bounds, perplexity = bounds_by_samples(log_w), {}
    for size in bounds:
        weights = log_w.unflatten(0, (-1, size)).log_softmax(1)
        perplexity[size] = (-(weights.exp() * weights).sum(1)).exp().mean()
    figure = Figure(figsize=(9.6, 4.0), layout="constrained")
    left, right = figure.subplots(1, 2)
    means, errors = zip(*((float(bound.mean()), standard_error(bound)) for bound in bounds.values()), strict=True)
    left.errorbar(list(bounds), means, yerr=errors, color=COLOR, marker="o", markersize=4, capsize=3, linewidth=1.6)
    left.set_ylabel("bound (nats)")
    left.set_title(f"Bound of K samples, {len(x)} test images ± standard error", fontsize=11)
    right.plot(list(bounds), [float(value) for value in perplexity.values()], color=COLOR, marker="o", markersize=4)
    right.plot([1, samples], [1, samples], color="#8b9199", linewidth=0.8, linestyle="--", label="equal weights")
    right.set_yscale("log", base=2)
    right.set_ylabel("exp of the weights' entropy")
    right.set_title("Samples that the weights' entropy is worth", fontsize=11)
    right.legend(frameon=False)
    for axes in (left, right):
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter("{x:g}")
        axes.set_xlabel("samples K")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", linewidth=0.4, alpha=0.5)
    right.yaxis.set_major_formatter("{x:g}")
    figure.suptitle(name, fontsize=11)
    save(figure, path)
