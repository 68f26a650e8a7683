"""What a signal leaves of a run: a checkpoint after the last whole epoch, and an exit that says how to go on."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Checkpoint

from .checkpoints import KEEP, WholeCheckpoints

__all__ = ["LastCheckpoint", "Stopped", "stop_on_signals"]

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(SystemExit):
    """SIGINT or SIGTERM came during a training; the exit status is 128 and the signal's number."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.signal = signal.Signals(number)


class LastCheckpoint(Checkpoint):
    """Replaces a checkpoint every few epochs, and on a signal by the state after the last epoch.

    It keeps no state in checkpoints and removes no files.

    Args:
        path: the checkpoint.
        every: epochs from one to the next.
        writer: writes the trainer's checkpoints.
    """

    def __init__(self, path: Path, every: int, writer: WholeCheckpoints) -> None:
        self.path, self.every, self.writer = path, every, writer
        # Whether a step is done: before that, a failure is one of the resumed state.
        self.started, self.epoch = False, -1

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        check_optimizers(trainer)
        # In place of Lightning's own handler, which first speaks to the other processes, in the midst of a step.
        catch_signals()
        trainer.save_checkpoint(self.path, weights_only=False, storage_options=KEEP)

    def on_train_batch_end(self, *arguments: Any) -> None:
        self.started = True

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # The task's own hook, which found the loss finite, comes before that of a Checkpoint.
        done = trainer.current_epoch + 1
        if done % self.every:
            trainer.save_checkpoint(self.path, weights_only=False, storage_options=KEEP)
        else:
            trainer.save_checkpoint(self.path, weights_only=False)
            self.epoch = done

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        if isinstance(exception, SystemExit | KeyboardInterrupt) and trainer.is_global_zero:
            self.writer.write_kept(self.path)

    def finish(self, trainer: L.Trainer) -> None:
        """Writes the checkpoint unless the last epoch did."""
        if self.epoch != trainer.current_epoch:
            trainer.save_checkpoint(self.path, weights_only=False)


def check_optimizers(trainer: L.Trainer) -> None:
    """Checks that optimisers have the options they were made with, and remember tensors like their parameters.

    Their kernels read as many elements as a parameter has.

    Raises:
        ValueError: they have not; only a foreign checkpoint brings such a state.
    """
    for optimizer in trainer.optimizers:
        for group in optimizer.param_groups:
            for name, value in optimizer.defaults.items():
                if name != "lr" and group.get(name, value) != value:
                    raise ValueError(f"{name} of the optimiser is {group[name]}, not {value}")
        for parameter, state in optimizer.state.items():
            for name, value in state.items():
                if not isinstance(value, torch.Tensor):
                    raise ValueError(f"{name} of the optimiser is no tensor")
                if value.dim() and value.shape != parameter.shape:
                    raise ValueError(f"{name} of the optimiser is {tuple(value.shape)}, not {tuple(parameter.shape)}")
                if not (value.is_contiguous() and value.is_floating_point()):
                    raise ValueError(f"{name} of the optimiser is not contiguous, or of integers")


def catch_signals() -> dict[signal.Signals, Any]:
    """Lets signals raise :class:`Stopped`, the first of them only; returns the handlers that it replaces."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    before = {number: signal.getsignal(number) for number in SIGNALS}
    # A run in the background may be meant to outlive an interrupt.
    caught = {number: handler for number, handler in before.items() if handler is not signal.SIG_IGN}
    for number in caught:
        signal.signal(number, stop)
    return caught


def stop(number: int, frame: Any) -> None:
    # A second one would keep the first from writing the checkpoint.
    for each in SIGNALS:
        signal.signal(each, signal.SIG_IGN)
    raise Stopped(number)


@contextmanager
def stop_on_signals() -> Iterator[None]:
    """SIGINT and SIGTERM raise :class:`Stopped` in the block, in the main thread."""
    before = catch_signals()
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
