"""Training with Lightning: one process or several, started anew or resumed, with the same losses."""

from __future__ import annotations

import csv
import math
import os
import pickle
import time
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint, TQDMProgressBar
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor
from torch.utils.data import DataLoader

from .. import backend
from ..objectives import LinearSchedule
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
from .config import TrainConfig, VAEConfig
from .data import Mnist, load_mnist
from .vae import VAE

__all__ = ["TrainResult", "device_of", "load_checkpoint", "read_history", "train"]

CHECKPOINT = "last.ckpt"
LOG_EVERY = 10


@dataclass(frozen=True)
class TrainResult:
    """The trained model, its checkpoint, the training speed and where the losses were logged."""

    model: VAE
    checkpoint: Path
    images_per_second: float
    log_folder: Path


class VAETask(L.LightningModule):
    """Negative ELBO, optimiser and schedule; noise is a function of (seed, step, row of the joint batch)."""

    def __init__(self, model: VAE, config: TrainConfig) -> None:
        super().__init__()
        self.save_hyperparameters({"model": model.config.as_dict(), "training": asdict(config)})
        self.model = model
        self.config = config

    def setup(self, stage: str) -> None:
        # A checkpoint is restored later, so that a resumed run keeps its own.
        images = torch.from_numpy(cast(Any, self.trainer).datamodule.mnist.x_train)
        self.model.start_at(images.flatten(1).mean(0, dtype=torch.float32) / 255.0)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), lr=self.config.learning_rate, fused=True)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self.one_cycle)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def one_cycle(self, step: int) -> float:
        """Share of the peak learning rate: a linear rise in the first tenth of the steps, then half a cosine."""
        progress = step / int(self.trainer.estimated_stepping_batches)
        return min(progress / 0.1 + 0.01, 1.0) * 0.5 * (1.0 + math.cos(math.pi * min(progress, 1.0)))

    def training_step(self, x: Tensor, batch_index: int) -> Tensor:
        ramp = self.config.kl_warmup * self.trainer.num_training_batches
        beta = LinearSchedule(0.0, 1.0, ramp)(self.global_step + 1) if ramp > 0 else 1.0
        seed, rows = stream_seed(self.config.seed, NOISE, self.global_step), len(x) * self.trainer.world_size
        noise = self.joint_noise(x, seed, self.global_rank * len(x), rows)
        loss = -self.model.bound(x, beta=beta, **noise).mean()
        self.epoch_loss += loss.detach()
        # Lightning's log takes long beside a step of so small a model.
        if (self.global_step + 1) % LOG_EVERY == 0:
            self.log("loss", loss, prog_bar=True, sync_dist=True, batch_size=len(x))
        return loss

    def validation_step(self, batch: tuple[Tensor, int, int], batch_index: int) -> None:
        x, first, rows = batch
        noise = self.joint_noise(x, stream_seed(self.config.seed, EVALUATION, 0), first, rows)
        bound = self.model.bound(x, **noise).mean()
        self.log("test_elbo", bound, prog_bar=True, sync_dist=True, batch_size=len(x))

    def joint_noise(self, x: Tensor, seed: int, first: int, rows: int) -> dict[str, Any]:
        """The noise of ``x``, which begins at row ``first`` of a joint batch of ``rows`` rows."""
        generator = torch.Generator(x.device).manual_seed(seed)
        if backend.resolve(self.model.config.impl, x) != "reference":
            return {"generator": generator, "row_offset": first}
        shape = (rows, self.model.config.latent_features)
        joint = torch.randn(shape, dtype=x.dtype, device=x.device, generator=generator)
        return {"eps": joint[first : first + len(x)]}

    def on_train_epoch_start(self) -> None:
        self.epoch_loss = torch.zeros((), dtype=torch.float64, device=self.device)

    def on_train_epoch_end(self) -> None:
        mean = self.epoch_loss / self.trainer.num_training_batches
        mean = cast(Tensor, self.trainer.strategy.reduce(mean, reduce_op="mean"))
        self.log("train_elbo", -mean.float())
        if not torch.isfinite(mean):
            raise RecipeError(
                f"the loss became {mean.item()} in epoch {self.current_epoch + 1}: try a lower learning rate "
                f"than {self.config.learning_rate}"
            )


class MnistBatches(L.LightningDataModule):
    """Dynamically binarised training images, and the test images under one fixed binarisation."""

    mnist: Mnist

    def __init__(self, config: TrainConfig, mnist: Mnist | None = None) -> None:
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

    def val_dataloader(self) -> DataLoader[tuple[Tensor, int, int]]:
        chunks = FixedChunks(binarize_fixed(self.mnist.x_test), 500, **self.share())
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


