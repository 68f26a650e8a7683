"""Training with a moving average of the weights: its task, one line of figures for each epoch, its checkpoints."""

from __future__ import annotations

import copy
import csv
import io
import math
import platform
import time
from collections.abc import Sequence
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol, cast

import lightning as L
import torch
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from .. import backend
from .._version import __version__
from . import RecipeError
from .batches import JointBatches
from .files import replacing
from .trainer import BatchConfig, ImageTask

__all__ = [
    "AveragedTask",
    "DecayConfig",
    "averaged_weights",
    "check_figures",
    "curves",
    "loggers_of",
    "surroundings",
    "write_metrics",
]


class DecayConfig(BatchConfig, Protocol):
    """What the task needs to know of a recipe's training; a dataclass."""

    @property
    def final_learning_rate(self) -> float: ...
    @property
    def decay_from(self) -> float: ...
    @property
    def average_decay(self) -> float: ...
    @property
    def check_every(self) -> int: ...


class AveragedTask(ImageTask):
    """A learning rate that decays at the end, and a moving average of the weights, on which the tests run.

    Args:
        recipe: its name.
        model: what is trained; its ``config`` has ``as_dict`` and ``impl``.
        config: the training.
        folder: where ``metrics.csv`` goes.
        latent_features: columns of the noise that one image takes.
        terms: names of the quantities that a training step adds to ``epoch_terms``.
        measured: name of the quantity that the tests log.
    """

    config: DecayConfig

    def __init__(
        self,
        recipe: str,
        model: nn.Module,
        config: DecayConfig,
        folder: Path,
        *,
        latent_features: int,
        terms: Sequence[str],
        measured: str,
    ) -> None:
        settings: Any = model.config
        super().__init__(config, latent_features, settings.impl)
        plain = asdict(cast(Any, config))
        self.save_hyperparameters({"recipe": recipe, "model": settings.as_dict(), "training": plain})
        self.model, self.folder, self.terms, self.measured = model, folder, tuple(terms), measured
        self.averaged = copy.deepcopy(model).requires_grad_(False)
        self.move_average = get_ema_multi_avg_fn(config.average_decay)
        self.history: list[dict[str, float]] = []

    def setup(self, stage: str) -> None:
        images = cast(Any, self.trainer).datamodule.mnist.x_train
        self.steps = self.config.epochs * len(JointBatches(len(images), self.config.batch_size, self.config.seed))

    def optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.model.parameters(), lr=self.config.learning_rate, fused=True)

    def configure_optimizers(self) -> Any:
        optimizer = self.optimizer()
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self.decayed)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def decayed(self, step: int) -> float:
        """Share of the first learning rate: 1, then a geometric decay over the rest of the steps."""
        begin = self.config.decay_from * self.steps
        if step <= begin:
            return 1.0
        passed = min((step - begin) / (self.steps - begin), 1.0)
        return (self.config.final_learning_rate / self.config.learning_rate) ** passed

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.move_average(list(self.averaged.parameters()), list(self.model.parameters()), 0)

    def on_train_epoch_start(self) -> None:
        super().on_train_epoch_start()
        self.epoch_terms = torch.zeros(len(self.terms), dtype=torch.float64, device=self.device)
        self.epoch_began = time.perf_counter()

    def on_train_epoch_end(self) -> None:
        loss = self.mean_loss()
        means = dict(zip(self.terms, self.mean_of_epoch(self.epoch_terms), strict=True))
        self.log_dict({name: value.float() for name, value in means.items()})
        found: dict[str, Tensor] = {"loss": loss, **means}
        if (self.current_epoch + 1) % self.config.check_every == 0:
            found[self.measured] = self.found_finite(self.measured, self.trainer.callback_metrics[self.measured])
        self.history.append(
            {"epoch": self.current_epoch + 1, "step": self.global_step}
            | {name: value.item() for name, value in found.items()}
            | {
                "learning_rate": self.trainer.optimizers[0].param_groups[0]["lr"],
                "seconds": time.perf_counter() - self.epoch_began,
            }
        )
        if self.global_rank == 0:
            write_metrics(self.history, self.columns(), self.folder / "metrics.csv")

    def columns(self) -> tuple[str, ...]:
        """The quantities of an epoch, by which ``metrics.csv`` has its columns."""
        return ("epoch", "step", "loss", *self.terms, self.measured, "learning_rate", "seconds")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["history"] = self.history

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        history: Any = checkpoint.get("history")
        columns = set(self.columns())
        sound = isinstance(history, list) and all(
            isinstance(row, dict)
            and {"epoch", "step"} <= row.keys() <= columns
            and all(isinstance(value, int | float) for value in row.values())
            for row in history
        )
        if not sound:
            raise RecipeError("the checkpoint cannot be continued: its history is no list of the figures of epochs")
        self.history = list(history)


def write_metrics(history: Sequence[dict[str, float]], columns: Sequence[str], path: Path) -> None:
    """One line for each epoch; other processes see the old file or the new one."""
    lines = io.StringIO(newline="")
    writer = csv.DictWriter(lines, columns)
    writer.writeheader()
    writer.writerows(history)
    with replacing(path) as file:
        file.write(lines.getvalue().encode())


def averaged_weights(content: dict[str, Any]) -> dict[str, Tensor]:
    """The averaged weights in what a checkpoint holds."""
    prefix = "averaged."
    weights = content["state_dict"].items()
    return {name.removeprefix(prefix): value for name, value in weights if name.startswith(prefix)}


def check_figures(figures: Any) -> None:
    """Checks the figures of a trained model, a dataclass.

    Raises:
        RecipeError: one is not finite.
    """
    for name, value in asdict(figures).items():
        if isinstance(value, float) and not math.isfinite(value):
            raise RecipeError(f"the trained model has {name} = {value}: try a lower learning rate")


def curves(history: Sequence[dict[str, float]], names: Sequence[str]) -> dict[str, list[tuple[int, float]]]:
    """The columns of these names, each as (step, value) pairs."""
    return {name: [(int(row["step"]) - 1, row[name]) for row in history if name in row] for name in names}


def loggers_of(folder: Path, speak: bool) -> list[Logger]:
    """CSV files and, where it is installed, TensorBoard."""
    loggers: list[Logger] = [CSVLogger(str(folder), name="logs")]
    if find_spec("tensorboard") is not None:
        loggers.append(TensorBoardLogger(str(folder), name="tensorboard"))
    elif speak:
        print("tensorboard is not installed: the losses go to CSV files only (pip install tensorboard)", flush=True)
    return loggers


def surroundings(impl: str, device: torch.device) -> dict[str, Any]:
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
