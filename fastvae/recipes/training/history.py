"""The records of a training: a line for each epoch, logs of steps, and the machine."""

from __future__ import annotations

import csv
import io
import platform
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger

from ... import backend
from ..._version import __version__
from ..files import open_replacement

__all__ = ["curves_of", "describe_machine", "make_loggers", "write_metrics"]


def write_metrics(history: Sequence[dict[str, float]], columns: Sequence[str], path: Path) -> None:
    """One line for each epoch; other processes see the old file or the new one."""
    lines = io.StringIO(newline="")
    writer = csv.DictWriter(lines, columns)
    writer.writeheader()
    writer.writerows(history)
    with open_replacement(path) as file:
        file.write(lines.getvalue().encode())


def curves_of(history: Sequence[dict[str, float]], names: Sequence[str]) -> dict[str, list[tuple[int, float]]]:
    """The columns of these names, each as (step, value) pairs."""
    return {name: [(int(row["step"]) - 1, row[name]) for row in history if name in row] for name in names}


def make_loggers(folder: Path, speak: bool) -> list[Logger]:
    """CSV files and, where it is installed, TensorBoard."""
    loggers: list[Logger] = [CSVLogger(str(folder), name="logs")]
    if find_spec("tensorboard") is not None:
        loggers.append(TensorBoardLogger(str(folder), name="tensorboard"))
    elif speak:
        print("tensorboard is not installed: the losses go to CSV files only (pip install tensorboard)", flush=True)
    return loggers


def describe_machine(impl: str, device: torch.device) -> dict[str, Any]:
    """Versions, device, implementation and threads, for the figures of a run."""
    return {
        "versions": {
            "fastvae": __version__,
            "torch": torch.__version__,
            "lightning": L.__version__,
            "python": platform.python_version(),
        },
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine(),
        "implementation": backend.resolve(impl, torch.empty(0, device=device)),
        "threads": torch.get_num_threads(),
    }
