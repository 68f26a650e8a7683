"""Systems by name, and trained models out of checkpoints of any system."""

from __future__ import annotations

import difflib
import importlib
from pathlib import Path
from typing import Any

from ..errors import RecipeError
from ..system import System
from ..training.checkpoints import read_checkpoint, system_of
from .catalogue import CATALOGUE, UNNAMED

__all__ = ["find_system", "load_checkpoint"]


def find_system(name: str) -> System:
    """The system of this name.

    Raises:
        RecipeError: there is none.
    """
    if name not in CATALOGUE:
        near = difflib.get_close_matches(name, CATALOGUE, 1)
        raise RecipeError(
            f"there is no system {name!r}; it must be one of {', '.join(CATALOGUE)}"
            + (f"; the nearest is {near[0]!r}" if near else "")
        )
    found: System = importlib.import_module(f".{name}.system", __package__).SYSTEM
    return found


def load_checkpoint(path: Path, *, impl: str | None = None) -> tuple[System, Any, Any]:
    """The system that a checkpoint is of, its model on the CPU, and its settings.

    Args:
        path: the checkpoint.
        impl: implementation of the ops; that of the training if None.

    Raises:
        RecipeError: the file cannot be read or is no such checkpoint.
    """
    content = read_checkpoint(path)
    name = system_of(content)
    try:
        system = find_system(UNNAMED if name is None else name)
    except RecipeError as error:
        raise RecipeError(f"{path} cannot be used here: {error}") from None
    model, settings = system.load(path, impl=impl, content=content)
    return system, model, settings
