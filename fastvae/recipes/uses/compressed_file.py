r"""The file of compressed images: its header, and how much it can hold.

A file holds, little-endian, a header (see :class:`Header`), the 32-bit words of the range coder, and the CRC-32 of all
before it.

The length of a file bounds the work of decoding it. The coder's probabilities are multiples of 2^-24, and each of the L
levels of a number has one of at least 2^-24. So the likeliest level has at most :math:`1 - (L - 1) 2^{-24}`, a number
takes at least :math:`-\log_2(1 - (L - 1) 2^{-24})` bits, about 9e-8 for two levels, and w words hold at most
:math:`32 w / -\log_2(1 - (L - 1) 2^{-24})` numbers. A file that claims more is refused before anything is decoded. The
decoder also adds up the bits of what it decodes, :math:`-\log_2(p + 2^{-22})` for a level of probability p, and refuses
the file when they exceed 32 w: a sound file never does, since the coder writes one word for each 32 bits and at least
one more. A wrong guess takes a bit or nearly so, which bounds the runs of the sampler.
Memory grows with what is decoded, not with what the header claims.
A short file can be a large image only if the network is sure of nearly every pixel; it then takes a large image's time.
"""

from __future__ import annotations

import math
import struct
import zlib
from pathlib import Path
from typing import NamedTuple

from ..errors import RecipeError
from ..files import explain, read_up_to

__all__ = ["CRC", "LAYOUT", "OVERHEAD", "Header", "least_bits", "read_file", "read_header"]

MAGIC, VERSION = b"FVPX", 1
# Bits of the range coder's words, and of its fixed-point probabilities.
WORD_BITS, PRECISION_BITS = 32, 24


class Header(NamedTuple):
    """The header of a file: its fields in this order.

    Args:
        magic: marks such files.
        version: of the format.
        impl: number in :data:`~fastvae.recipes.uses.compress.IMPLEMENTATIONS` of the sampler that made the numbers.
        likelihood: number in :data:`~fastvae.recipes.uses.compress.LIKELIHOODS`.
        levels: values that a pixel takes.
        images, channels, height, width: the shape.
        model: digest of the network's weights.
        context: digest of the context.
        checksum: CRC-32 of the images.
        words: words of the range coder.
    """

    magic: bytes
    version: int
    impl: int
    likelihood: int
    levels: int
    images: int
    channels: int
    height: int
    width: int
    model: bytes
    context: bytes
    checksum: int
    words: int

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return self.images, self.channels, self.height, self.width

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return OVERHEAD + WORD_BITS // 8 * self.words


LAYOUT = struct.Struct("<4sBBBHIHHH8s8sII")
CRC = struct.Struct("<I")
# Bytes of a file besides the range coder's words.
OVERHEAD = LAYOUT.size + CRC.size


def read_file(path: Path) -> bytes:
    """The content of a compressed file; of any other file no more than a header's length is read.

    Raises:
        RecipeError: it cannot be read, is no such file, or of another version.
    """
    try:
        with open(path, "rb") as file:
            head = file.read(LAYOUT.size)
            # One byte more than the header says, so that a file that is too long shows.
            return head + read_up_to(file, _header(head).size - len(head) + 1)
    except OSError as error:
        raise RecipeError(f"{path} cannot be read: {explain(error)}") from None
    except RecipeError as error:
        raise RecipeError(f"{path}: {error}") from None


def read_header(data: bytes) -> Header:
    """The header of a file, after checks that the file is whole and long enough for the images that it claims.

    Raises:
        RecipeError: it is no such file, of another version, truncated or damaged.
    """
    header = _header(data)
    if len(data) < header.size:
        raise RecipeError(f"the compressed file is truncated: it has {len(data)} of {header.size} bytes")
    if len(data) > header.size or CRC.unpack(data[-CRC.size :])[0] != zlib.crc32(data[: -CRC.size]):
        raise RecipeError("the compressed file is damaged: its content does not fit its length and checksum")
    if header.levels < 2 or min(header.shape[1:]) < 1:
        raise RecipeError(
            f"the compressed file is damaged: it says {header.levels} levels, where 2 are the least, and images of "
            f"{header.shape[1:]}, where every size is at least 1"
        )
    numbers, most = math.prod(header.shape), int(WORD_BITS * header.words / least_bits(header.levels))
    if numbers > most:
        raise RecipeError(
            f"the compressed file is damaged: it says that it holds {numbers} numbers, and its {header.words} words "
            f"hold at most {most}"
        )
    return header


def _header(data: bytes) -> Header:
    if data[: len(MAGIC)] != MAGIC[: len(data)] or not data:
        raise RecipeError(f"this is no compressed file: it must begin with {MAGIC!r}, got {data[: len(MAGIC)]!r}")
    if len(data) > len(MAGIC) and data[len(MAGIC)] != VERSION:
        raise RecipeError(f"the compressed file must be of format version {VERSION}, got {data[len(MAGIC)]}")
    if len(data) < LAYOUT.size:
        raise RecipeError(f"the compressed file is truncated: it has {len(data)} bytes of a header of {LAYOUT.size}")
    return Header(*LAYOUT.unpack_from(data))


def least_bits(levels: int) -> float:
    """The fewest bits of a number: those of a level when all others have the least probability."""
    return -math.log1p(-(levels - 1) * 2.0**-PRECISION_BITS) / math.log(2)
