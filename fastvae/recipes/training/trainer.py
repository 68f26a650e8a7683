"""What the recipes' trainings share: Lightning's trainer on one process or several, batches, noise."""

from __future__ import annotations

import math
import os
import signal
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, cast

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Checkpoint, TQDMProgressBar
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import Tensor
from torch.utils.data import DataLoader

from .. import backend
from . import RecipeError
from .batches import (
    EVALUATION,
    NOISE,
    BinarizedImages,
    FixedChunks,
    JointBatches,
    binarize_fixed,
    stream_seed,
)
from .checkpoints import CHECKPOINT, WholeCheckpoints
from .data import load_mnist
from .files import leads
from .runs import LastCheckpoint, Stopped, stoppable

__all__ = ["ImageTask", "MnistBatches", "Speed", "device_of", "fit"]

LOG_EVERY = 10


class BatchConfig(Protocol):
    """What the trainer and the batches need to know of a recipe's training."""

    @property
    def epochs(self) -> int: ...
    @property
    def batch_size(self) -> int: ...
    @property
    def learning_rate(self) -> float: ...
    @property
    def seed(self) -> int: ...
    @property
    def precision(self) -> str: ...


class ImageTask(L.LightningModule):
    """What tasks share: noise as a function of (seed, step, row of the joint batch), and the mean loss of an epoch."""

    def __init__(self, config: BatchConfig, latent_features: int, impl: str) -> None:
        super().__init__()
        self.config, self.latent_features, self.impl = config, latent_features, impl

    def step_noise(self, x: Tensor) -> dict[str, Any]:
        """The noise of this process's share ``x`` of the batch of the present step."""
        seed, rows = stream_seed(self.config.seed, NOISE, self.global_step), len(x) * self.trainer.world_size
        return self.joint_noise(x, seed, self.global_rank * len(x), rows)

    def test_noise(self, x: Tensor, first: int, rows: int) -> dict[str, Any]:
        """The noise of test images, the same in every test."""
        return self.joint_noise(x, stream_seed(self.config.seed, EVALUATION, 0), first, rows)

    def joint_noise(self, x: Tensor, seed: int, first: int, rows: int) -> dict[str, Any]:
        """The noise of ``x``, which begins at row ``first`` of a joint batch of ``rows`` rows."""
        generator = torch.Generator(x.device).manual_seed(seed)
        if backend.resolve(self.impl, x) != "reference":
            return {"generator": generator, "row_offset": first}
        joint = torch.randn((rows, self.latent_features), dtype=x.dtype, device=x.device, generator=generator)
        return {"eps": joint[first : first + len(x)]}

    def logged(self, loss: Tensor, x: Tensor) -> Tensor:
        """The loss, added to the epoch's and shown now and then."""
        self.epoch_loss += loss.detach()
        # Lightning's log takes long beside a step of a small model.
        if (self.global_step + 1) % LOG_EVERY == 0:
            self.log("loss", loss, prog_bar=True, sync_dist=True, batch_size=len(x))
        return loss

    def on_train_epoch_start(self) -> None:
        self.epoch_loss = torch.zeros((), dtype=torch.float64, device=self.device)

    def mean_loss(self) -> Tensor:
        """The mean loss of the epoch that ends.

        Raises:
            RecipeError: it is not finite.
        """
        return self.found_finite("loss", self.mean_of_epoch(self.epoch_loss))

    def found_finite(self, name: str, value: Tensor) -> Tensor:
        """A quantity of the epoch that ends.

        Raises:
            RecipeError: it is not finite.
        """
        if not torch.isfinite(value):
            raise RecipeError(
                f"the {name} became {value.item()} in epoch {self.current_epoch + 1}: try a lower learning rate "
                f"than {self.config.learning_rate}"
            )
        return value

    def mean_of_epoch(self, total: Tensor) -> Tensor:
        """The mean over steps and processes of what was summed over the steps of an epoch."""
        return cast(Tensor, self.trainer.strategy.reduce(total / self.trainer.num_training_batches, reduce_op="mean"))


class Images(Protocol):
    """Images, uint8 ``(N, height, width)``, and where they came from."""

    @property
    def x_train(self) -> np.ndarray: ...
    @property
    def x_test(self) -> np.ndarray: ...
    @property
    def source(self) -> str: ...


