"""Points of two half moons in the plane, with a class each: data that are no images."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .labelled import LabelledImages, LabelledParts, check_labels, draw_labels

__all__ = ["MOONS_NOISE", "LabelledPoints", "make_moons"]

# The standard deviation of a point's distance from its half circle.
MOONS_NOISE = 0.1
# Where the labels of a moon are, equally many in each part: shares of the way along its half circle.
PARTS = ((0.05, 0.2), (0.425, 0.575), (0.8, 0.95))
# The test's grid: points along a half circle, and how many standard deviations they are beside it.
ALONG, BESIDE = 100, (-2.0, -1.0, 0.0, 1.0, 2.0)


@dataclass(frozen=True)
class LabelledPoints(LabelledImages):
    """Points in place of images.

    Args:
        images: float32, ``(N, D)``.
        labels: as of :class:`~fastvae.recipes.data.labelled.LabelledImages`.
        classes: how many there are.
        source: where the points came from.
        parts: the number of the part of its class that each point is in, ``(N,)``, or -1; None for classes without
            parts.
    """

    parts: np.ndarray | None = None

    def draw_labelled(self, count: int, seed: int) -> np.ndarray:
        """As of images, and equally many in each part of a class where ``count`` is a multiple of the parts."""
        groups = 0 if self.parts is None else self.classes * (int(self.parts.max()) + 1)
        if self.parts is None or count % groups:
            return super().draw_labelled(count, seed)
        rows = np.flatnonzero(self.parts >= 0)
        return rows[draw_labels((self.parts * self.classes + self.labels)[rows], count, seed, groups)]

    def __post_init__(self) -> None:
        if self.images.dtype != np.float32:
            raise TypeError(f"images must be float32, got {self.images.dtype}")
        if self.images.ndim != 2:
            raise ValueError(f"images must have 2 dimensions, got shape {self.images.shape}")
        object.__setattr__(self, "labels", check_labels(self.labels, self.classes))
        if self.labels.shape != (len(self.images),):
            raise ValueError(f"labels must have shape ({len(self.images)},), got {self.labels.shape}")


def bend(angle: np.ndarray, distance: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Points at angles of two half circles of radius 1, at a distance outside of them; their centre is the origin."""
    radius = 1.0 + distance
    x, y = radius * np.cos(angle), radius * np.sin(angle)
    lower = labels == 1
    points = np.stack([np.where(lower, 1.0 - x, x) - 0.5, np.where(lower, 0.5 - y, y) - 0.25], 1)
    return points.astype(np.float32)


def make_moons(count: int = 1000, *, noise: float = MOONS_NOISE, seed: int = 0) -> LabelledParts:
    """Two half moons that reach into each other.

    Args:
        count: training points, an even number.
        noise: standard deviation of a point's distance from its half circle.
        seed: of the training points.

    Returns:
        The pair ``(train, test)``. Near both ends and in the middle of a moon equally many points have a label, if
        their number allows it. The test points are a grid over both moons, up to twice ``noise`` beside the half
        circles.

    Raises:
        ValueError: ``count`` is odd or below 2, or ``noise`` is negative.
    """
    if count < 2 or count % 2:
        raise ValueError(f"count must be even and >= 2, got {count}")
    if not noise >= 0:
        raise ValueError(f"noise must be >= 0, got {noise}")
    # numpy freezes the stream of RandomState.
    random, labels = np.random.RandomState(seed), np.arange(count) % 2
    angles = random.uniform(0.0, np.pi, count)
    train = bend(angles, noise * random.standard_normal(count), labels)
    parts = np.full(count, -1)
    for part, (begin, end) in enumerate(PARTS):
        parts[(begin * np.pi <= angles) & (angles < end * np.pi)] = part
    grid = np.meshgrid(np.linspace(0.0, np.pi, ALONG), noise * np.array(BESIDE), np.arange(2), indexing="ij")
    angle, distance, of_grid = (part.ravel() for part in grid)
    test = bend(angle, distance, of_grid)
    source = f"two half moons of {count} points, noise {noise:g}"
    return LabelledParts(LabelledPoints(train, labels, 2, source, parts), LabelledPoints(test, of_grid, 2, source))