def train(
    model_config: VAEConfig,
    config: TrainConfig,
    folder: Path,
    *,
    mnist: Mnist | None = None,
    resume: Path | None = None,
    accelerator: str = "auto",
    progress: bool = True,
    callbacks: Sequence[L.Callback] = (),
) -> TrainResult:
    """Trains a VAE on dynamically binarised MNIST; under ``torchrun``, on the processes that it started.

    After every epoch ``folder / "last.ckpt"`` is replaced, atomically; the losses go to a CSV file in
    ``folder / "logs"``.

    Args:
        model_config: the model.
        config: the training.
        folder: where checkpoint and logs go.
        mnist: the images; looked for by :func:`~fastvae.recipes.data.load_mnist` if None.
        resume: a checkpoint of a run with the same configuration, which is continued after its last epoch.
        accelerator: Lightning's: ``"auto"``, ``"cpu"``, ``"gpu"``.
        progress: whether to show a progress bar.
        callbacks: further Lightning callbacks.

    Returns:
        The trained model on the CPU, the checkpoint, the speed and the folder of the losses.

    Raises:
        RecipeError: MNIST cannot be had, the batch cannot be shared out evenly, or the loss is not finite.
    """
    world_size, local = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    if config.batch_size % world_size:
        raise RecipeError(f"a batch of {config.batch_size} cannot be shared out evenly by {world_size} processes")
    device = device_of(accelerator)
    batches = MnistBatches(config, mnist)
    # After the loss was found finite.
    checkpoints = ModelCheckpoint(
        str(folder), Path(CHECKPOINT).stem, save_on_train_epoch_end=True, enable_version_counter=False
    )
    speed, logger = Speed(), CSVLogger(str(folder), name="logs")
    bar = [ProgressBar(refresh_rate=20)] if progress else []
    trainer = L.Trainer(
        accelerator=device.type,
        devices=local,
        num_nodes=world_size // local,
        strategy="ddp" if world_size > 1 else "auto",
        precision=cast(Any, config.precision),
        max_epochs=config.epochs,
        logger=logger,
        callbacks=[checkpoints, speed, *bar, *callbacks],
        enable_progress_bar=progress,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        log_every_n_steps=LOG_EVERY,
    )
    L.seed_everything(config.seed, verbose=False)
    task = VAETask(VAE(model_config), config)
    with warnings.catch_warnings():
        # The batches are made faster than a worker process could hand them over.
        warnings.filterwarnings("ignore", ".*does not have many workers.*")
        # A second run into a folder replaces its checkpoint, as documented.
        warnings.filterwarnings("ignore", ".*Checkpoint directory .* exists and is not empty.*")
        # Lightning's own use of torch.
        warnings.filterwarnings("ignore", ".*isinstance.treespec, LeafSpec.* is deprecated.*")
        trainer.fit(task, batches, ckpt_path=None if resume is None else str(resume), weights_only=True)
    return TrainResult(
        model=task.model.cpu(),
        checkpoint=folder / CHECKPOINT,
        images_per_second=speed.images / speed.seconds if speed.seconds else math.nan,
        log_folder=Path(logger.log_dir),
    )


def device_of(accelerator: str) -> torch.device:
    """The device that Lightning's ``accelerator`` stands for on this machine.

    Raises:
        RecipeError: it is ``"gpu"`` and there is none.
    """
    if accelerator == "gpu" and not torch.cuda.is_available():
        raise RecipeError("the accelerator must be cpu here: no CUDA device is visible")
    return torch.device("cuda" if accelerator != "cpu" and torch.cuda.is_available() else "cpu")


def load_checkpoint(path: Path, *, impl: str | None = None) -> tuple[VAE, TrainConfig]:
    """The model, and how it was trained, out of a checkpoint of :func:`train`.

    Nothing but tensors and plain data is read from the file.

    Args:
        path: the checkpoint.
        impl: implementation of the posterior's ops; that of the training if None.

    Returns:
        The model on the CPU, and the configuration of its training.

    Raises:
        RecipeError: the file cannot be read or is no such checkpoint.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise RecipeError(f"there is no checkpoint {path}") from None
    except pickle.UnpicklingError:
        # torch's own message advises to load it unsafely.
        raise RecipeError(
            f"{path} cannot be read as a checkpoint: it is none, or holds more than tensors and plain data"
        ) from None
    except (OSError, RuntimeError, EOFError) as error:
        raise RecipeError(f"{path} cannot be read as a checkpoint: {str(error).splitlines()[0]}") from None
    try:
        plain = content["hyper_parameters"]
        chosen = {} if impl is None else {"impl": impl}
        model, config = VAE(VAEConfig(**plain["model"] | chosen)), TrainConfig(**plain["training"])
        weights = {name.removeprefix("model."): value for name, value in content["state_dict"].items()}
        model.load_state_dict(weights)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise RecipeError(f"{path} is no checkpoint of a fastvae recipe: {error}") from None
    return model, config


def read_history(log_folder: Path) -> dict[str, list[tuple[int, float]]]:
    """The logged quantities of a run by name, each as (step, value) pairs."""
    history: dict[str, list[tuple[int, float]]] = {}
    with open(log_folder / "metrics.csv", newline="") as file:
        for row in csv.DictReader(file):
            for name, value in row.items():
                if value and name not in ("step", "epoch"):
                    history.setdefault(name, []).append((int(row["step"]), float(value)))
    return history
