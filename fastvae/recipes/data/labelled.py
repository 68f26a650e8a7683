"""Images with labels: MNIST, and the digits of scikit-learn; and which of the labels a run may see."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ..errors import RecipeError
from .mnist import Mnist, load_mnist

__all__ = ["LABELLED", "LabelledImages", "LabelledParts", "draw_labels", "load_labelled", "split_labelled"]

# The names that load_labelled takes.
LABELLED = ("mnist", "digits")
DIGITS_SHA256 = "a19cb3d96bba7deace8ee5a513a6eb7bad0403d528f00bf4d351b6a7a55baa91"
# Training images of each class, and the seed of their choice.
DIGITS_TRAINING, DIGITS_SEED = 90, 0


@dataclass(frozen=True)
class LabelledImages:
    """Images, a label for each, and the number of classes.

    Args:
        images: uint8, ``(N, height, width)``, with ink = 255, or ``(N, colours, height, width)``. An intensity is a
            pixel / 255.
        labels: whole numbers ``(N,)`` of 0 ... ``classes`` - 1; they become int64.
        classes: how many there are.
        source: where the images came from.

    Raises:
        TypeError: ``images`` are not uint8, or ``labels`` are no whole numbers.
        ValueError: a label is outside 0 ... ``classes`` - 1, or the numbers of images and labels differ.
    """

    images: np.ndarray
    labels: np.ndarray
    classes: int
    source: str = ""

    def __post_init__(self) -> None:
        if self.images.dtype != np.uint8:
            raise TypeError(f"images must be uint8, got {self.images.dtype}")
        if self.images.ndim not in (3, 4):
            raise ValueError(f"images must have 3 or 4 dimensions, got shape {self.images.shape}")
        object.__setattr__(self, "labels", check_labels(self.labels, self.classes))
        if self.labels.shape != (len(self.images),):
            raise ValueError(f"labels must have shape ({len(self.images)},), got {self.labels.shape}")

    def __len__(self) -> int:
        return len(self.images)

    @property
    def pixels(self) -> int:
        """Numbers of one image."""
        return int(np.prod(self.images.shape[1:]))

    def draw_labelled(self, count: int, seed: int) -> np.ndarray:
        """The rows of the images whose labels a run may see: :func:`draw_labels`."""
        return draw_labels(self.labels, count, seed, self.classes)


class LabelledParts(NamedTuple):
    """Training and test images with labels. It has the attributes of :class:`~fastvae.recipes.data.mnist.Mnist`."""

    train: LabelledImages
    test: LabelledImages

    @property
    def x_train(self) -> np.ndarray:
        return self.train.images

    @property
    def y_train(self) -> np.ndarray:
        return self.train.labels

    @property
    def x_test(self) -> np.ndarray:
        return self.test.images

    @property
    def y_test(self) -> np.ndarray:
        return self.test.labels

    @property
    def classes(self) -> int:
        return self.train.classes

    @property
    def source(self) -> str:
        return self.train.source


def check_labels(labels: np.ndarray, classes: int) -> np.ndarray:
    """Labels as int64.

    Raises:
        TypeError: they are no whole numbers.
        ValueError: one is outside 0 ... ``classes`` - 1, or ``classes`` is below 1.
    """
    if classes < 1:
        raise ValueError(f"classes must be >= 1, got {classes}")
    labels = np.asarray(labels)
    if not np.issubdtype(labels.dtype, np.integer):
        raise TypeError(f"labels must be whole numbers, got {labels.dtype}")
    for label in labels[(labels < 0) | (labels >= classes)][:1]:
        raise ValueError(f"labels must be 0 ... {classes - 1}, got {label}")
    return labels.astype(np.int64)


def load_labelled(name: str, *, progress: bool = True) -> LabelledParts:
    """Training and test images with labels.

    Args:
        name: ``"mnist"``: 60 000 and 10 000 images of 28 x 28, see :func:`~fastvae.recipes.data.mnist.load_mnist`;
            ``"digits"``: the 1797 images of 8 x 8 that scikit-learn carries. 90 of each class, always the same, are for
            training. Their levels of ink, 0 ... 16, become 0 ... 255.
        progress: whether to show a progress bar during a download.

    Returns:
        The pair ``(train, test)``.

    Raises:
        RecipeError: the images cannot be had.
        ValueError: there is no such name.
    """
    if name not in LABELLED:
        raise ValueError(f"name must be one of {', '.join(LABELLED)}, got {name!r}")
    return load_digits() if name == "digits" else split_labelled(load_mnist(progress=progress))


def split_labelled(mnist: Mnist, classes: int = 10) -> LabelledParts:
    """MNIST as a pair of images with labels."""
    train = LabelledImages(mnist.x_train, mnist.y_train, classes, mnist.source)
    return LabelledParts(train, LabelledImages(mnist.x_test, mnist.y_test, classes, mnist.source))


def load_digits() -> LabelledParts:
    try:
        from sklearn import datasets
    except ImportError:
        raise RecipeError('the digits need scikit-learn: pip install "fastvae-kernels[train]"') from None
    found = datasets.load_digits()
    images = np.rint(found.images * (255 / 16)).astype(np.uint8)
    labels = found.target.astype(np.int64)
    digest = hashlib.sha256(images.tobytes() + labels.astype(np.uint8).tobytes()).hexdigest()
    if digest != DIGITS_SHA256:
        raise RecipeError(f"scikit-learn's digits have SHA-256 {digest}, expected {DIGITS_SHA256}: reinstall it")
    train = np.zeros(len(images), bool)
    train[draw_labels(labels, 10 * DIGITS_TRAINING, DIGITS_SEED, 10)] = True
    source = "scikit-learn's digits"
    return LabelledParts(*(LabelledImages(images[part], labels[part], 10, source) for part in (train, ~train)))


def draw_labels(labels: np.ndarray, count: int, seed: int, classes: int) -> np.ndarray:
    """The rows of the images whose labels a run may see: equally many of each class.

    With the same seed, a smaller count has a part of the rows of a larger one.

    Args:
        labels: of all training images, ``(N,)``.
        count: how many labels; a multiple of ``classes``.
        seed: of the draw, 0 ... 2^32 - 1.
        classes: how many there are.

    Returns:
        Rows, int64 ``(count,)``, class by class.

    Raises:
        ValueError: ``count`` is no such multiple, a class has too few images, or a label is outside
            0 ... ``classes`` - 1.

    Example:
        >>> labels = np.array([0, 1, 0, 1, 1, 0])
        >>> labels[draw_labels(labels, 4, seed=0, classes=2)].tolist()
        [0, 0, 1, 1]
    """
    labels = check_labels(labels, classes)
    if count < classes or count % classes:
        raise ValueError(f"labels must be a multiple of the {classes} classes and above 0, got {count}")
    # numpy freezes the stream of RandomState.
    random, chosen = np.random.RandomState(seed), []
    for label in range(classes):
        rows = np.flatnonzero(labels == label)
        if len(rows) < count // classes:
            raise ValueError(
                f"labels must leave {count // classes} images of each class, as {count} are asked for; class {label} "
                f"has {len(rows)}"
            )
        chosen.append(random.permutation(rows)[: count // classes])
    return np.concatenate(chosen)
