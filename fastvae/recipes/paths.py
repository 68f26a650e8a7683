"""Paths that users give: what is read there is bounded, what is written there is whole or absent."""

from __future__ import annotations

import os
import secrets
import stat
from pathlib import Path
from typing import Protocol

from . import RecipeError

__all__ = ["check_folder", "check_target", "read_bounded", "read_up_to", "reason", "replace_file"]

BLOCK = 1 << 20


class Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


def reason(error: OSError) -> str:
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
        raise RecipeError(f"{path} cannot be read as {what}: {reason(error)}") from None
    if len(content) > most:
        raise RecipeError(f"{path} cannot be read as {what}: it must have at most {most} bytes, and has more")
    return content


def replace_file(path: Path, content: bytes) -> None:
    """Writes a file so that ``path`` holds its old content or the whole new one, whatever happens meanwhile.

    The new file is written beside ``path``, flushed to the disk and renamed. A device or a pipe is written to as it is.

    Raises:
        RecipeError: it cannot be written; nothing is left behind.
    """
    try:
        if path.exists() and not stat.S_ISREG(path.stat().st_mode):
            path.write_bytes(content)
            return
        # A link stays, and what it leads to is replaced.
        target = Path(os.path.realpath(path))
        beside = target.with_name(f".{secrets.token_hex(8)}.part")
        try:
            with open(beside, "xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(beside, target)
        except BaseException:
            beside.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise RecipeError(f"{path} cannot be written: {reason(error)}") from None


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
        raise RecipeError(f"{path} cannot be written: {reason(error)}; name a file in a folder of yours") from None


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
            f"the folder {path} cannot be written into: {reason(error)}; name another folder with --out"
        ) from None


def _probe(folder: Path) -> None:
    probe = folder / f".{secrets.token_hex(8)}.part"
    with open(probe, "xb"):
        pass
    probe.unlink()
