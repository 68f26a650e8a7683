"""Training with Lightning: one process or several, started anew or resumed, with the same losses."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import lightning as L
import torch
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor

from ..objectives import LinearSchedule
from . import RecipeError
from .checkpoints import CHECKPOINT, model_of, read_checkpoint
from .config import TrainConfig, VAEConfig
from .data import Mnist
from .runs import run_folder
from .trainer import ImageTask, MnistBatches, fit
from .vae import VAE

__all__ = ["TrainResult", "load_checkpoint", "read_history", "train"]


@dataclass(frozen=True)
class TrainResult:
    """The trained model, its checkpoint, the training speed and where the losses were logged."""

    model: VAE
    checkpoint: Path
    images_per_second: float
    log_folder: Path


class VAETask(ImageTask):
    """Negative ELBO, optimiser and schedule."""

    config: TrainConfig

    def __init__(self, model: VAE, config: TrainConfig) -> None:
        super().__init__(config, model.config.latent_features, model.config.impl)
        self.save_hyperparameters({"model": model.config.as_dict(), "training": asdict(config)})
        self.model = model

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
        return self.logged(-self.model.bound(x, beta=beta, **self.step_noise(x)).mean(), x)

    def validation_step(self, batch: tuple[Tensor, int, int], batch_index: int) -> None:
        x, first, rows = batch
        bound = self.model.bound(x, **self.test_noise(x, first, rows)).mean()
        self.log("test_elbo", bound, prog_bar=True, sync_dist=True, batch_size=len(x))

    def on_train_epoch_end(self) -> None:
        self.log("train_elbo", -self.mean_loss().float())
        self.found_finite("test_elbo", self.trainer.callback_metrics["test_elbo"])


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
    overwrite: bool = False,
) -> TrainResult:
    """Trains a VAE on dynamically binarised MNIST; under ``torchrun``, on the processes that it started.

    After every epoch ``folder / "last.ckpt"`` is replaced, whole or not at all; the losses go to a CSV file in
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
        overwrite: whether an unfinished run in ``folder`` may be replaced.

    Returns:
        The trained model on the CPU, the checkpoint, the speed and the folder of the losses.

    Raises:
        RecipeError: MNIST cannot be had, the batch cannot be shared out evenly, the loss is not finite, ``folder``
            is in use or has an unfinished run, or ``resume`` is of another configuration.
        SystemExit: SIGINT or SIGTERM came; the checkpoint is that after the last whole epoch, the status not 0.
    """
    settings = {"model": model_config.as_dict(), "training": asdict(config)}
    with run_folder(folder, resume, settings, overwrite=overwrite):
        logger = CSVLogger(str(folder), name="logs")
        L.seed_everything(config.seed, verbose=False)
        task = VAETask(VAE(model_config), config)
        speed = fit(
            task,
            MnistBatches(config, mnist),
            config,
            folder,
            loggers=[logger],
            resume=resume,
            accelerator=accelerator,
            progress=progress,
            callbacks=callbacks,
        )
        return TrainResult(
            model=task.model.cpu(),
            checkpoint=folder / CHECKPOINT,
            images_per_second=speed.images_per_second,
            log_folder=Path(logger.log_dir),
        )


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
    content = read_checkpoint(path)
    try:
        plain = content["hyper_parameters"]
        chosen = {} if impl is None else {"impl": impl}
        model_config, config = VAEConfig(**plain["model"] | chosen), TrainConfig(**plain["training"])
        weights = {name.removeprefix("model."): value for name, value in content["state_dict"].items()}
        model = model_of(lambda: VAE(model_config), plain["model"], weights)
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
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
