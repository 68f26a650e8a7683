"""Arrays of bytes out of npz and idx files. The readers check the sizes before they expand anything."""

from __future__ import annotations

import gzip
import io
import math
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import IO

import numpy as np

from ..errors import RecipeError
from ..files import explain, read_up_to

__all__ = ["MOST_BYTES", "parse_idx", "read_npz"]

# Bytes of one array. The largest that a recipe reads, MNIST's training images, has 47 040 000.
MOST_BYTES = 1 << 26
REMEDY = "delete it or replace it by a sound copy"
# Bytes of an npy member besides its numbers.
NPY_HEADER = 1 << 16
NPY_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
# What numpy writes. The readers of other methods expand whole blocks at once.
METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


def read_npz(path: Path, names: Iterable[str], what: str) -> dict[str, np.ndarray]:
    """The uint8 arrays of these names, each of at most :data:`MOST_BYTES` bytes.

    Args:
        path: the file.
        names: of the arrays; others are left alone.
        what: names the data in errors.

    Raises:
        RecipeError: the file cannot be read, lacks an array, or holds one of another type or of more bytes.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return {name: _member(archive, name, f"{path} is corrupted or not {what}: {name}") for name in names}
    except OSError as error:
        raise RecipeError(f"{path} cannot be read ({explain(error)}); {REMEDY}") from None
    except RecipeError:
        raise
    except (
        ValueError, KeyError, EOFError, RuntimeError, OverflowError, SyntaxError, struct.error, tokenize.TokenError,
        zipfile.BadZipFile, zlib.error
    ) as error:  # fmt: skip
        # numpy explains itself on several lines, and reads an array's header with Python's own tokens and syntax.
        said = " ".join(str(error).split()) or type(error).__name__
        raise RecipeError(f"{path} cannot be read ({said}); {REMEDY}") from None


def _member(archive: zipfile.ZipFile, name: str, where: str) -> np.ndarray:
    info = archive.getinfo(f"{name}.npy")
    if info.compress_type not in METHODS:
        raise RecipeError(f"{where} must be stored or deflated, as numpy.savez writes it; {REMEDY}")
    if info.file_size > MOST_BYTES + NPY_HEADER:
        raise RecipeError(f"{where} must have at most {MOST_BYTES} bytes, got {info.file_size}; {REMEDY}")
    with archive.open(info) as member:
        version = np.lib.format.read_magic(member)
        if version not in NPY_HEADERS:
            raise ValueError(f"{name} must be of npy version 1.0 or 2.0, got {version[0]}.{version[1]}")
        shape, by_columns, dtype = NPY_HEADERS[version](member)
        if dtype != np.uint8 or min(shape, default=0) < 0 or math.prod(shape) > MOST_BYTES:
            raise RecipeError(
                f"{where} must be uint8 with at most {MOST_BYTES} bytes, got {dtype} of shape {shape}; {REMEDY}"
            )
        return _array(member, shape, by_columns, name)


def _array(member: IO[bytes], shape: tuple[int, ...], by_columns: bool, name: str) -> np.ndarray:
    size = math.prod(shape)
    content = read_up_to(member, size + 1)
    if len(content) != size:
        found = "more" if len(content) > size else len(content)
        raise ValueError(f"{name} of shape {shape} must have {size} bytes, got {found}")
    # Tensors made of read-only arrays warn.
    return np.frombuffer(content, np.uint8).reshape(shape, order="F" if by_columns else "C").copy()


def parse_idx(content: bytes, where: str) -> np.ndarray:
    """The array of an idx file of unsigned bytes, gzipped or not, of at most :data:`MOST_BYTES` bytes.

    Raises:
        RecipeError: ``content`` is anything else; the message calls it ``where``.
    """
    try:
        if content[:2] == b"\x1f\x8b":
            with gzip.GzipFile(fileobj=io.BytesIO(content)) as file:
                content = read_up_to(file, MOST_BYTES + 1)
        if len(content) > MOST_BYTES:
            raise ValueError(f"it must have at most {MOST_BYTES} bytes, got more")
        if content[:3] != b"\0\0\x08" or len(content) < 4:
            raise ValueError(f"its first bytes are {content[:4].hex() or 'absent'}, no idx header of unsigned bytes")
        rank = content[3]
        shape = np.frombuffer(content, ">u4", rank, offset=4).astype(int)
        return np.frombuffer(content, np.uint8, offset=4 + 4 * rank).reshape(shape).copy()
    except (OSError, EOFError, ValueError, struct.error, zlib.error) as error:
        raise RecipeError(f"{where} is no idx file ({error}); {REMEDY}") from None
