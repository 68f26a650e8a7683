"""One run in its folder: what it may replace, what it continues, and what a signal leaves of it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Checkpoint

from . import RecipeError
from .checkpoints import CHECKPOINT, KEEP, WholeCheckpoints, epochs_done, read_checkpoint
from .files import held, leads

__all__ = ["LastCheckpoint", "Stopped", "run_folder", "stoppable"]

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def run_folder(
    folder: Path, resume: Path | None, settings: Mapping[str, Any], *, recipe: str = "vae", overwrite: bool = False
) -> Iterator[int]:
    """Holds the folder of a run, and looks at what the run continues and what it would replace.

    Args:
        folder: where everything of the run goes; it is made if it is absent.
        resume: a checkpoint to continue from.
        settings: ``"model"`` and ``"training"`` of this run, as plain data.
        recipe: its name.
        overwrite: whether an unfinished run in ``folder`` may be replaced.

    Returns:
        The epochs that are done.

    Raises:
        RecipeError: another run holds the folder, which cannot be written or has an unfinished run that ``resume``
            does not continue; or ``resume`` cannot be read or is of other settings.
    """
    with held(folder):
        done = 0 if resume is None else check_continued(resume, settings, recipe)
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


def check_continued(path: Path, settings: Mapping[str, Any], recipe: str) -> int:
    """Checks that a checkpoint is of a run with these settings; returns the epochs that are done.

    Raises:
        RecipeError: it is not, or cannot be read.
    """
    content = read_checkpoint(path)
    plain = content["hyper_parameters"]
    if plain.get("recipe", "vae") != recipe:
        raise RecipeError(f"{path} is no checkpoint of {recipe}: its recipe is {plain.get('recipe', 'vae')}")
    for part in ("model", "training"):
        theirs = plain.get(part)
        if not isinstance(theirs, dict):
            raise RecipeError(f"{path} is no checkpoint of {recipe}: it has no settings of its {part}")
        for name, value in settings[part].items():
            if name in theirs and listed(theirs[name]) != listed(value):
                raise RecipeError(f"{path} is of a run with {name} = {theirs[name]!r}; it cannot become {value!r}")
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


def listed(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


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
        writer: what the trainer writes checkpoints with.
    """

    def __init__(self, path: Path, every: int, writer: WholeCheckpoints) -> None:
        self.path, self.every, self.writer = path, every, writer
        # Whether a step is done, so that what fails is not the state that was resumed.
        self.started, self.epoch = False, -1

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        check_optimizers(trainer)
        # Over Lightning's own, which first speaks to the other processes, in the midst of a step.
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
        """Writes what the last epoch did not."""
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
    """Lets signals raise :class:`Stopped`, the first of them only; returns the handlers that did something else."""
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
def stoppable() -> Iterator[None]:
    """SIGINT and SIGTERM raise :class:`Stopped` in the block, in the main thread."""
    before = catch_signals()
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
