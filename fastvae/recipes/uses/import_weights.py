"""Checkpoints out of weights that were trained elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ..errors import RecipeError
from ..files import write_json
from ..system import System
from ..training.checkpoints import CHECKPOINT, write_checkpoint
from ..training.run import settings_to_plain

__all__ = ["write_imported"]


def write_imported(system: System, settings: Any, weights: Mapping[str, Tensor], folder: Path) -> Path:
    """Writes ``last.ckpt`` and ``config.json`` of a model that was trained elsewhere; returns the checkpoint's path.

    Args:
        system: the system of the model.
        settings: its settings.
        weights: the state dict of the model.
        folder: where they go.

    Raises:
        RecipeError: the weights do not fit the model, or a file cannot be written.
    """
    model = system.make_model(settings.model)
    for name, value in model.state_dict().items():
        if name not in weights or weights[name].shape != value.shape:
            found = tuple(weights[name].shape) if name in weights else "none"
            raise RecipeError(f"the weights must have {name} of shape {tuple(value.shape)}, got {found}")
    plain = settings_to_plain(settings)
    content = {
        "hyper_parameters": {"recipe": system.name, "model": plain["model"], "training": plain["training"]},
        "state_dict": {f"model.{name}": weights[name] for name in model.state_dict()},
    }
    write_checkpoint(content, folder / CHECKPOINT)
    write_json(folder / "config.json", {"recipe": system.name} | plain)
    return folder / CHECKPOINT
