"""Lightning's trainer on one process or several, with one checkpoint that is always whole."""

from __future__ import annotations

import os
import signal
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import lightning as L
import torch
from lightning.pytorch.callbacks import Checkpoint, TQDMProgressBar
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import Tensor

from ..errors import RecipeError
from .checkpoints import CHECKPOINT, WholeCheckpoints
from .config import TrainConfig
from .folder import leads
from .interrupts import LastCheckpoint, Stopped, stop_on_signals
from .task import LOG_EVERY

__all__ = ["Speed", "device_of", "fit"]


class ProgressBar(TQDMProgressBar):
    """One line for the running epoch, without the version number of the log folder."""

    def get_metrics(self, trainer: L.Trainer, task: L.LightningModule) -> dict[str, Any]:
        return {name: value for name, value in super().get_metrics(trainer, task).items() if name != "v_num"}


class Speed(L.Callback):
    """Training images per second, without validation and checkpoints."""

    def __init__(self) -> None:
        self.images, self.seconds, self._start = 0, 0.0, 0.0

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._start = time.perf_counter()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        images = batch if isinstance(batch, Tensor) else getattr(batch, "x_u", batch[0])
        self.images += len(images) * trainer.world_size
        if trainer.is_last_batch:
            if images.is_cuda:
                torch.cuda.synchronize(images.device)
            self.seconds += time.perf_counter() - self._start

    @property
    def images_per_second(self) -> float | None:
        """None where no epoch was left to train."""
        return self.images / self.seconds if self.seconds else None


def fit(
    task: L.LightningModule,
    batches: L.LightningDataModule,
    config: TrainConfig,
    folder: Path,
    *,
    loggers: Sequence[Logger],
    resume: Path | None = None,
    accelerator: str = "auto",
    progress: bool = True,
    callbacks: Sequence[L.Callback] = (),
    epochs: int | None = None,
) -> Speed:
    """Runs Lightning's trainer on one process or on those of ``torchrun``; ``folder / "last.ckpt"`` is replaced.

    The caller holds ``folder``, see :func:`~fastvae.recipes.training.folder.run_folder`. It reads all of ``resume`` but
    the state of callbacks that write checkpoints, since that state names files.

    Args:
        task: the task to train.
        batches: its images.
        config: the training; the last epoch has a checkpoint in any case.
        folder: where the checkpoint goes.
        loggers: where the losses go.
        resume: a checkpoint to continue from.
        accelerator: Lightning's: ``"auto"``, ``"cpu"``, ``"gpu"``.
        progress: whether to show a progress bar.
        callbacks: further Lightning callbacks.
        epochs: the epoch to stop after; that of ``config`` if None.

    Returns:
        The speed of the training.

    Raises:
        RecipeError: the batch cannot be shared out evenly, ``accelerator`` is not there, ``resume`` does not fit, or
            a file cannot be written; the earlier checkpoint is whole then.
        SystemExit: SIGINT or SIGTERM came; the checkpoint is that after the last whole epoch, the status not 0.
    """
    writer = WholeCheckpoints(each.state_key for each in callbacks if not isinstance(each, Checkpoint))
    last, speed = LastCheckpoint(folder / CHECKPOINT, config.check_every, writer), Speed()
    bar = [ProgressBar(refresh_rate=20)] if progress else []
    trainer = make_trainer(
        config,
        accelerator,
        max_epochs=config.epochs if epochs is None else epochs,
        logger=list(loggers),
        callbacks=[last, speed, *bar, *callbacks],
        plugins=[writer],
        default_root_dir=str(folder),
        enable_progress_bar=progress,
    )
    with warnings.catch_warnings(), explain_end(last, resume), stop_on_signals():
        # The batches are made faster than a worker process could hand them over.
        warnings.filterwarnings("ignore", ".*does not have many workers.*")
        # Lightning's own use of torch.
        warnings.filterwarnings("ignore", ".*isinstance.treespec, LeafSpec.* is deprecated.*")
        trainer.fit(task, batches, ckpt_path=None if resume is None else str(resume), weights_only=True)
        last.finish(trainer)
    return speed


def make_trainer(config: TrainConfig, accelerator: str, **options: Any) -> L.Trainer:
    """Lightning's trainer for one process or for those of ``torchrun``; it gets ``options``, too.

    Raises:
        RecipeError: the batch cannot be shared out evenly, or ``accelerator`` is not there.
    """
    world_size, local = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    if config.batch_size % world_size:
        raise RecipeError(f"a batch of {config.batch_size} cannot be shared out evenly by {world_size} processes")
    return L.Trainer(
        accelerator=device_of(accelerator).type,
        devices=local,
        num_nodes=world_size // local,
        strategy="ddp" if world_size > 1 else "auto",
        precision=cast(Any, config.precision),
        check_val_every_n_epoch=config.check_every,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        log_every_n_steps=LOG_EVERY,
        **options,
    )


@contextmanager
def explain_end(last: LastCheckpoint, resume: Path | None) -> Iterator[None]:
    """Turns what can end a training early into an error, or an exit, that says how to go on."""
    try:
        yield
    except SystemExit as stop:
        # Lightning's own exception has the status of success.
        stop = Stopped(signal.SIGTERM) if isinstance(stop, SIGTERMException) else stop
        if leads() and isinstance(stop, Stopped):
            way = f"; continue with --resume {last.path}" if last.path.exists() else ""
            print(f"fastvae: stopped by {stop.signal.name}{way}", file=sys.stderr, flush=True)
        raise stop from None
    except RecipeError:
        raise
    except OSError as error:
        raise RecipeError(
            f"the training stopped: {error}; the last checkpoint, if there is one, is whole: {last.path}"
        ) from error
    except Exception as error:
        if resume is None or last.started:
            raise
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise RecipeError(f"{resume} cannot be continued: {reason}") from error


def device_of(accelerator: str) -> torch.device:
    """The device that Lightning's ``accelerator`` names on this machine.

    Raises:
        RecipeError: it is ``"gpu"`` or ``"cuda"`` and there is none.
    """
    if accelerator in ("gpu", "cuda") and not torch.cuda.is_available():
        raise RecipeError("the accelerator must be cpu here: no CUDA device is visible")
    return torch.device("cuda" if accelerator != "cpu" and torch.cuda.is_available() else "cpu")
