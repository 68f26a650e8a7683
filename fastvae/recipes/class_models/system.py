"""What systems of models with classes share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import RecipeError
from ..evaluation.bounds import spread
from ..labelled_system import LabelledSystem
from ..pictures.grids import draw_grid
from .figures import SemiSupervisedFigures, describe_semi_supervised

__all__ = ["ClassSamples", "SemiSupervisedSystem", "check_labels", "draw_classes", "draw_transfer"]


class ClassSamples:
    """A base beside :class:`~fastvae.recipes.system.System`: its model draws images of given classes."""

    def sample(
        self, model: Any, n: int, *, labels: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        found: Tensor = model.sample(n, labels=check_labels(labels, n, model.config.classes), generator=generator)
        return found


def check_labels(labels: Tensor | None, count: int, classes: int) -> Tensor | None:
    """The classes of images to draw; None stays None.

    Raises:
        RecipeError: they are not as many as the images, or one is no class.
    """
    if labels is None:
        return None
    if len(labels) not in (1, count):
        raise RecipeError(f"labels must be one class, or one for each of the {count} images, got {len(labels)}")
    for label in labels[(labels < 0) | (labels >= classes)][:1].tolist():
        raise RecipeError(f"labels must be 0 ... {classes - 1}, got {label}")
    return labels.expand(count)


class SemiSupervisedSystem(ClassSamples, LabelledSystem):
    """A system whose model is a :class:`~fastvae.recipes.class_models.semi_supervised.SemiSupervisedVAE`."""

    def describe(self, figures: SemiSupervisedFigures) -> list[str]:
        return describe_semi_supervised(figures)

    def draw_run(self, model: Any, images: Any, folder: Path) -> None:
        x, labels = self.test_images(images), torch.from_numpy(images.y_test)
        draw_classes(model, images.classes, folder / "samples.png")
        draw_transfer(model, spread(x, 10), spread(labels, 10), folder / "analogies.png")


def draw_classes(model: Any, classes: int, path: Path, *, count: int = 8, seed: int = 0) -> None:
    """Images of every class, a column for each: the model's ``sample`` with ``labels``."""
    labels = torch.arange(classes).repeat(count)
    images = model.sample(len(labels), labels=labels, generator=torch.Generator().manual_seed(seed))
    draw_grid(images, count, classes, "Samples: p(x | y, z), a column for each class", path)


def draw_transfer(model: Any, x: Tensor, labels: Tensor, path: Path) -> None:
    """Images with labels, and beside each its style under every class: the model's ``transfer``."""
    lines = torch.cat([x[:, None], model.transfer(x, labels)], 1)
    title = "Test image, and its style z under every class y"
    draw_grid(lines.flatten(0, 1), len(x), lines.shape[1], title, path)
