"""Files that a run leaves: each is written beside its target and renamed, in a folder that one run holds at a time."""

from __future__ import annotations

import json
import math
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from filelock import FileLock, Timeout

from . import RecipeError

__all__ = ["held", "leads", "replacing", "write_json"]

PART = ".fastvae-part-"
LOCK = ".fastvae-lock"


def leads() -> bool:
    """Whether this process is the only one, or the first of those that ``torchrun`` started: it writes the files."""
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """A new file that takes the place of ``path`` at the end of the block.

    Whatever happens, ``path`` holds what it held before or all that the block wrote: the file is beside ``path``,
    flushed to the disk and renamed. An exception removes it; after a kill :func:`held` does.

    Args:
        path: the target; its folder is made.

    Raises:
        RecipeError: the file cannot be written.
    """
    part = path.with_name(PART + secrets.token_hex(8))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            # Made by open, it has the permissions of every new file, unlike those of tempfile.
            with open(part, "xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, path)
        except BaseException:
            with suppress(OSError):
                part.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise RecipeError(
            f"{path} cannot be written: {error.strerror or error}; what was there before is whole"
        ) from error
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Flushes a folder's entries, with them the last rename, where the system can."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_json(path: Path, value: Any) -> None:
    """Writes plain data as JSON, what is not finite as null.

    Raises:
        RecipeError: the file cannot be written.
    """
    with replacing(path) as file:
        file.write((json.dumps(finite(value), indent=2, allow_nan=False) + "\n").encode())


def finite(value: Any) -> Any:
    """Plain data with None for every number that is not finite, which JSON cannot say."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Holds a folder for one run; what a killed run had half written there is removed.

    The lock ends with the process that has it, however that ends. Processes that ``torchrun`` started beside the
    first take none.

    Args:
        folder: it is made if it is absent.

    Raises:
        RecipeError: another run holds it, or it cannot be written.
    """
    if not leads():
        yield
        return
    lock = FileLock(folder / LOCK)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        raise RecipeError(
            f"another run is writing in {folder}: wait for its end, or give this one another folder (--out)"
        ) from None
    except OSError as error:
        raise RecipeError(
            f"nothing can be written in {folder}: {error.strerror or error}; give another folder (--out)"
        ) from error
    try:
        for part in folder.glob(PART + "*"):
            with suppress(OSError):
                part.unlink()
        yield
    finally:
        lock.release()
