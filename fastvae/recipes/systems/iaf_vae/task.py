"""Training of the recipe ``iaf_vae``, with what it leaves behind: checkpoint, losses, pictures and figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import lightning as L
import torch
from torch import Tensor

from ..nn import shared_first_batch
from . import RecipeError
from .averaged import AveragedTask, averaged_weights, check_figures, curves, loggers_of, surroundings
from .batches import NOISE, BinarizedImages, JointBatches, binarize_fixed, stream_seed
from .checkpoints import CHECKPOINT, model_of, read_checkpoint
from .data import Mnist
from .files import leads, write_json
from .iaf_config import EvaluationConfig, IAFTrainConfig, IAFVAEConfig
from .iaf_vae import IAFVAE
from .pictures import draw_learning_curves, draw_reconstructions, draw_samples
from .runs import run_folder
from .trainer import MnistBatches, device_of, fit
from .training import load_checkpoint
from .vae import VAE, Evaluation, evaluate

__all__ = ["IAFRun", "load_averaged", "load_model", "train_iaf_vae"]

RECIPE = "iaf_vae"


class IAFTask(AveragedTask):
    """Loss with free bits, Adamax, and a moving average of the weights, on which the tests run."""

    config: IAFTrainConfig
    model: IAFVAE
    averaged: IAFVAE

    def __init__(self, model: IAFVAE, config: IAFTrainConfig, folder: Path) -> None:
        super().__init__(
            RECIPE,
            model,
            config,
            folder,
            latent_features=model.config.latent_features,
            terms=["train_elbo", "train_kl"],
            measured="test_elbo",
        )

    def setup(self, stage: str) -> None:
        # A checkpoint is restored later, so that a resumed run keeps its own weights.
        super().setup(stage)
        images = cast(Any, self.trainer).datamodule.mnist.x_train
        batches = JointBatches(len(images), self.config.batch_size, self.config.seed)
        # Where training will run: an implementation may run on no other device.
        self.model.to(self.trainer.strategy.root_device)
        # All processes take the whole first batch and its noise.
        x = BinarizedImages(images)[next(iter(batches))].to(next(self.model.parameters()))
        noise = self.joint_noise(x, stream_seed(self.config.seed, NOISE, 0), 0, len(x))
        with shared_first_batch():
            self.model.initialize_from(x, **noise)
        self.averaged.load_state_dict(self.model.state_dict())
        if self.config.compile:
            self.model.encoder.compile()
            self.model.decoder.compile()

    def optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.Adamax(self.model.parameters(), lr=self.config.learning_rate)

    def training_step(self, x: Tensor, batch_index: int) -> Tensor:
        several = self.trainer.world_size > 1
        loss, bound, kl = self.model.loss(x, self.config.free_bits, all_processes=several, **self.step_noise(x))
        self.epoch_terms += torch.stack([bound, kl])
        return self.logged(loss, x)

    def validation_step(self, batch: tuple[Tensor, int, int], batch_index: int) -> None:
        x, first, rows = batch
        bound = self.averaged.bound(x, **self.test_noise(x, first, rows)).mean()
        self.log("test_elbo", bound, prog_bar=True, sync_dist=True, batch_size=len(x))


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

    ``folder`` gets ``config.json``, ``last.ckpt``, ``metrics.csv`` with a line for each epoch, ``logs`` (CSV) and,
    where it is installed, ``tensorboard`` with the losses of single steps; after the last epoch
    ``result.json``, ``learning_curves.png``, ``samples.png`` and ``reconstructions.png``. Each file is
    replaced whole or not at all.

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
        RecipeError: MNIST cannot be had, the batch cannot be shared out evenly, the loss is not finite,
            ``folder`` is in use or has an unfinished run, or ``resume`` cannot be read or is of another configuration.
        SystemExit: SIGINT or SIGTERM came; the checkpoint is that after the last whole epoch, the status not 0.
    """
    evaluation = EvaluationConfig() if evaluation is None else evaluation
    device = device_of(accelerator)
    settings = {"model": model_config.as_dict(), "training": asdict(config), "evaluation": asdict(evaluation)}
    with run_folder(folder, resume, settings, recipe=RECIPE) as done:
        last = config.epochs if limit_epochs is None else min(config.epochs, done + limit_epochs)
        if leads():
            write_json(folder / "config.json", {"recipe": RECIPE} | settings)
        L.seed_everything(config.seed, verbose=False)
        task, batches = IAFTask(IAFVAE(model_config), config, folder), MnistBatches(config, mnist)
        speed = fit(
            task,
            batches,
            config,
            folder,
            loggers=loggers_of(folder, leads()),
            resume=resume,
            accelerator=accelerator,
            progress=progress,
            callbacks=callbacks,
            epochs=last,
            every=config.check_every,
        )
        model, figures = task.averaged.eval(), None
        if leads() and last == config.epochs:
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
                "mnist": batches.mnist.source,
            }
            result |= surroundings(model_config.impl, device)
            write_json(folder / "result.json", result)
            check_figures(figures)
            draw(model, task.history, x, folder)
        return IAFRun(model.cpu(), folder / CHECKPOINT, len(task.history), speed.images_per_second, figures)


def draw(model: IAFVAE, history: Sequence[dict[str, float]], x: Tensor, folder: Path) -> None:
    """The three pictures of a run, drawn on the CPU in float32, wherever and in whatever precision it ran."""
    name = model.config.posterior
    drawn = IAFVAE(replace(model.config, impl="auto"))
    drawn.load_state_dict(model.state_dict())
    draw_samples({name: drawn}, folder / "samples.png")
    draw_reconstructions({name: drawn}, x[:12], folder / "reconstructions.png")
    found = curves(history, ("train_elbo", "test_elbo"))
    if found["test_elbo"]:
        steps_per_epoch = int(history[0]["step"])
        draw_learning_curves({name: found}, steps_per_epoch, folder / "learning_curves.png")


def load_model(path: Path, *, impl: str | None = None) -> VAE | IAFVAE:
    """The model out of a checkpoint of any recipe, on the CPU; of ``iaf_vae`` the one with averaged weights.

    Args:
        path: the checkpoint.
        impl: implementation of the ops; that of the training if None.

    Raises:
        RecipeError: the file cannot be read or is no such checkpoint.
    """
    content = read_checkpoint(path)
    recipe = content["hyper_parameters"].get("recipe", "vae")
    if recipe == RECIPE:
        return load_averaged(path, impl=impl, content=content)[0]
    if recipe != "vae":
        raise RecipeError(f"{path} is of {recipe}, whose figures fastvae train {recipe} --resume {path} computes again")
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
        model_config, config = IAFVAEConfig(**plain["model"] | chosen), IAFTrainConfig(**plain["training"])
        model = model_of(lambda: IAFVAE(model_config), plain["model"], averaged_weights(content))
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise RecipeError(f"{path} is no checkpoint of {RECIPE}: {error}") from None
    return model.eval(), config
