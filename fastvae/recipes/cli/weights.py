"""The command ``fastvae import SYSTEM FILE``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from ..files import check_folder
from ..systems.loading import find_system
from ..training.checkpoints import CHECKPOINT
from ..training.folder import check_replaced
from ..uses.import_weights import write_imported
from .settings import parse

__all__ = ["ImportOptions", "import_weights"]


@dataclass(frozen=True)
class ImportOptions:
    """The files.

    Args:
        system: the system that the weights are of.
        file: npz file of the authors' arrays by their names.
        out: folder that gets the checkpoint.
    """

    system: str = field(metadata={"positional": True, "metavar": "SYSTEM"})
    file: Path = field(metadata={"positional": True, "metavar": "FILE"})
    out: Path = field(default=Path("imported"), metadata={"metavar": "DIR"})


def import_weights(words: Sequence[str]) -> None:
    """Makes a checkpoint of a paper's published weights."""
    options = parse(
        ImportOptions,
        words,
        prog="fastvae import",
        description="Make a checkpoint of weights that the authors of a paper published, as arrays in an npz file. "
        "fastvae evaluate, sample, reconstruct and classify take it; it cannot be trained on.",
    )
    system = find_system(options.system)
    check_folder(options.out)
    check_replaced(options.out / CHECKPOINT, None)
    config, weights = system.import_weights(options.file)
    path = write_imported(system, replace(system.settings(), model=config), weights, options.out)
    print(f"next: fastvae evaluate {path}")