class MnistBatches(L.LightningDataModule):
    """Dynamically binarised training images, and those that are measured, under one fixed binarisation."""

    mnist: Images

    def __init__(self, config: BatchConfig, mnist: Images | None = None) -> None:
        super().__init__()
        self.config = config
        if mnist is not None:
            self.mnist = mnist

    def prepare_data(self) -> None:
        if not hasattr(self, "mnist"):
            load_mnist()

    def setup(self, stage: str) -> None:
        if not hasattr(self, "mnist"):
            self.mnist = load_mnist(progress=False)

    def train_dataloader(self) -> DataLoader[Tensor]:
        images = self.mnist.x_train
        if self.config.batch_size > len(images):
            raise RecipeError(f"a batch of {self.config.batch_size} is more than the {len(images)} images")
        batches = JointBatches(len(images), self.config.batch_size, self.config.seed)
        return DataLoader(BinarizedImages(images, **self.share()), batch_size=None, sampler=batches)

    def measured(self) -> np.ndarray:
        """The images that are measured during training."""
        return self.mnist.x_test

    def val_dataloader(self) -> DataLoader[tuple[Tensor, int, int]]:
        chunks = FixedChunks(binarize_fixed(self.measured()), 500, **self.share())
        return DataLoader(chunks, batch_size=None)

    def share(self) -> dict[str, int]:
        assert self.trainer is not None
        return {"rank": self.trainer.global_rank, "world_size": self.trainer.world_size}


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
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Tensor, batch_idx: int
    ) -> None:
        self.images += len(batch) * trainer.world_size
        if trainer.is_last_batch:
            if batch.is_cuda:
                torch.cuda.synchronize(batch.device)
            self.seconds += time.perf_counter() - self._start

    @property
    def images_per_second(self) -> float:
        return self.images / self.seconds if self.seconds else math.nan


def fit(
    task: L.LightningModule,
    batches: MnistBatches,
    config: BatchConfig,
    folder: Path,
    *,
    loggers: Sequence[Logger],
    resume: Path | None = None,
    accelerator: str = "auto",
    progress: bool = True,
    callbacks: Sequence[L.Callback] = (),
    epochs: int | None = None,
    every: int = 1,
) -> Speed:
    """Runs Lightning's trainer on one process or on those of ``torchrun``; ``folder / "last.ckpt"`` is replaced.

    The caller holds ``folder``, see :func:`~fastvae.recipes.runs.run_folder`. Of ``resume`` everything is read but
    the state of callbacks that write checkpoints, which names files.

    Args:
        task: what is trained.
        batches: its images.
        config: the training.
        folder: where the checkpoint goes.
        loggers: where the losses go.
        resume: a checkpoint to continue from.
        accelerator: Lightning's: ``"auto"``, ``"cpu"``, ``"gpu"``.
        progress: whether to show a progress bar.
        callbacks: further Lightning callbacks.
        epochs: the epoch to stop after; that of ``config`` if None.
        every: epochs from one test and checkpoint to the next; the last epoch has a checkpoint in any case.

    Returns:
        The speed of the training.

    Raises:
        RecipeError: the batch cannot be shared out evenly, ``accelerator`` is not there, ``resume`` does not fit, or
            a file cannot be written; the earlier checkpoint is whole then.
        SystemExit: SIGINT or SIGTERM came; the checkpoint is that after the last whole epoch, the status not 0.
    """
    world_size, local = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    if config.batch_size % world_size:
        raise RecipeError(f"a batch of {config.batch_size} cannot be shared out evenly by {world_size} processes")
    device = device_of(accelerator)
    writer = WholeCheckpoints(each.state_key for each in callbacks if not isinstance(each, Checkpoint))
    last = LastCheckpoint(folder / CHECKPOINT, every, writer)
    speed = Speed()
    bar = [ProgressBar(refresh_rate=20)] if progress else []
    trainer = L.Trainer(
        accelerator=device.type,
        devices=local,
        num_nodes=world_size // local,
        strategy="ddp" if world_size > 1 else "auto",
        precision=cast(Any, config.precision),
        max_epochs=config.epochs if epochs is None else epochs,
        check_val_every_n_epoch=every,
        logger=list(loggers),
        callbacks=[last, speed, *bar, *callbacks],
        plugins=[writer],
        default_root_dir=str(folder),
        enable_progress_bar=progress,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        log_every_n_steps=LOG_EVERY,
    )
    with warnings.catch_warnings(), explained(last, resume), stoppable():
        # The batches are made faster than a worker process could hand them over.
        warnings.filterwarnings("ignore", ".*does not have many workers.*")
        # Lightning's own use of torch.
        warnings.filterwarnings("ignore", ".*isinstance.treespec, LeafSpec.* is deprecated.*")
        trainer.fit(task, batches, ckpt_path=None if resume is None else str(resume), weights_only=True)
        last.finish(trainer)
    return speed


@contextmanager
def explained(last: LastCheckpoint, resume: Path | None) -> Iterator[None]:
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
    """The device that Lightning's ``accelerator`` stands for on this machine.

    Raises:
        RecipeError: it is ``"gpu"`` or ``"cuda"`` and there is none.
    """
    if accelerator in ("gpu", "cuda") and not torch.cuda.is_available():
        raise RecipeError("the accelerator must be cpu here: no CUDA device is visible")
    return torch.device("cuda" if accelerator != "cpu" and torch.cuda.is_available() else "cpu")
