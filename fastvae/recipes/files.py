"""Files: reads are bounded, and a written file is whole or absent."""

from __future__ import annotations

import json
import math
import os
import re
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, Protocol

from .errors import RecipeError

__all__ = [
    "check_folder",
    "check_target",
    "explain",
    "open_replacement",
    "read_bounded",
    "read_up_to",
    "replace_file",
    "write_json",
]

BLOCK = 1 << 20
PART = ".fastvae-part-"


class Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


def explain(error: OSError) -> str:
    """Why a file operation failed, in the words of the system."""
    return error.strerror or str(error)


def read_up_to(file: Readable, most: int) -> bytes:
    """The next ``most`` bytes of a file, fewer at its end; memory grows with what comes, not with ``most``."""
    blocks, left = [], most
    while left > 0 and (block := file.read(min(left, BLOCK))):
        blocks.append(block)
        left -= len(block)
    return b"".join(blocks)


def read_bounded(path: Path, most: int, what: str) -> bytes:
    """The content of a file.

    Args:
        path: the file.
        most: bytes that it may have.
        what: names its kind in errors.

    Raises:
        RecipeError: it cannot be read, or is longer.
    """
    try:
        with open(path, "rb") as file:
            content = read_up_to(file, most + 1)
    except OSError as error:
        raise RecipeError(f"{path} cannot be read as {what}: {explain(error)}") from None
    if len(content) > most:
        raise RecipeError(f"{path} cannot be read as {what}: it must have at most {most} bytes, and has more")
    return content


@contextmanager
def open_replacement(path: Path) -> Iterator[IO[bytes]]:
    """A new file that takes the place of ``path`` at the end of the block.

    Whatever happens, ``path`` holds its earlier content or all that the block wrote. The new file is written beside its
    target, flushed to the disk and renamed. An exception removes it; after a kill,
    :func:`~fastvae.recipes.training.folder.hold_folder` removes it. If ``path`` is a link, the link stays, and its
    target is replaced.

    Args:
        path: the target, in a folder that exists.

    Raises:
        RecipeError: the file cannot be written.
    """
    try:
        target = Path(os.path.realpath(path))
        part = target.with_name(PART + secrets.token_hex(8))
        try:
            # Made by open, it has the permissions of every new file, unlike those of tempfile.
            with open(part, "xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, target)
        except BaseException:
            with suppress(OSError):
                part.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise RecipeError(f"{path} cannot be written: {explain(error)}; what was there before is whole") from error
    sync_folder(target.parent)


def sync_folder(folder: Path) -> None:
    """Flushes a folder's entries, with them the last rename, where the system can."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def replace_file(path: Path, content: bytes) -> None:
    """Writes a file that a user named, as :func:`open_replacement` does; a device or a pipe is written to as it is.

    Raises:
        RecipeError: it cannot be written; nothing is left behind.
    """
    try:
        if path.exists() and not stat.S_ISREG(path.stat().st_mode):
            path.write_bytes(content)
            return
    except OSError as error:
        raise RecipeError(f"{path} cannot be written: {explain(error)}") from None
    with open_replacement(path) as file:
        file.write(content)


def write_json(path: Path, value: Any) -> None:
    """Writes plain data as JSON, a list of numbers in one line; numbers that are not finite become null.

    Raises:
        RecipeError: the file cannot be written.
    """
    text = json.dumps(to_finite(value), indent=2, allow_nan=False)
    # Strings of JSON contain no line breaks, so that these are of lists.
    text = re.sub(r"\[\n[^\[\]{}\"]*\]", lambda found: f"[{' '.join(found[0][1:-1].split())}]", text)
    replace_file(path, (text + "\n").encode())


def to_finite(value: Any) -> Any:
    """Plain data with None for every number that is not finite, which JSON cannot say."""
    if isinstance(value, dict):
        return {key: to_finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def check_target(path: Path) -> None:
    """Refuses an output file that could not be written, before the work that fills it.

    Raises:
        RecipeError: its folder does not exist or cannot be written into, or ``path`` is a folder.
    """
    try:
        if path.is_dir():
            raise RecipeError(f"{path} cannot be written: it is a folder; name a file")
        if not path.exists():
            _probe(path.parent)
    except OSError as error:
        raise RecipeError(f"{path} cannot be written: {explain(error)}; name a file in a folder of yours") from None


def check_folder(path: Path) -> None:
    """Makes an output folder with its parents and refuses one that cannot be written into, before the work.

    Raises:
        RecipeError: it cannot be made or written into.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        _probe(path)
    except OSError as error:
        raise RecipeError(
            f"the folder {path} cannot be written into: {explain(error)}; name another folder with --out"
        ) from None


def _probe(folder: Path) -> None:
    probe = folder / f"{PART}{secrets.token_hex(8)}"
    with open(probe, "xb"):
        pass
    probe.unlink()
