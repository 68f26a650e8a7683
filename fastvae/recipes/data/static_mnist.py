"""Binary images in three parts: static binarised MNIST, verified, or MNIST to be binarised anew for every batch."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ..errors import RecipeError
from .array_files import read_npz
from .mnist import Mnist, cache_folder, load_mnist

__all__ = ["DATA_KINDS", "BinaryImages", "load_binary_images", "load_static_mnist", "split_mnist"]

DATA_KINDS = ("static", "dynamic")
FILE = "binarized_mnist.npz"
PIXELS = 784

# Of the bits, one byte each, row by row.
BITS_SHA256 = {
    "train": "43490d4d6ac9002727af4426d8748609fdb7e4094fa65ad8d681ea60082a7a5a",
    "valid": "069b4f0beb389b776478c3e872b4df71c95ac4be64d7cbe6d32e24ebac8e6d5e",
    "test": "ca0294c3b8d984c7a1dc891015a8eea6f37bae59a34e35ea0fc8c47110a8dd86",
}


@dataclass(frozen=True)
class BinaryImages:
    """Images, uint8 ``(N, 28, 28)`` with ink = 255, that training binarises batch by batch, and where they came from.

    A pixel p becomes 1 with probability p / 255. Static images have the pixels 0 and 255, so they do not change.
    The labels, uint8 ``(N,)``, of static images are not known.
    """

    x_train: np.ndarray
    x_valid: np.ndarray
    x_test: np.ndarray
    source: str
    y_train: np.ndarray | None = None
    y_valid: np.ndarray | None = None
    y_test: np.ndarray | None = None

    def with_validation(self) -> BinaryImages:
        """The same images, with the validation images among the training images, too."""
        joint = replace(self, x_train=np.concatenate([self.x_train, self.x_valid]))
        if self.y_train is None or self.y_valid is None:
            return joint
        return replace(joint, y_train=np.concatenate([self.y_train, self.y_valid]))


def load_binary_images(kind: str, *, progress: bool = True) -> BinaryImages:
    """The images of a recipe.

    Args:
        kind: ``"static"``, :func:`load_static_mnist`, or ``"dynamic"``, :func:`split_mnist`.
        progress: whether to show a progress bar during a download.

    Raises:
        RecipeError: they cannot be had.
        ValueError: ``kind`` is neither.
    """
    if kind not in DATA_KINDS:
        raise ValueError(f"kind must be one of {', '.join(DATA_KINDS)}, got {kind!r}")
    return load_static_mnist() if kind == "static" else split_mnist(load_mnist(progress=progress))


def split_mnist(mnist: Mnist) -> BinaryImages:
    """MNIST. The last sixth of its training images is for validation: 10 000 of 60 000."""
    first = len(mnist.x_train) * 5 // 6
    x, y = mnist.x_train, mnist.y_train
    return BinaryImages(x[:first], x[first:], mnist.x_test, mnist.source, y[:first], y[first:], mnist.y_test)


def load_static_mnist() -> BinaryImages:
    """Static binarised MNIST: one binarisation for all time, 50 000, 10 000 and 10 000 images.

    It is read from ``binarized_mnist.npz`` in the folder ``$FASTVAE_DATA`` or in the user's cache: arrays ``train``,
    ``valid`` and ``test``, whose rows are ``np.packbits`` of 784 bits.

    Raises:
        RecipeError: there is no such file, or it holds anything else.

    Reference:
        *The Neural Autoregressive Distribution Estimator* (Larochelle, Murray, 2011).
    """
    given, cache = os.environ.get("FASTVAE_DATA"), cache_folder()
    if given and not Path(given).is_dir():
        raise RecipeError(f"FASTVAE_DATA must name a folder; {given!r} is none")
    for folder in [Path(given), cache] if given else [cache]:
        if (folder / FILE).exists():
            return read_static(folder / FILE)
    raise RecipeError(
        f"static binarised MNIST was not found: there is no {FILE} in {cache}"
        + (f" and none in $FASTVAE_DATA, {given}" if given else " ($FASTVAE_DATA is not set)")
        + f". What to do: put {FILE} into {given or cache}: arrays train, valid and test of Larochelle's "
        "binarisation, 50 000, 10 000 and 10 000 rows, each np.packbits of an image's 784 bits. There is no place "
        "that it is fetched from. Or train with --data dynamic, on MNIST binarised anew for every batch: its "
        "figures cannot be compared with those on the static images."
    )


def read_static(path: Path) -> BinaryImages:
    packed = read_npz(path, BITS_SHA256, "static binarised MNIST")
    parts = {f"x_{name}": _images(rows, name, path) for name, rows in packed.items()}
    return BinaryImages(**parts, source=str(path))


def _images(packed: np.ndarray, name: str, path: Path) -> np.ndarray:
    digest = None
    if packed.dtype == np.uint8 and packed.ndim == 2 and 8 * packed.shape[1] == PIXELS:
        bits = np.unpackbits(packed, axis=1)
        digest = hashlib.sha256(bits.tobytes()).hexdigest()
    if digest != BITS_SHA256[name]:
        raise RecipeError(
            f"{path} is corrupted or not static binarised MNIST: {name}, {packed.dtype} of shape {packed.shape}, has "
            f"SHA-256 {digest} unpacked, expected {BITS_SHA256[name]}; delete it or replace it by a sound copy"
        )
    return (255 * bits).reshape(-1, 28, 28)
