"""Training of the recipe ``iaf_vae``, with what it leaves behind: checkpoint, losses, pictures and figures."""

from __future__ import annotations

import copy
import csv
import json
import os
import platform
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import lightning as L
import torch
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from .. import backend
from .._version import __version__
from . import RecipeError
from .batches import NOISE, BinarizedImages, JointBatches, binarize_fixed, stream_seed
from .data import Mnist
from .iaf_config import EvaluationConfig, IAFTrainConfig, IAFVAEConfig
from .iaf_vae import IAFVAE
from .pictures import draw_learning_curves, draw_reconstructions, draw_samples
from .trainer import CHECKPOINT, ImageTask, MnistBatches, device_of, fit, read_checkpoint
from .training import load_checkpoint
from .vae import VAE, Evaluation, evaluate

__all__ = ["IAFRun", "load_averaged", "load_model", "train_iaf_vae"]

RECIPE = "iaf_vae"


class IAFTask(ImageTask):
    """Loss with free bits, Adamax, and a moving average of the weights, on which the tests run."""

    config: IAFTrainConfig

    def __init__(self, model: IAFVAE, config: IAFTrainConfig, folder: Path) -> None:
        super().__init__(config, model.config.latent_features, model.config.impl)
        self.save_hyperparameters({"recipe": RECIPE, "model": model.config.as_dict(), "training": asdict(config)})
        self.model, self.folder = model, folder
        self.averaged = copy.deepcopy(model).requires_grad_(False)
        self.move_average = get_ema_multi_avg_fn(config.average_decay)
        self.history: list[dict[str, float]] = []

    def setup(self, stage: str) -> None:
        # A checkpoint is restored later, so that a resumed run keeps its own weights.
        images = cast(Any, self.trainer).datamodule.mnist.x_train
        batches = JointBatches(len(images), self.config.batch_size, self.config.seed)
        self.steps = self.config.epochs * len(batches)
        # Where training will run: an implementation may run on no other device.
        self.model.to(self.trainer.strategy.root_device)
        # All processes take the whole first batch and its noise, and so begin alike.
        x = BinarizedImages(images)[next(iter(batches))].to(next(self.model.parameters()))
        noise = self.joint_noise(x, stream_seed(self.config.seed, NOISE, 0), 0, len(x))
        self.model.initialize_from(x, **noise)
        self.averaged.load_state_dict(self.model.state_dict())
        if self.config.compile:
            self.model.encoder.compile()
            self.model.decoder.compile()

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adamax(self.model.parameters(), lr=self.config.learning_rate)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self.decayed)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def decayed(self, step: int) -> float:
        """Share of the first learning rate: 1, then a geometric decay over the rest of the steps."""
        begin = self.config.decay_from * self.steps
        if step <= begin:
            return 1.0
        passed = min((step - begin) / (self.steps - begin), 1.0)
        return (self.config.final_learning_rate / self.config.learning_rate) ** passed

    def training_step(self, x: Tensor, batch_index: int) -> Tensor:
        several = self.trainer.world_size > 1
        loss, bound, kl = self.model.loss(x, self.config.free_bits, all_processes=several, **self.step_noise(x))
        self.epoch_terms += torch.stack([bound, kl])
        return self.logged(loss, x)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.move_average(list(self.averaged.parameters()), list(self.model.parameters()), 0)

    def validation_step(self, batch: tuple[Tensor, int, int], batch_index: int) -> None:
        x, first, rows = batch
        bound = self.averaged.bound(x, **self.test_noise(x, first, rows)).mean()
        self.log("test_elbo", bound, prog_bar=True, sync_dist=True, batch_size=len(x))

    def on_train_epoch_start(self) -> None:
        super().on_train_epoch_start()
        self.epoch_terms = torch.zeros(2, dtype=torch.float64, device=self.device)
        self.epoch_began = time.perf_counter()

    def on_train_epoch_end(self) -> None:
        loss, (bound, kl) = self.mean_loss(), self.mean_of_epoch(self.epoch_terms)
        found = {"loss": loss, "train_elbo": bound, "train_kl": kl}
        self.log_dict({name: value.float() for name, value in found.items() if name != "loss"})
        if (self.current_epoch + 1) % self.config.check_every == 0:
            found["test_elbo"] = self.trainer.callback_metrics["test_elbo"]
        self.history.append(
            {"epoch": self.current_epoch + 1, "step": self.global_step}
            | {name: value.item() for name, value in found.items()}
            | {
                "learning_rate": self.trainer.optimizers[0].param_groups[0]["lr"],
                "seconds": time.perf_counter() - self.epoch_began,
            }
        )
        if self.global_rank == 0:
            write_metrics(self.history, self.folder / "metrics.csv")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["history"] = self.history

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.history = list(checkpoint["history"])


