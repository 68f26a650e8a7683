"""Trained models out of checkpoints of any system."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..errors import RecipeError
from ..system import System
from ..training.checkpoints import read_checkpoint, system_of
from .catalogue import find_system

__all__ = ["load_checkpoint"]


def load_checkpoint(path: Path, *, impl: str | None = None) -> tuple[System, Any, Any]:
    """The system that a checkpoint is of, its model on the CPU, and its settings.

    Args:
        path: the checkpoint.
        impl: implementation of the ops; that of the training if None.

    Raises:
        RecipeError: the file cannot be read or is no such checkpoint.
    """
    content = read_checkpoint(path)
    try:
        system = find_system(system_of(content))
    except RecipeError as error:
        raise RecipeError(f"{path} cannot be used here: {error}") from None
    model, settings = system.load(path, impl=impl, content=content)
    return system, model, settings
