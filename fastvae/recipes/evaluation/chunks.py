"""What evaluation finds of chunks of images, and the file that keeps it until all are done."""

from __future__ import annotations

import hashlib
import json
import reprlib
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..errors import RecipeError
from ..files import explain, open_replacement, read_up_to

__all__ = ["Chunk", "Chunks", "make_head", "read_chunks", "write_chunks"]

# A file is a line with the checksum of all after it, and JSON.
LABEL = b"fastvae evaluation, sha256 "
HEAD = len(LABEL) + 2 * hashlib.sha256().digest_size + 1
# The numbers of a million images take a quarter of it.
MOST_BYTES = 1 << 28
REMEDY = "name another file with --work, or remove it"


class Chunk(NamedTuple):
    """What is found of N images, float64 on the CPU; what is not asked for has no columns.

    Args:
        bound: log p(x | z) and the KL terms, ``(N, 1 + T)``, nats.
        estimate: log p(x), nats, and the effective sample size, ``(N, 2)``.
        units: sums over the images of what each of U latent units does, ``(6, U)``, see
            :func:`fastvae.recipes.evaluation.units.measure_units`.
    """

    bound: Tensor
    estimate: Tensor
    units: Tensor = torch.empty(6, 0, dtype=torch.float64)


# By the name of the pass, then by the first image.
Chunks = dict[str, dict[int, Chunk]]


def write_chunks(path: Path, settings: Mapping[str, Any], chunks: Chunks) -> None:
    """Replaces the file of an unfinished evaluation; a failure, or a kill, leaves the earlier one whole.

    Args:
        path: the file.
        settings: all that the figures depend on, as plain data.
        chunks: those that are done.

    Raises:
        RecipeError: the file cannot be written.
    """
    passes = {
        name: {first: [part.tolist() for part in chunk] for first, chunk in done.items()}
        for name, done in chunks.items()
    }
    content = json.dumps({"settings": settings, "passes": passes}).encode()
    with open_replacement(path) as file:
        file.write(make_head(content) + content)


def make_head(content: bytes) -> bytes:
    """The first line of a file with this content after it."""
    return LABEL + hashlib.sha256(content).hexdigest().encode() + b"\n"


def read_chunks(path: Path, settings: Mapping[str, Any]) -> Chunks:
    """The chunks that an evaluation with these settings has done; none where there is no file.

    Nothing but numbers is read from the file.

    Raises:
        RecipeError: the file cannot be read, is damaged, or is of another evaluation.
    """
    if not path.exists():
        return {}
    content = read_content(path)
    try:
        plain = json.loads(content)
        theirs = plain["settings"]
        chunks = {
            str(name): {int(first): to_chunk(parts) for first, parts in done.items()}
            for name, done in plain["passes"].items()
        }
        changed = [name for name, value in settings.items() if theirs.get(name) != value]
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError, RuntimeError):
        raise RecipeError(f"{path} holds no unfinished evaluation: {REMEDY}") from None
    for name in changed[:1]:
        found = reprlib.repr(theirs.get(name))
        raise RecipeError(f"{path} is of an evaluation with {name} = {found}, not {settings[name]!r}: {REMEDY}")
    return chunks


def read_content(path: Path) -> bytes:
    """The content of a file after its head, which is checked before the rest is read."""
    try:
        # A pipe or a device may have no end.
        if not stat.S_ISREG(path.stat().st_mode):
            raise RecipeError(f"{path} is no file: {REMEDY}")
        with open(path, "rb") as file:
            head = file.read(HEAD)
            if not head.startswith(LABEL):
                raise RecipeError(f"{path} holds no unfinished evaluation: {REMEDY}")
            content = read_up_to(file, MOST_BYTES + 1)
    except OSError as error:
        raise RecipeError(f"{path} cannot be read: {explain(error)}; {REMEDY}") from None
    if len(content) > MOST_BYTES or head != make_head(content):
        raise RecipeError(f"{path} is damaged, its content does not fit its checksum: {REMEDY}")
    return content


def to_chunk(parts: Any) -> Chunk:
    """A chunk of its plain data.

    Raises:
        TypeError, ValueError: it is none.
    """
    bound, estimate, units = (torch.tensor(part, dtype=torch.float64) for part in parts)
    if bound.dim() != 2 or estimate.dim() != 2 or len(bound) != len(estimate):
        raise ValueError(f"a chunk must begin with two matrices of as many rows, got {bound.shape}, {estimate.shape}")
    if units.dim() != 2 or len(units) != 6:
        raise ValueError(f"a chunk must end with a matrix of 6 rows, got {units.shape}")
    return Chunk(bound, estimate, units)
