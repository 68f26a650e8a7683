"""small-NORB: stereo pictures of toys, out of the files of its authors."""

from __future__ import annotations

import gzip
import io
import struct
import zlib
from pathlib import Path

import numpy as np

from ..errors import RecipeError
from ..files import read_bounded, read_up_to
from .data_folders import find_file
from .labelled import LabelledImages, LabelledParts

__all__ = ["load_small_norb", "parse_norb"]

PAGE = "https://cs.nyu.edu/~ylclab/data/norb-v1.0-small/"
NAMES = {"train": "smallnorb-5x46789x9x18x6x2x96x96-training", "test": "smallnorb-5x01235x9x18x6x2x96x96-testing"}
IMAGES, SIDE, CLASSES, INFO = 24_300, 96, 5, 4
# The types of the entries by the magic number, which begins the file.
BYTES, WHOLE = 0x1E3D4C55, 0x1E3D4C54
DTYPES = {BYTES: "u1", WHOLE: "<i4", 0x1E3D4C56: "<i2", 0x1E3D4C51: "<f4", 0x1E3D4C53: "<f8"}
MOST_BYTES = 1 << 29
# A header has at least so many sizes, used or not.
LEAST_SIZES, MOST_SIZES = 3, 8


def load_small_norb(*, shrink: int = 3) -> LabelledParts:
    """The 24 300 training and 24 300 test pairs of pictures, uint8 ``(N, 2, 96 / shrink, 96 / shrink)``.

    The six files ``...-dat.mat``, ``...-cat.mat`` and ``...-info.mat``, gzipped or not, are read from the folder
    ``$FASTVAE_DATA`` or from the user's cache. Their digests are not known here. The types, the sizes, equally many
    pictures of each of the five classes, and the numbers of the toys, which are others in the test, are checked.

    Args:
        shrink: how many pixels along a side become one, their mean; it divides 96.

    Raises:
        RecipeError: a file is missing, or is another one.
        ValueError: ``shrink`` does not divide 96.

    Reference:
        *Learning Methods for Generic Object Recognition with Invariance to Pose and Lighting* (LeCun, Huang, Bottou,
        2004).
    """
    if shrink < 1 or SIDE % shrink:
        raise ValueError(f"shrink must divide {SIDE}, got {shrink}")
    train, train_toys = read_part("train", shrink)
    test, test_toys = read_part("test", shrink)
    if common := train_toys & test_toys:
        raise RecipeError(f"{train.source} and {test.source} must show other toys, but share {sorted(common)}")
    return LabelledParts(train, test)


def read_part(part: str, shrink: int) -> tuple[LabelledImages, set[int]]:
    """The pictures of a part, and the numbers of its toys."""
    images, path = read_file(part, "dat", BYTES, (IMAGES, 2, SIDE, SIDE))
    labels, labels_path = read_file(part, "cat", WHOLE, (IMAGES,))
    info, _ = read_file(part, "info", WHOLE, (IMAGES, INFO))
    counts = np.bincount(labels.clip(0, CLASSES), minlength=CLASSES + 1)
    if labels.min() < 0 or counts.tolist() != [IMAGES // CLASSES] * CLASSES + [0]:
        raise RecipeError(f"{labels_path} must have {IMAGES // CLASSES} of each of {CLASSES} classes, got {counts}")
    side = SIDE // shrink
    means = images.reshape(IMAGES, 2, side, shrink, side, shrink).mean((3, 5), dtype=np.float32)
    return LabelledImages(np.rint(means).astype(np.uint8), labels, CLASSES, str(path)), set(info[:, 0].tolist())


def read_file(part: str, kind: str, magic: int, shape: tuple[int, ...]) -> tuple[np.ndarray, Path]:
    """An array of this type and shape, and the file's path."""
    path = find_file(f"{NAMES[part]}-{kind}.mat", "small-NORB", PAGE, endings=("", ".gz"))
    array = parse_norb(read_bounded(path, MOST_BYTES, "small-NORB"), str(path))
    if array.dtype != DTYPES[magic] or array.shape != shape:
        raise RecipeError(
            f"{path} is not small-NORB: it must be {np.dtype(DTYPES[magic])} of shape {shape}, got {array.dtype} of "
            f"shape {array.shape}; replace it by a sound copy"
        )
    return array, path


def parse_norb(content: bytes, where: str) -> np.ndarray:
    """The array of a file in NORB's format, gzipped or not.

    The file has a magic number, the number of dimensions, their sizes, all int32 with the lowest byte first, and the
    entries row by row.

    Raises:
        RecipeError: ``content`` is anything else; the message calls it ``where``.
    """
    try:
        if content[:2] == b"\x1f\x8b":
            with gzip.GzipFile(fileobj=io.BytesIO(content)) as file:
                content = read_up_to(file, MOST_BYTES + 1)
        if len(content) > MOST_BYTES:
            raise ValueError(f"it must have at most {MOST_BYTES} bytes, got more")
        magic, rank = struct.unpack_from("<II", content)
        if magic not in DTYPES:
            raise ValueError(f"its magic number {magic:#x} is unknown")
        if not 1 <= rank <= MOST_SIZES:
            raise ValueError(f"it must have 1 ... {MOST_SIZES} dimensions, got {rank}")
        sizes = struct.unpack_from(f"<{max(rank, LEAST_SIZES)}I", content, 8)[:rank]
        first, dtype = 8 + 4 * max(rank, LEAST_SIZES), np.dtype(DTYPES[magic])
        size = dtype.itemsize
        for length in sizes:
            size *= length
        if len(content) - first != size:
            raise ValueError(f"entries of shape {sizes} must have {size} bytes, got {len(content) - first}")
        return np.frombuffer(content, dtype, offset=first).reshape(sizes).copy()
    except (OSError, EOFError, ValueError, struct.error, zlib.error) as error:
        raise RecipeError(f"{where} is no file of NORB ({error}); delete it or replace it by a sound copy") from None
