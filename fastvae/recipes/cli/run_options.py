"""Options that several commands share, and checks before the work."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch

from ... import backend
from ..errors import RecipeError
from ..settings import check_whole
from ..training.trainer import device_of

__all__ = ["DEVICE", "Accelerator", "RunOptions", "check_impl", "quieten"]

Accelerator = Literal["auto", "cpu", "gpu", "cuda"]
DEVICE = {"aliases": ("--device",)}


@dataclass(frozen=True)
class RunOptions:
    """The run.

    Args:
        out: folder where everything is written.
        config: TOML or JSON file with any of the settings by their names in config.json; options win over it.
        resume: checkpoint of an interrupted run; the run goes on with its settings.
        limit_epochs: stop after so many epochs of this call; --resume goes on.
        progress: whether to show progress bars.
        accelerator: device.
    """

    out: Path = field(default=Path("out"), metadata={"metavar": "DIR"})
    config: Path | None = field(default=None, metadata={"metavar": "FILE"})
    resume: Path | None = field(default=None, metadata={"metavar": "CHECKPOINT"})
    limit_epochs: int | None = None
    progress: bool = True
    accelerator: Accelerator = field(default="auto", metadata=DEVICE)

    def __post_init__(self) -> None:
        if self.limit_epochs is not None:
            check_whole(self, limit_epochs=1)


def check_impl(impl: str, accelerator: str) -> None:
    """Refuses an implementation that cannot run, before anything else is done.

    Raises:
        RecipeError: it cannot run on the device of ``accelerator``, or there is no such device.
    """
    try:
        backend.resolve(impl, torch.empty(0, device=device_of(accelerator)))
    except RecipeError:
        raise
    except RuntimeError as error:
        raise RecipeError(f"{error}; choose another one: --impl auto takes the best that runs") from None


def quieten() -> None:
    """Lightning announces every trainer's hardware and its maker's other products at level INFO."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
