"""Pictures of a trained VAE, as PNG files."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from .files import replacing
from .vae import LatentVariableModel

__all__ = ["draw_learning_curves", "draw_manifold", "draw_reconstructions", "draw_samples"]

QUANTITIES = {"elbo": ("ELBO", "evidence lower bound"), "log_p": ("log p(x)", "log-likelihood")}
IMAGES = {"test": "test", "valid": "validation"}
COLORS = ("#1f6fb4", "#d1571b", "#3b8f4a", "#7a4fa3")


def tile(images: Tensor, rows: int, columns: int, gap: int = 2) -> Tensor:
    """``(rows * columns, pixels)`` intensities as one picture, with blank gaps between the images."""
    side = math.isqrt(images.shape[-1])
    padded = torch.nn.functional.pad(images.reshape(rows, columns, side, side), (0, gap, 0, gap))
    picture = padded.permute(0, 2, 1, 3).reshape(rows * (side + gap), columns * (side + gap))
    return picture[: picture.shape[0] - gap, : picture.shape[1] - gap]


def show(axes: Axes, picture: Tensor) -> None:
    axes.imshow(picture.cpu().numpy(), cmap="gray_r", vmin=0, vmax=1, interpolation="nearest")
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)


def save(figure: Figure, path: Path) -> None:
    with replacing(path) as file:
        figure.savefig(file, format="png", dpi=150, facecolor="white")


@torch.no_grad()
def draw_samples(
    models: Mapping[str, LatentVariableModel], path: Path, *, rows: int = 8, columns: int = 8, seed: int = 0
) -> None:
    """Means of p(x | z) for z drawn from the prior, the same z for each model."""
    figure = Figure(figsize=(3.6 * len(models), 3.9), layout="constrained")
    for axes, (name, model) in zip(figure.subplots(1, len(models), squeeze=False)[0], models.items(), strict=True):
        generator = torch.Generator().manual_seed(seed)
        z = torch.randn(rows * columns, model.config.latent_features, generator=generator)
        show(axes, tile(model.decode(z).sigmoid(), rows, columns))
        axes.set_title(f"{name} posterior", fontsize=10)
    figure.suptitle("Samples: mean of p(x | z), z ~ N(0, I)", fontsize=11)
    save(figure, path)


@torch.no_grad()
def draw_reconstructions(models: Mapping[str, LatentVariableModel], x: Tensor, path: Path, *, seed: int = 0) -> None:
    """Binary images ``(N, pixels)`` above what each model decodes from one sample of their posterior."""
    lines = {"test image": x}
    for name, model in models.items():
        z, _ = model.encode(x).rsample_with_log_prob(generator=torch.Generator().manual_seed(seed))
        lines[f"{name}\nposterior"] = model.decode(z).sigmoid()
    figure = Figure(figsize=(0.62 * len(x) + 0.9, 0.72 * len(lines) + 0.4), layout="constrained")
    for axes, (name, images) in zip(figure.subplots(len(lines), 1), lines.items(), strict=True):
        show(axes, tile(images, 1, len(x)))
        axes.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=9)
    figure.suptitle("Reconstructions: mean of p(x | z), z ~ q(z | x)", fontsize=11)
    save(figure, path)


@torch.no_grad()
def draw_manifold(model: LatentVariableModel, path: Path, *, size: int = 20) -> None:
    r"""Means of p(x | z) over a latent plane.

    .. math::
        z = \Phi^{-1}\left(\frac{i + 1/2}{n}\right) \quad \text{on both axes}

    Args:
        model: a model with two latent dimensions.
        path: the PNG file.
        size: n, images along an axis.

    Raises:
        ValueError: the latent space of ``model`` has not two dimensions.
    """
    if model.config.latent_features != 2:
        raise ValueError(f"model must have 2 latent features, got {model.config.latent_features}")
    quantiles = (torch.arange(size) + 0.5) / size
    grid = torch.special.ndtri(quantiles)
    # Rows run downwards in a picture, z2 upwards.
    z = torch.stack(torch.meshgrid(grid.flip(0), grid, indexing="ij")[::-1], -1).reshape(-1, 2)
    picture = tile(model.decode(z).sigmoid(), size, size, gap=0)
    figure = Figure(figsize=(6.2, 6.4), layout="constrained")
    axes = figure.subplots()
    axes.imshow(picture.numpy(), cmap="gray_r", vmin=0, vmax=1, extent=(0, 1, 0, 1), interpolation="nearest")
    ticks = torch.tensor([0.05, 0.25, 0.5, 0.75, 0.95])
    labels = [f"{z:.2g}".replace("-", "\u2212") for z in torch.special.ndtri(ticks).tolist()]
    axes.set_xticks(ticks.tolist(), labels)
    axes.set_yticks(ticks.tolist(), labels)
    axes.set_xlabel("$z_1$")
    axes.set_ylabel("$z_2$")
    axes.set_title("Mean of p(x | z) over the latent plane, at quantiles of the prior", fontsize=11)
    save(figure, path)


def draw_learning_curves(
    histories: Mapping[str, Mapping[str, Sequence[tuple[int, float]]]],
    steps_per_epoch: int,
    path: Path,
    *,
    quantity: str = "elbo",
    measured: str = "test",
) -> None:
    """Training and test ELBO against the epoch, one colour a model.

    Args:
        histories: what :func:`~fastvae.recipes.training.read_history` returned, by model name.
        steps_per_epoch: to turn steps into epochs.
        path: the PNG file.
        quantity: ``"elbo"`` or ``"log_p"``, which ends the names of the curves.
        measured: ``"test"`` or ``"valid"``, which begins the name of the second.
    """
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    shown = []
    for color, (name, history) in zip(COLORS, histories.items(), strict=False):
        # The training ELBO is the mean over an epoch: its middle is where it belongs.
        train = [((step + 1) / steps_per_epoch - 0.5, value) for step, value in history[f"train_{quantity}"]]
        test = [((step + 1) / steps_per_epoch, value) for step, value in history[f"{measured}_{quantity}"]]
        # A line through one point cannot be seen.
        marker = "o" if len(test) == 1 else None
        style: dict[str, Any] = {"color": color, "marker": marker, "markersize": 4}
        axes.plot(*zip(*train, strict=True), **style, linewidth=1, linestyle=":", label=f"{name}, training")
        axes.plot(*zip(*test, strict=True), **style, linewidth=1.8, label=f"{name}, {IMAGES[measured]}")
        shown += [value for epoch, value in test if epoch > 0.1 * test[-1][0]]
    low, high = min(shown), max(shown)
    span = max(high - low, 1.0)
    axes.set_ylim(low - 0.03 * span, high + 0.15 * span)
    axes.set_xlim(left=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("epoch")
    short, title = QUANTITIES[quantity]
    axes.set_ylabel(f"{short} (nats)")
    axes.set_title(f"Binarised MNIST: {title}", fontsize=11)
    axes.grid(axis="y", linewidth=0.4, alpha=0.5)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower right")
    save(figure, path)