METRICS = ("epoch", "step", "loss", "train_elbo", "train_kl", "test_elbo", "learning_rate", "seconds")


def write_metrics(history: Sequence[dict[str, float]], path: Path) -> None:
    """One line for each epoch; other processes see the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", newline="", dir=path.parent, suffix=".part", delete=False) as file:
        try:
            writer = csv.DictWriter(file, METRICS)
            writer.writeheader()
            writer.writerows(history)
            file.flush()
            os.replace(file.name, path)
        except BaseException:
            os.unlink(file.name)
            raise


@dataclass(frozen=True)
class IAFRun:
    """What a call of :func:`train_iaf_vae` did; without figures if it stopped before the last epoch."""

    model: IAFVAE
    checkpoint: Path
    epochs: int
    images_per_second: float
    evaluation: Evaluation | None


def train_iaf_vae(
    model_config: IAFVAEConfig,
    config: IAFTrainConfig,
    folder: Path,
    *,
    evaluation: EvaluationConfig | None = None,
    mnist: Mnist | None = None,
    resume: Path | None = None,
    limit_epochs: int | None = None,
    accelerator: str = "auto",
    progress: bool = True,
    callbacks: Sequence[L.Callback] = (),
) -> IAFRun:
    """Trains on dynamically binarised MNIST, evaluates on one fixed binarisation, and draws.

    ``folder`` gets ``config.json``, ``last.ckpt`` (replaced atomically), ``metrics.csv`` with a line for each epoch,
    ``logs`` (CSV) and, where it is installed, ``tensorboard`` with the losses of single steps; after the last epoch
    ``result.json``, ``learning_curves.png``, ``samples.png`` and ``reconstructions.png``.

    Args:
        model_config: the model.
        config: the training.
        folder: where everything goes.
        evaluation: how it is evaluated.
        mnist: the images; looked for by :func:`~fastvae.recipes.data.load_mnist` if None.
        resume: a checkpoint of a run with the same configuration, which is continued after its last epoch.
        limit_epochs: stop after this many epochs of this call; a later call can resume.
        accelerator: ``"auto"``, ``"cpu"``, ``"gpu"`` or ``"cuda"``.
        progress: whether to show progress bars.
        callbacks: further Lightning callbacks.

    Returns:
        The model with averaged weights on the CPU, and the figures.

    Raises:
        RecipeError: MNIST cannot be had, the batch cannot be shared out evenly, the loss is not finite, or the
            checkpoint cannot be read.
    """
    evaluation = EvaluationConfig() if evaluation is None else evaluation
    leads = os.environ.get("RANK", "0") == "0"
    device = device_of(accelerator)
    done = 0 if resume is None else len(read_checkpoint(resume).get("history", ()))
    last = config.epochs if limit_epochs is None else min(config.epochs, done + limit_epochs)
    settings = {"model": model_config.as_dict(), "training": asdict(config), "evaluation": asdict(evaluation)}
    if leads:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps({"recipe": RECIPE} | settings, indent=2) + "\n")
    L.seed_everything(config.seed, verbose=False)
    task, batches = IAFTask(IAFVAE(model_config), config, folder), MnistBatches(config, mnist)
    speed = fit(
        task,
        batches,
        config,
        folder,
        loggers=loggers_of(folder, leads),
        resume=resume,
        accelerator=accelerator,
        progress=progress,
        callbacks=callbacks,
        epochs=last,
        every=config.check_every,
    )
    model, figures = task.averaged.eval(), None
    if leads and last == config.epochs:
        x = binarize_fixed(batches.mnist.x_test)
        figures = evaluate(model.to(device), x, **asdict(evaluation), progress=progress)
        result = asdict(figures) | {
            "recipe": RECIPE,
            "epochs": len(task.history),
            "seed": config.seed,
            "binarization_seed": 0,
            "train_images": len(batches.mnist.x_train),
            "images_per_second": speed.images_per_second if speed.seconds else None,
            "config": settings,
            "versions": {
                "fastvae": __version__,
                "torch": torch.__version__,
                "lightning": L.__version__,
                "python": platform.python_version(),
            },
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine(),
            "implementation": backend.resolve(model_config.impl, torch.empty(0, device=device)),
            "threads": torch.get_num_threads(),
            "mnist": batches.mnist.source,
        }
        (folder / "result.json").write_text(json.dumps(result, indent=2) + "\n")
        draw(model, task.history, x, folder)
    return IAFRun(model.cpu(), folder / CHECKPOINT, len(task.history), speed.images_per_second, figures)


def loggers_of(folder: Path, speak: bool) -> list[Logger]:
    loggers: list[Logger] = [CSVLogger(str(folder), name="logs")]
    if find_spec("tensorboard") is not None:
        loggers.append(TensorBoardLogger(str(folder), name="tensorboard"))
    elif speak:
        print("tensorboard is not installed: the losses go to CSV files only (pip install tensorboard)", flush=True)
    return loggers


def draw(model: IAFVAE, history: Sequence[dict[str, float]], x: Tensor, folder: Path) -> None:
    """The three pictures of a run, drawn on the CPU in float32, wherever and in whatever precision it ran."""
    name = model.config.posterior
    drawn = IAFVAE(replace(model.config, impl="auto"))
    drawn.load_state_dict(model.state_dict())
    draw_samples({name: drawn}, folder / "samples.png")
    draw_reconstructions({name: drawn}, x[:12], folder / "reconstructions.png")
    curves: dict[str, list[tuple[int, float]]] = {
        key: [(int(row["step"]) - 1, row[key]) for row in history if key in row] for key in ("train_elbo", "test_elbo")
    }
    if curves["test_elbo"]:
        steps_per_epoch = int(history[0]["step"])
        draw_learning_curves({name: curves}, steps_per_epoch, folder / "learning_curves.png")


def load_model(path: Path, *, impl: str | None = None) -> VAE | IAFVAE:
    """The model out of a checkpoint of any recipe, on the CPU; of ``iaf_vae`` the one with averaged weights.

    Args:
        path: the checkpoint.
        impl: implementation of the ops; that of the training if None.

    Raises:
        RecipeError: the file cannot be read or is no such checkpoint.
    """
    content = read_checkpoint(path)
    if content["hyper_parameters"].get("recipe") == RECIPE:
        return load_averaged(path, impl=impl, content=content)[0]
    return load_checkpoint(path, impl=impl)[0]


def load_averaged(
    path: Path, *, impl: str | None = None, content: dict[str, Any] | None = None
) -> tuple[IAFVAE, IAFTrainConfig]:
    """The model with averaged weights, and how it was trained, out of a checkpoint of :func:`train_iaf_vae`.

    Args:
        path: the checkpoint.
        impl: implementation of the ops; that of the training if None.
        content: what the checkpoint holds, if it was read already.

    Returns:
        The model on the CPU, and the configuration of its training.

    Raises:
        RecipeError: the file cannot be read or is no such checkpoint.
    """
    content = read_checkpoint(path) if content is None else content
    plain = content["hyper_parameters"]
    if plain.get("recipe") != RECIPE:
        raise RecipeError(f"{path} is no checkpoint of {RECIPE}: its recipe is {plain.get('recipe', 'vae')}")
    chosen = {} if impl is None else {"impl": impl}
    try:
        model, config = IAFVAE(IAFVAEConfig(**plain["model"] | chosen)), IAFTrainConfig(**plain["training"])
        model.load_state_dict({name: content["state_dict"][f"averaged.{name}"] for name in model.state_dict()})
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise RecipeError(f"{path} is no checkpoint of {RECIPE}: {error}") from None
    return model.eval(), config
