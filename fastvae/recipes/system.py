"""A system: a name, settings, and how its model is made, trained, evaluated and drawn."""

from __future__ import annotations

import math
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from .data.batches import binarize_fixed
from .data.loaders import ImageBatches, Images
from .errors import RecipeError
from .evaluation.bounds import spread
from .evaluation.job import ALONE, Job
from .pictures.grids import draw_grid
from .training.checkpoints import check_system, model_of, read_checkpoint, weights_of
from .training.run import Run, run
from .training.task import EpochTask

__all__ = ["System"]


class System:
    """One system of the lecture.

    A subclass defines its own parts. ``settings`` is a frozen dataclass with the fields ``model``, ``training`` and
    ``evaluation``, each a frozen dataclass of settings with defaults. :func:`~fastvae.recipes.training.run.run` trains
    a system with Lightning.

    A model is a module with ``config``. Evaluation calls the methods of
    :class:`~fastvae.recipes.evaluation.bounds.LatentModel`.
    """

    name: ClassVar[str]
    settings: ClassVar[Any]
    # Whether checkpoints that name no system are of this one.
    has_unnamed_checkpoints: ClassVar[bool] = False
    # What pictures call a layer of latents.
    layer: ClassVar[str] = "layer"

    # The parts of the system

    def make_model(self, config: Any) -> nn.Module:
        """A new model of its settings."""
        raise NotImplementedError

    def make_task(self, model: Any, config: Any, folder: Path) -> EpochTask:
        """The loss, the optimiser, and what is measured during training."""
        raise NotImplementedError

    def load_images(self, config: Any, *, progress: bool) -> Images:
        """The images, and labels where it needs some, of the settings of a training."""
        raise NotImplementedError

    def make_batches(self, config: Any, images: Images | None = None) -> ImageBatches:
        """Batches of the images, which are looked for if they are None."""
        return ImageBatches(config, lambda progress: self.load_images(config, progress=progress), images)

    def run(self, settings: Any, folder: Path, **options: Any) -> Run:
        """Trains, evaluates and draws: :func:`~fastvae.recipes.training.run.run`."""
        return run(self, settings, folder, **options)

    # The uses of a trained model

    def evaluate(
        self, model: Any, images: Any, config: Any, *, seed: int = 0, progress: bool = False, job: Job = ALONE
    ) -> Any:
        """The figures of a model, a dataclass.

        Args:
            model: the model; its device is used.
            images: those of :meth:`load_images`.
            config: the settings of the evaluation.
            seed: of binarisation and noise.
            progress: whether to show progress bars.
            job: the processes that share the evaluation, and the file that an interrupted one goes on from.
        """
        raise NotImplementedError

    def describe(self, figures: Any) -> list[str]:
        """The figures in lines for the terminal."""
        raise NotImplementedError

    def draw(self, model: Any, x: Tensor, folder: Path) -> None:
        """Draws a model on the CPU, given binary test images ``(N, pixels)``, into a folder."""
        raise NotImplementedError

    def draw_run(self, model: Any, images: Any, folder: Path) -> None:
        """Draws a model on the CPU after its training, given the images of :meth:`load_images`, into a folder."""
        self.draw(model, self.test_images(images), folder)

    def test_images(self, images: Any, seed: int = 0) -> Tensor:
        """The test images as the system takes them, ``(N, pixels)``; the seed is that of a binarisation."""
        return binarize_fixed(images.x_test, seed)

    def label(self, config: Any) -> str:
        """The name of a curve of a model with these settings."""
        return self.name

    def sample(
        self, model: Any, n: int, *, labels: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """Intensities ``(n, pixels)`` of new images, of given classes where the model has classes."""
        if labels is not None:
            raise RecipeError(f"{self.name} has no classes to draw images of")
        if not hasattr(model, "sample"):
            raise RecipeError(f"{self.name} has no distribution of images to draw new ones from")
        found: Tensor = model.sample(n, generator=generator)
        return found

    def reconstruct(self, model: Any, x: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """Intensities ``(N, pixels)`` of binary images ``(N, pixels)`` after their way through the latents."""
        self.check_reconstruct(model)
        found: Tensor = model.reconstruct(x, generator=generator)
        return found

    def check_reconstruct(self, model: Any) -> None:
        """Checks that images can be reconstructed.

        Raises:
            RecipeError: the model has no latents of images.
        """
        if not hasattr(model, "reconstruct"):
            raise RecipeError(f"{self.name} has no latents to reconstruct images from")

    def draw_samples(self, model: Any, path: Path, *, count: int, labels: Tensor | None = None, seed: int = 0) -> None:
        """Draws new images of a model on the CPU in a grid."""
        images = self.sample(model, count, labels=labels, generator=torch.Generator().manual_seed(seed))
        columns = math.ceil(math.sqrt(count))
        rows = math.ceil(count / columns)
        blank = images.new_zeros(rows * columns - count, images.shape[1])
        draw_grid(torch.cat([images, blank]), rows, columns, f"Samples of {self.label(model.config)}", path)

    def draw_reconstructions(
        self, model: Any, settings: Any, path: Path, *, count: int, seed: int = 0, images: Images | None = None
    ) -> None:
        """Draws test images, evenly spread, above their reconstructions; with None it loads the images."""
        self.check_reconstruct(model)
        images = self.load_images(settings.training, progress=True) if images is None else images
        x = spread(self.test_images(images), count)
        found = self.reconstruct(model, x, generator=torch.Generator().manual_seed(seed))
        draw_grid(torch.cat([x, found]), 2, len(x), "Test images, and their reconstructions", path)

    # Checkpoints

    def to_settings(self, plain: dict[str, Any]) -> Any:
        """The settings of plain data, as checkpoints and ``config.json`` have them; what is absent has its default.

        Raises:
            KeyError, TypeError, ValueError: they are none of this system.
        """
        known = {part.name for part in fields(self.settings)}
        defaults = self.settings()
        parts = {name: type(getattr(defaults, name))(**plain[name]) for name in known & plain.keys()}
        return replace(defaults, **parts)

    def load(self, path: Path, *, impl: str | None = None, content: dict[str, Any] | None = None) -> tuple[Any, Any]:
        """A trained model on the CPU, and its settings, out of a checkpoint.

        Nothing but tensors and plain data is read from the file.

        Args:
            path: the checkpoint.
            impl: implementation of the ops; that of the training if None.
            content: the content of the checkpoint, if the caller has read it.

        Raises:
            RecipeError: the file cannot be read or is no checkpoint of this system.
        """
        content = read_checkpoint(path) if content is None else content
        check_system(content, self, path)
        plain = content["hyper_parameters"]
        try:
            settings = self.to_settings({name: plain[name] for name in ("model", "training")})
            if impl is not None:
                settings = replace(settings, model=replace(settings.model, impl=impl))
            sizes = self.list_sizes(plain["model"])
            model = model_of(lambda: self.make_model(settings.model), sizes, weights_of(content))
        except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
            raise RecipeError(f"{path} is no checkpoint of {self.name}: {error}") from None
        return model.eval(), settings

    def import_weights(self, path: Path) -> tuple[Any, dict[str, Tensor]]:
        """The settings of a model, and its state dict, out of a file of weights of the authors of its paper.

        Raises:
            RecipeError: the file cannot be read, or the system knows no such files.
        """
        raise RecipeError(f"{self.name} reads no weights of others")

    def list_sizes(self, plain: dict[str, Any]) -> dict[str, Any]:
        """The part of a model's settings that sets how many weights it needs at least."""
        return plain

    def read_settings(self, path: Path) -> Any:
        """The settings of a checkpoint, which may be of an unfinished run.

        Raises:
            RecipeError: the file cannot be read or is no checkpoint of this system.
        """
        return self.load(path)[1]
