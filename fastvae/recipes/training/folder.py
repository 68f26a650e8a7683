"""The folder of a run: one run holds it at a time, and no run is lost to another."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ..errors import RecipeError
from ..files import PART, explain
from .checkpoints import CHECKPOINT, Named, check_system, epochs_done, read_checkpoint

__all__ = ["hold_folder", "leads", "run_folder"]

LOCK = ".fastvae-lock"


def leads() -> bool:
    """Whether this process is the only one, or the first of those that ``torchrun`` started: it writes the files."""
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def hold_folder(folder: Path) -> Iterator[None]:
    """Holds a folder for one run; removes the files that a killed run has written by half.

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
            f"nothing can be written in {folder}: {explain(error)}; give another folder (--out)"
        ) from error
    try:
        for part in folder.glob(PART + "*"):
            with suppress(OSError):
                part.unlink()
        yield
    finally:
        lock.release()


@contextmanager
def run_folder(
    folder: Path, resume: Path | None, settings: Mapping[str, Any], *, system: Named, overwrite: bool = False
) -> Iterator[int]:
    """Holds the folder of a run, and checks the run that it continues and the run that it would replace.

    Args:
        folder: where everything of the run goes; it is made if it is absent.
        resume: a checkpoint to continue from.
        settings: ``"model"`` and ``"training"`` of this run, as plain data.
        system: the system of the run.
        overwrite: whether an unfinished run in ``folder`` may be replaced.

    Returns:
        The epochs that are done.

    Raises:
        RecipeError: another run holds the folder, the folder cannot be written, or it has an unfinished run that
            ``resume`` does not continue; or ``resume`` cannot be read or is of other settings.
    """
    with hold_folder(folder):
        done = 0 if resume is None else check_continued(resume, settings, system)
        if leads() and not overwrite:
            check_replaced(folder / CHECKPOINT, resume)
        yield done


def check_replaced(path: Path, resume: Path | None) -> None:
    """Checks that a checkpoint may be replaced: its run is finished, or continued.

    Raises:
        RecipeError: it may not.
    """
    if not path.exists() or (resume is not None and resume.samefile(path)):
        return
    ways = "give another folder (--out), or remove it"
    try:
        content = read_checkpoint(path)
        done, epochs = epochs_done(content), int(content["hyper_parameters"]["training"]["epochs"])
    except (RecipeError, KeyError, TypeError, ValueError):
        raise RecipeError(f"{path} is damaged, or of another program: {ways}") from None
    if done < epochs:
        raise RecipeError(
            f"{path} holds a run that is not finished, {done} of {epochs} epochs: continue it (--resume {path}), {ways}"
        )


def check_continued(path: Path, settings: Mapping[str, Any], system: Named) -> int:
    """Checks that a checkpoint is of a run with these settings; returns the epochs that are done.

    Raises:
        RecipeError: it is not, or cannot be read.
    """
    content = read_checkpoint(path)
    check_system(content, system, path)
    plain = content["hyper_parameters"]
    for part in ("model", "training"):
        theirs = plain.get(part)
        if not isinstance(theirs, dict):
            raise RecipeError(f"{path} is no checkpoint of {system.name}: it has no settings of its {part}")
        for key, value in settings[part].items():
            if key in theirs and to_list(theirs[key]) != to_list(value):
                raise RecipeError(f"{path} is of a run with {key} = {theirs[key]!r}; it cannot become {value!r}")
    epochs = settings["training"]["epochs"]
    try:
        done = epochs_done(content)
    except (KeyError, TypeError, ValueError):
        raise RecipeError(f"{path} cannot be continued: it holds no state of a training") from None
    if not 0 <= done <= epochs:
        raise RecipeError(f"{path} cannot be continued: it claims {done} of {epochs} epochs")
    if done == epochs and leads():
        print(f"{path} holds all {epochs} epochs: nothing is left to train", flush=True)
    return done


def to_list(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
