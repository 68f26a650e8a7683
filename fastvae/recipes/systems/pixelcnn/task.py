"""What the trainings of ``pixelcnn`` and ``pixelvae`` share: images, task, checkpoints, what a run leaves behind."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar, cast

import lightning as L
import numpy as np
import torch
from torch import Tensor, nn

from ..objectives import LinearSchedule, free_bits
from . import RecipeError
from .averaged import AveragedTask, averaged_weights, check_figures, curves, loggers_of, surroundings
from .batches import binarize_fixed
from .checkpoints import CHECKPOINT, model_of, read_checkpoint
from .files import leads, write_json
from .pictures import draw_learning_curves
from .pixel_config import PixelTrainConfig
from .runs import run_folder
from .static_data import BinaryImages, load_binary_images
from .trainer import MnistBatches, device_of, fit

__all__ = ["PixelBatches", "PixelModel", "PixelRun", "PixelTask", "load_pixels", "train_pixels"]


class PixelModel(Protocol):
    """What the task asks of a model, a module.

    ``quantity`` is ``"log_p"`` or ``"elbo"``, ``kl_names`` names the KL terms, ``noise_features`` is the number of
    normals that one image takes; ``measure`` returns log p(x | z), ``(N,)``, and the KL terms, ``(N, len(kl_names))``.
    """

    config: Any
    quantity: str

    @property
    def kl_names(self) -> tuple[str, ...]: ...
    @property
    def noise_features(self) -> int: ...
    def measure(self, x: Tensor, **noise: Any) -> tuple[Tensor, Tensor]: ...


ModelT = TypeVar("ModelT", bound=nn.Module)


class PixelBatches(MnistBatches):
    """Binarised training images, and those of validation, or of the test if the former are trained on."""

    mnist: BinaryImages
    config: PixelTrainConfig

    def __init__(self, config: PixelTrainConfig, images: BinaryImages | None = None) -> None:
        super().__init__(config)
        self.given = images

    def prepare_data(self) -> None:
        if self.given is None:
            load_binary_images(self.config.data)

    def setup(self, stage: str) -> None:
        if not hasattr(self, "mnist"):
            images = load_binary_images(self.config.data, progress=False) if self.given is None else self.given
            self.mnist = images.with_validation() if self.config.add_validation else images

    def measured(self) -> np.ndarray:
        return self.mnist.x_test if self.config.add_validation else self.mnist.x_valid


class PixelTask(AveragedTask):
    r"""The loss :math:`-\log p(x \mid z) + \beta D_{KL}`, free bits, Adam, and a :math:`\beta` that rises at first."""

    def __init__(self, recipe: str, model: PixelModel, config: PixelTrainConfig, folder: Path) -> None:
        super().__init__(
            recipe,
            cast(nn.Module, model),
            config,
            folder,
            latent_features=model.noise_features,
            terms=[f"train_{name}" for name in (model.quantity, *model.kl_names)],
            measured=f"{config.measured}_{model.quantity}",
        )
        warmup = getattr(config, "kl_warmup", 0)
        self.kl_weight = LinearSchedule(0.0, 1.0, warmup) if warmup else None
        self.free_nats = getattr(config, "free_bits", 0.0)

    def training_step(self, x: Tensor, batch_index: int) -> Tensor:
        log_p_x, kl = cast(PixelModel, self.model).measure(x, **self.step_noise(x))
        penalty = kl.sum(-1).mean()
        beta = 1.0 if self.kl_weight is None else self.kl_weight(self.global_step + 1)
        with torch.no_grad():
            self.epoch_terms += torch.cat([(log_p_x.mean() - penalty)[None], kl.mean(0)])
        # Without free bits no floor: estimates of a divergence may be negative.
        if self.free_nats:
            penalty = free_bits(kl, self.free_nats, all_processes=self.trainer.world_size > 1)
        return self.logged(beta * penalty - log_p_x.mean(), x)

    def validation_step(self, batch: tuple[Tensor, int, int], batch_index: int) -> None:
        x, first, rows = batch
        log_p_x, kl = cast(PixelModel, self.averaged).measure(x, **self.test_noise(x, first, rows))
        bound = (log_p_x - kl.sum(-1)).mean()
        self.log(self.measured, bound, prog_bar=True, sync_dist=True, batch_size=len(x))


@dataclass(frozen=True)
class PixelRun(Generic[ModelT]):
    """What a training did: the model with averaged weights, on the CPU; without figures if epochs are left to do."""

    model: ModelT
    checkpoint: Path
    epochs: int
    images_per_second: float
    figures: Any


def train_pixels(
    recipe: str,
    make: Callable[..., ModelT],
    config: PixelTrainConfig,
    folder: Path,
    *,
    evaluate: Callable[[ModelT, BinaryImages], Any],
    draw: Callable[[ModelT, Tensor, Path], None],
    settings: dict[str, Any],
    images: BinaryImages | None = None,
    resume: Path | None = None,
    limit_epochs: int | None = None,
    accelerator: str = "auto",
    progress: bool = True,
    callbacks: Sequence[L.Callback] = (),
) -> PixelRun[ModelT]:
    """Trains, evaluates and draws.

    ``folder`` gets ``config.json``, ``last.ckpt``, ``metrics.csv`` with a line for each epoch, ``logs`` (CSV) and,
    where it is installed, ``tensorboard`` with the losses of single steps; after the last epoch
    ``result.json``, ``learning_curves.png`` and what ``draw`` draws. Each file is replaced whole or not at all.

    Args:
        recipe: its name.
        make: makes the model; with ``impl="auto"`` as argument, one for the pictures.
        config: the training.
        folder: where everything goes.
        evaluate: figures, a dataclass, of the model on the device of the training.
        draw: pictures by a model on the CPU, of binary test images ``(N, pixels)``, into a folder.
        settings: the configuration, as plain data.
        images: the images; looked for by :func:`~fastvae.recipes.static_data.load_binary_images` if None.
        resume: a checkpoint of a run with the same configuration, which is continued after its last epoch.
        limit_epochs: stop after this many epochs of this call; a later call can resume.
        accelerator: ``"auto"``, ``"cpu"``, ``"gpu"`` or ``"cuda"``.
        progress: whether to show progress bars.
        callbacks: further Lightning callbacks.

    Raises:
        RecipeError: the images cannot be had, the batch cannot be shared out evenly, the loss is not finite,
            ``folder`` is in use or has an unfinished run, or ``resume`` cannot be read or is of another configuration.
        SystemExit: SIGINT or SIGTERM came; the checkpoint is that after the last whole epoch, the status not 0.
    """
    device = device_of(accelerator)
    with run_folder(folder, resume, settings, recipe=recipe) as done:
        last = config.epochs if limit_epochs is None else min(config.epochs, done + limit_epochs)
        if leads():
            write_json(folder / "config.json", {"recipe": recipe} | settings)
        L.seed_everything(config.seed, verbose=False)
        task, batches = PixelTask(recipe, cast(Any, make()), config, folder), PixelBatches(config, images)
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
        model, figures = cast(ModelT, task.averaged.eval()), None
        if leads() and last == config.epochs:
            figures = evaluate(model.to(device), batches.mnist)
            result = asdict(figures) | {
                "recipe": recipe,
                "epochs": len(task.history),
                "seed": config.seed,
                "data": config.data,
                "train_images": len(batches.mnist.x_train),
                "images_per_second": speed.images_per_second if speed.seconds else None,
                "parameters": sum(parameter.numel() for parameter in model.parameters()),
                "config": settings,
                "source": batches.mnist.source,
            }
            result |= surroundings(cast(Any, model).config.impl, device)
            write_json(folder / "result.json", result)
            check_figures(figures)
            # On the CPU in float32, wherever and in whatever precision it ran.
            drawn = make(impl="auto").eval()
            drawn.load_state_dict(model.state_dict())
            draw(drawn, binarize_fixed(batches.mnist.x_test), folder)
            draw_history(task.history, cast(PixelModel, task.model).quantity, config, recipe, folder)
        return PixelRun(model.cpu(), folder / CHECKPOINT, len(task.history), speed.images_per_second, figures)


def draw_history(
    history: Sequence[dict[str, float]], quantity: str, config: PixelTrainConfig, name: str, folder: Path
) -> None:
    names = (f"train_{quantity}", f"{config.measured}_{quantity}")
    found = curves(history, names)
    if found[names[1]]:
        steps_per_epoch = int(history[0]["step"])
        path = folder / "learning_curves.png"
        draw_learning_curves({name: found}, steps_per_epoch, path, quantity=quantity, measured=config.measured)


def load_pixels(
    path: Path,
    recipe: str,
    make: Callable[[dict[str, Any]], ModelT],
    training: Callable[..., PixelTrainConfig],
) -> tuple[ModelT, Any]:
    """The model with averaged weights, on the CPU, and how it was trained, out of a checkpoint.

    Args:
        path: the checkpoint.
        recipe: which it must be of.
        make: makes the model from its configuration as plain data.
        training: the class of the training's configuration.

    Raises:
        RecipeError: the file cannot be read or is no such checkpoint.
    """
    content = read_checkpoint(path)
    plain = content["hyper_parameters"]
    if plain.get("recipe") != recipe:
        raise RecipeError(f"{path} is no checkpoint of {recipe}: its recipe is {plain.get('recipe', 'vae')}")
    try:
        config = training(**plain["training"])
        model = model_of(lambda: make(plain["model"]), plain["model"], averaged_weights(content))
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise RecipeError(f"{path} is no checkpoint of {recipe}: {error}") from None
    return model.eval(), config
