"""Street View House Numbers, cropped digits, out of the files of its authors."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import numpy as np

from ..errors import RecipeError
from ..files import read_bounded
from .data_folders import find_file
from .labelled import LabelledImages, LabelledParts

__all__ = ["load_svhn"]

PAGE = "http://ufldl.stanford.edu/housenumbers/"
# The digests that torchvision checks.
MD5 = {
    "train_32x32.mat": "e26dedcc434d2e4c54c9b2d4a06d8373",
    "test_32x32.mat": "eb5a983be6a315427106f1b164d9cef3",
    "extra_32x32.mat": "a93ce644f1a588dc4d68dda5feec44a7",
}
# The largest of the files has 1 329 278 602 bytes.
MOST_BYTES = 1 << 31
SIDE, COLOURS, CLASSES = 32, 3, 10


def load_svhn(*, extra: bool = False) -> LabelledParts:
    """The 73 257 training and 26 032 test images of house numbers, uint8 ``(N, 3, 32, 32)``, of ten classes.

    ``train_32x32.mat`` and ``test_32x32.mat`` are read from the folder ``$FASTVAE_DATA`` or from the user's cache. The
    authors' label of the digit 0 is 10; here it is 0.

    Args:
        extra: whether the 531 131 easier images of ``extra_32x32.mat`` join the training images.

    Raises:
        RecipeError: a file is missing, or is another one.

    Reference:
        *Reading Digits in Natural Images with Unsupervised Feature Learning* (Netzer et al., 2011).
    """
    train, test = read_part("train_32x32.mat"), read_part("test_32x32.mat")
    if extra:
        more = read_part("extra_32x32.mat")
        images, labels = (np.concatenate(pair) for pair in ((train.images, more.images), (train.labels, more.labels)))
        train = LabelledImages(images, labels, CLASSES, f"{train.source} and {more.source}")
    return LabelledParts(train, test)


def read_part(name: str) -> LabelledImages:
    """The images of a file. It is parsed only after its digest has matched."""
    path = find_file(name, "SVHN", PAGE)
    content = read_bounded(path, MOST_BYTES, "SVHN")
    digest = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if digest != MD5[name]:
        raise RecipeError(
            f"{path} is corrupted or not SVHN's {name}: it has MD5 {digest}, expected {MD5[name]}; delete it or "
            "replace it by a sound copy"
        )
    return to_images(content, path)


def to_images(content: bytes, path: Path) -> LabelledImages:
    try:
        from scipy.io import loadmat
    except ImportError:
        raise RecipeError('SVHN needs scipy: pip install "fastvae-kernels[train]"') from None
    arrays = loadmat(io.BytesIO(content))
    pixels, labels = arrays["X"], arrays["y"].reshape(-1)
    if pixels.dtype != np.uint8 or pixels.shape != (SIDE, SIDE, COLOURS, len(labels)):
        raise RecipeError(
            f"{path}: X must be uint8 of shape ({SIDE}, {SIDE}, {COLOURS}, {len(labels)}), got {pixels.dtype} of shape "
            f"{pixels.shape}"
        )
    if len(labels) and (labels.min() < 1 or labels.max() > CLASSES):
        raise RecipeError(f"{path}: y must be 1 ... {CLASSES}, got {labels.min()} ... {labels.max()}")
    images = np.ascontiguousarray(pixels.transpose(3, 2, 0, 1))
    return LabelledImages(images, labels.astype(np.int64) % CLASSES, CLASSES, str(path))
