"""Analogies: the style of an image under its label, decoded with every class; and how well that works."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import RecipeError

__all__ = ["AnalogyFigures", "check_analogies", "classify_by_neighbours", "measure_analogies", "measure_shapes"]

# Distances are computed for so many images at a time.
ROWS = 500


@dataclass(frozen=True)
class AnalogyFigures:
    """How far the class of a decoded image is the one asked for, and its style that of its source.

    Args:
        images: sources; each is decoded with every class.
        asked_label: share of the decoded images that the classifier gives the class asked for, in %.
        classifier_error: of the classifier on the sources, in %.
        slant: correlation of the slants of decoded images and sources, the mean over the classes.
        ink: correlation of their ink, the mean over the classes.
    """

    images: int
    asked_label: float
    classifier_error: float
    slant: float
    ink: float


def check_analogies(name: str, model: Any) -> None:
    """Checks that a model of the system ``name`` tells class and style apart.

    Raises:
        RecipeError: it does not.
    """
    if not hasattr(model, "transfer"):
        raise RecipeError(f"{name} has no classes to decode a style with; choose a checkpoint of m2 or cvae")


@torch.no_grad()
def measure_analogies(
    model: Any, x: Tensor, labels: Tensor, known: Tensor, known_labels: Tensor, *, neighbours: int = 3
) -> AnalogyFigures:
    """Decodes every image with every class, and judges by the nearest of the known images.

    Args:
        model: ``transfer(x, labels)`` returns ``(N, C, pixels)``.
        x: images ``(N, pixels)``, N >= 2.
        labels: their classes ``(N,)``.
        known: images that the classifier knows, ``(K, pixels)``.
        known_labels: their classes ``(K,)``.
        neighbours: how many of them vote.
    """
    decoded = torch.cat(
        [model.transfer(rows, own) for rows, own in zip(x.split(ROWS), labels.split(ROWS), strict=True)]
    )
    classes = decoded.shape[1]
    found = classify_by_neighbours(decoded.flatten(0, 1), known, known_labels, neighbours)
    asked = torch.arange(classes, device=found.device).repeat(len(x))
    own = classify_by_neighbours(x, known, known_labels, neighbours)
    sources, ours = measure_shapes(x), measure_shapes(decoded)
    slant, ink = (correlate(source, shape) for source, shape in zip(sources, ours, strict=True))
    return AnalogyFigures(
        images=len(x),
        asked_label=100.0 * float((found == asked).double().mean()),
        classifier_error=100.0 * float((own != labels).double().mean()),
        slant=slant,
        ink=ink,
    )


def classify_by_neighbours(x: Tensor, known: Tensor, known_labels: Tensor, neighbours: int = 3) -> Tensor:
    """The class ``(N,)`` that most of the nearest known images have; of equally many, that of the nearest one."""
    found = []
    for rows in x.split(ROWS):
        nearest = torch.cdist(rows, known).topk(min(neighbours, len(known)), largest=False).indices
        votes = known_labels[nearest]
        # An image's own vote counts, and a nearer one's a little more.
        counts = (votes[:, :, None] == votes[:, None, :]).double().sum(-1)
        counts -= 1e-3 * torch.arange(votes.shape[1], device=votes.device)
        found.append(votes.gather(1, counts.argmax(1, keepdim=True))[:, 0])
    return torch.cat(found)


def measure_shapes(x: Tensor) -> tuple[Tensor, Tensor]:
    """Slant and ink ``(*)`` of square images ``(*, pixels)``.

    The slant is the covariance of row and column, weighted by ink, over the variance of the row: how far a stroke
    moves sideways from one row to the next.
    """
    side = round(x.shape[-1] ** 0.5)
    images = x.double().unflatten(-1, (side, side))
    ink = images.sum((-2, -1))
    place = torch.arange(side, dtype=images.dtype, device=images.device)
    weights = images / ink.clamp_min(1e-9)[..., None, None]
    of_rows, of_columns = weights.sum(-1), weights.sum(-2)
    row, column = (of_rows * place).sum(-1), (of_columns * place).sum(-1)
    covariance = (weights * place[:, None] * place).sum((-2, -1)) - row * column
    variance = (of_rows * place.square()).sum(-1) - row.square()
    return covariance / variance.clamp_min(1e-9), ink


def correlate(source: Tensor, decoded: Tensor) -> float:
    """The mean over classes of the correlation of ``(N,)`` with each column of ``(N, C)``."""
    source, decoded = source - source.mean(), decoded - decoded.mean(0)
    lengths = source.norm() * decoded.norm(dim=0)
    return float(((source[:, None] * decoded).sum(0) / lengths.clamp_min(1e-12)).mean())
