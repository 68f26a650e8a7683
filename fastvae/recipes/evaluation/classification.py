"""Figures of classifiers: the error with its standard error, and the confusion of classes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..data.batches import EVALUATION, stream_seed
from ..data.noise import Noise
from ..settings import check_whole
from .bounds import identify
from .chunks import Chunk
from .job import ALONE, Job

__all__ = ["ClassConfig", "ClassFigures", "count_classes", "describe_classes", "measure_classes", "predict_classes"]

# The pass of an evaluation, and its number beside those of scan.py.
CLASSES, NUMBER = "classes", 3


@dataclass(frozen=True)
class ClassConfig:
    """How a classifier is evaluated, as plain data.

    Args:
        image_chunk: images at a time.

    Raises:
        ValueError: a number is below 1.
    """

    image_chunk: int = 500

    def __post_init__(self) -> None:
        check_whole(self, image_chunk=1)


@dataclass(frozen=True)
class ClassFigures:
    """How well test images are classified.

    Args:
        error: share of wrong classes, in %.
        standard_error: of the error, in %.
        test_images: how many there are.
        confusion: how many images of each class, a row for each, are taken for each class.
    """

    error: float
    standard_error: float
    test_images: int
    confusion: tuple[tuple[int, ...], ...]


def predict_classes(
    model: Any, x: Tensor, seed: int = 0, *, chunk: int = 0, first: int = 0, rows: int | None = None
) -> Tensor:
    """The classes int64 ``(N,)`` of images ``(N, pixels)``.

    A model has ``predict(x, *, noise)``, which returns classes and takes a :class:`~fastvae.recipes.data.noise.Noise`,
    or ``class_logits(x)``, which returns ``(N, classes)``.

    Args:
        model: the model.
        x: the images, on its device.
        seed: of the noise that ``predict`` draws.
        chunk: of images whose noise is that of one draw; a number for each.
        first: the number of the first image in its chunk.
        rows: images of the chunk; N if None.
    """
    with torch.no_grad():
        if not hasattr(model, "predict"):
            return model.class_logits(x).argmax(1)
        generator = torch.Generator(x.device).manual_seed(stream_seed(seed, EVALUATION, chunk, NUMBER))
        found: Tensor = model.predict(x, noise=Noise(generator, first, rows))
        return found


def measure_classes(
    model: Any,
    x: Tensor,
    labels: np.ndarray,
    classes: int,
    *,
    image_chunk: int = 500,
    seed: int = 0,
    progress: bool = False,
    job: Job = ALONE,
) -> ClassFigures:
    """Classifies test images, in the memory of one chunk of them.

    Args:
        model: as of :func:`predict_classes`; its device is used.
        x: images ``(N, pixels)``.
        labels: their classes, ``(N,)``.
        classes: how many there are.
        image_chunk: images at a time.
        seed: of the model's noise.
        progress: whether to show a progress bar.
        job: the processes that share the chunks, and the file that keeps those that are done.

    Raises:
        RecipeError: the file of ``job`` is damaged, of another evaluation, or cannot be written.
    """
    from tqdm import tqdm

    ledger = job.open(lambda: {"seed": seed, "image_chunk": image_chunk} | identify(model, x, None))
    parameter, firsts = next(model.parameters()), range(0, len(x), image_chunk)
    done, together = ledger.find(CLASSES), job.processes.count

    def measure(first: int) -> Chunk:
        found = predict_classes(model, x[first : first + image_chunk].to(parameter), seed, chunk=first)
        column = found.double().cpu()[:, None]
        return Chunk(column, column[:, :0])

    left = [first for first in firsts if first not in done]
    with tqdm(total=len(left), desc="classes", unit="chunk", disable=not progress, leave=False) as bar:
        for index in range(0, len(left), together):
            ledger.share(CLASSES, left[index : index + together], measure)
            bar.update(together)
    return count_classes(torch.cat([done[first].bound[:, 0] for first in firsts]).long().numpy(), labels, classes)


def count_classes(found: np.ndarray, labels: np.ndarray, classes: int) -> ClassFigures:
    """The figures of classes ``found``, ``(N,)``, of images whose classes are ``labels``."""
    confusion = np.zeros((classes, classes), np.int64)
    np.add.at(confusion, (labels, found), 1)
    wrong = 1.0 - float(np.trace(confusion)) / len(labels)
    return ClassFigures(
        error=100.0 * wrong,
        standard_error=100.0 * math.sqrt(wrong * (1.0 - wrong) / len(labels)),
        test_images=len(labels),
        confusion=tuple(tuple(row) for row in confusion.tolist()),
    )


def describe_classes(figures: ClassFigures) -> list[str]:
    """The error in a line for the terminal."""
    return [
        f"test error {figures.error:.2f} % ({figures.test_images} images), standard error {figures.standard_error:.2f}"
    ]
