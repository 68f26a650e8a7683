"""One training of any system, with what it leaves behind: checkpoint, losses, figures and pictures."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, ClassVar, Protocol

import lightning as L
import torch

from ..data.loaders import ImageBatches, Images
from ..evaluation.bounds import check_figures
from ..evaluation.units import Units
from ..files import write_json
from ..pictures.curves import IMAGES, draw_learning_curves
from ..pictures.divergences import draw_kl_terms, draw_units
from ..settings import to_plain
from .checkpoints import CHECKPOINT, Named
from .folder import leads, run_folder
from .history import curves_of, describe_machine, make_loggers
from .trainer import Speed, device_of, fit

__all__ = ["Run", "run"]


class Trainable(Named, Protocol):
    """The part of :class:`fastvae.recipes.system.System` that a run uses."""

    layer: ClassVar[str]

    def make_model(self, config: Any) -> Any: ...

    def make_task(self, model: Any, config: Any, folder: Path) -> Any: ...

    def make_batches(self, config: Any, images: Images | None = None) -> ImageBatches: ...

    def evaluate(self, model: Any, images: Any, config: Any, *, seed: int = 0, progress: bool = False) -> Any: ...

    def draw_run(self, model: Any, images: Any, folder: Path) -> None: ...

    def label(self, config: Any) -> str: ...


@dataclass(frozen=True)
class Run:
    """What a training did: the model on the CPU; without figures if epochs are left to do."""

    model: Any
    checkpoint: Path
    epochs: int
    planned_epochs: int
    speed: Speed
    history: list[dict[str, float]]
    figures: Any

    @property
    def images_per_second(self) -> float | None:
        """The speed of the training; None where no epoch was left to train."""
        return self.speed.images_per_second


def run(
    system: Trainable,
    settings: Any,
    folder: Path,
    *,
    images: Images | None = None,
    resume: Path | None = None,
    limit_epochs: int | None = None,
    accelerator: str = "auto",
    progress: bool = True,
    callbacks: Sequence[L.Callback] = (),
    overwrite: bool = False,
    finish: bool = True,
) -> Run:
    """Trains, evaluates and draws a system; under ``torchrun``, on the processes that it started.

    ``folder`` gets ``config.json``, ``last.ckpt``, ``metrics.csv`` with a line for each epoch, ``logs`` (CSV) and,
    where it is installed, ``tensorboard`` with the losses of single steps; after the last epoch
    ``result.json``, ``learning_curves.png``, ``kl_terms.png`` and ``units.png`` where the model has latents, and the
    system's own pictures. Each file is replaced whole or not at all.

    Args:
        system: the system to train.
        settings: its settings, of the class ``system.settings``.
        folder: where everything goes.
        images: the images; looked for by ``system.load_images`` if None.
        resume: a checkpoint of a run with the same settings, which is continued after its last epoch.
        limit_epochs: stop after this many epochs of this call; a later call can resume.
        accelerator: ``"auto"``, ``"cpu"``, ``"gpu"`` or ``"cuda"``.
        progress: whether to show progress bars.
        callbacks: further Lightning callbacks.
        overwrite: whether an unfinished run in ``folder`` may be replaced.
        finish: whether to evaluate and draw after the last epoch.

    Raises:
        RecipeError: the images cannot be had, the batch cannot be shared out evenly, the loss is not finite,
            ``folder`` is in use or has an unfinished run, or ``resume`` cannot be read or is of other settings.
        SystemExit: SIGINT or SIGTERM came; the checkpoint is that after the last whole epoch, the status not 0.
    """
    config, plain = settings.training, settings_to_plain(settings)
    device = device_of(accelerator)
    with run_folder(folder, resume, plain, system=system, overwrite=overwrite) as done:
        last = config.epochs if limit_epochs is None else min(config.epochs, done + limit_epochs)
        if leads():
            write_json(folder / "config.json", {"recipe": system.name} | plain)
        L.seed_everything(config.seed, verbose=False)
        task = system.make_task(system.make_model(settings.model), config, folder)
        batches = system.make_batches(config, images)
        speed = fit(
            task,
            batches,
            config,
            folder,
            loggers=make_loggers(folder, leads()),
            resume=resume,
            accelerator=accelerator,
            progress=progress,
            callbacks=callbacks,
            epochs=last,
        )
        model, figures = task.final_model.eval(), None
        if finish and leads() and last == config.epochs:
            figures = finish_run(system, settings, task, batches.images, speed, folder, device, progress=progress)
        return Run(model.cpu(), folder / CHECKPOINT, len(task.history), config.epochs, speed, task.history, figures)


def finish_run(
    system: Trainable,
    settings: Any,
    task: Any,
    images: Images,
    speed: Speed,
    folder: Path,
    device: torch.device,
    *,
    progress: bool,
) -> Any:
    """Evaluates the trained model on a device, writes ``result.json`` and draws; returns the figures.

    Raises:
        RecipeError: a figure is not finite.
    """
    model = task.final_model.to(device)
    figures = system.evaluate(model, images, settings.evaluation, progress=progress)
    result = asdict(figures) | describe(system.name, settings, task, images, speed)
    write_json(folder / "result.json", result | describe_machine(settings.model.impl, device))
    check_figures(figures)
    draw_all(system, settings, model, task, images, folder)
    units = getattr(figures, "units", None)
    if isinstance(units, Units) and units.number:
        draw_units(units, folder / "units.png", layer=system.layer)
    return figures


def describe(name: str, settings: Any, task: Any, images: Images, speed: Speed) -> dict[str, Any]:
    """The model, the data and the time of a training, for the figures of a run."""
    config = settings.training
    return {
        "recipe": name,
        "epochs": len(task.history),
        "seed": config.seed,
        "binarization_seed": 0,
        "data": name_data(config),
        "train_images": len(images.x_train),
        "images_per_second": speed.images_per_second,
        "seconds": sum(row["seconds"] for row in task.history),
        "parameters": sum(parameter.numel() for parameter in task.final_model.parameters()),
        "config": settings_to_plain(settings),
        "source": images.source,
        "command": shlex.join(sys.argv),
    } | {name: getattr(config, name) for name in ("labels", "label_seed") if hasattr(config, name)}


def name_data(config: Any) -> str:
    """The name of the data of a training."""
    return str(getattr(config, "data", "dynamic"))


def settings_to_plain(settings: Any) -> dict[str, Any]:
    """Each part of a system's settings as plain data."""
    return {part.name: to_plain(getattr(settings, part.name)) for part in fields(settings)}


def draw_all(system: Trainable, settings: Any, model: Any, task: Any, images: Any, folder: Path) -> None:
    """Draws on the CPU in float32, wherever and in whatever precision the model ran."""
    drawn = system.make_model(replace(settings.model, impl="auto")).eval()
    drawn.load_state_dict(model.state_dict())
    system.draw_run(drawn, images, folder)
    found = curves_of(task.history, (task.terms[0], task.measured))
    if not found[task.measured]:
        return
    measured, _, quantity = task.measured.partition("_")
    first = task.history[0]
    steps_per_epoch = int(first["step"] // first["epoch"])
    path = folder / "learning_curves.png"
    named, data = {system.label(settings.model): found}, name_data(settings.training)
    draw_learning_curves(named, steps_per_epoch, path, quantity=quantity, measured=measured, data=data)
    terms = {name: points for name, points in curves_of(task.history, task.measured_kl).items() if points}
    if terms:
        path, of_images = folder / "kl_terms.png", f"{IMAGES[measured]} images"
        draw_kl_terms(terms, steps_per_epoch, path, images=of_images, layer=system.layer)
