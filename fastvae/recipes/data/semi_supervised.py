"""Batches of few labelled images beside many unlabelled ones, which do not depend on the number of processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from ..errors import RecipeError
from .batches import BinarizedImages, FixedChunks, JointBatches, binarize_fixed, stream_seed
from .labelled import LabelledParts
from .loaders import ImageBatches

__all__ = [
    "LabelledChunks",
    "SemiSupervisedBatch",
    "SemiSupervisedBatches",
    "SemiSupervisedImages",
    "SemiSupervisedRows",
    "check_pixels",
    "prepare_test_images",
]

# Streams beside those of batches.py.
LABELLED_ORDER, LABELLED_BINARIZATION = 16, 17


class SemiSupervisedBatch(NamedTuple):
    """What a training step gets: ``x_l, y_l, x_u = batch``.

    Args:
        x_l: labelled images, float32 ``(N_l, pixels)``.
        y_l: their labels, int64 ``(N_l,)``.
        x_u: unlabelled images, float32 ``(N_u, pixels)``.
    """

    x_l: Tensor
    y_l: Tensor
    x_u: Tensor


class Rows(NamedTuple):
    """The rows of a joint batch, and the seeds of their binarisation."""

    labelled: Tensor
    labelled_seed: int
    unlabelled: Tensor
    unlabelled_seed: int


class SemiSupervisedRows(Sampler[Rows]):
    """The joint batches of one epoch, which passes over the unlabelled images once.

    Labelled images come all in every batch if ``labelled_batch_size`` is at least their number. Otherwise the batches
    take them in turn out of passes over them, each in a new order. Rows are functions of seed and step alone.

    Args:
        labelled: rows of the labelled images.
        size: how many unlabelled images there are: all training images.
        batch_size: of the unlabelled images.
        labelled_batch_size: of the labelled ones.
        seed: of the orders.
    """

    def __init__(self, labelled: np.ndarray, size: int, batch_size: int, labelled_batch_size: int, seed: int) -> None:
        self.labelled = torch.from_numpy(np.asarray(labelled, np.int64))
        self.labelled_batch_size = min(labelled_batch_size, len(self.labelled))
        self.unlabelled, self.seed = JointBatches(size, batch_size, seed), seed

    def set_epoch(self, epoch: int) -> None:
        self.unlabelled.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self.unlabelled)

    def __iter__(self) -> Iterator[Rows]:
        first = self.unlabelled.epoch * len(self)
        for step, (rows, seed) in enumerate(self.unlabelled, first):
            yield Rows(self.take(step), stream_seed(self.seed, LABELLED_BINARIZATION, step), rows, seed)

    def take(self, step: int) -> Tensor:
        """The labelled rows of a step."""
        count, size = self.labelled_batch_size, len(self.labelled)
        if count == size:
            return self.labelled
        position, left, found = step * count, count, []
        while left:
            of_pass, begin = divmod(position, size)
            generator = torch.Generator().manual_seed(stream_seed(self.seed, LABELLED_ORDER, of_pass))
            rows = torch.randperm(size, generator=generator)[begin : begin + left]
            found.append(self.labelled[rows])
            position, left = position + len(rows), left - len(rows)
        return torch.cat(found)


class SemiSupervisedImages(Dataset[SemiSupervisedBatch]):
    """A process takes its rows of every joint batch, of the labelled images and of the unlabelled ones.

    Args:
        images: uint8 ``(N, ...)``.
        labels: ``(N,)``.
        binarize: whether every batch is drawn anew from the intensities; without it, the intensities.
        rank: of this process.
        world_size: how many processes there are.
    """

    def __init__(
        self, images: np.ndarray, labels: np.ndarray, *, binarize: bool, rank: int = 0, world_size: int = 1
    ) -> None:
        self.images = BinarizedImages(images, rank=rank, world_size=world_size)
        self.labels, self.binarize = torch.from_numpy(labels), binarize

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, rows: Rows) -> SemiSupervisedBatch:
        x_l = self.draw(rows.labelled, rows.labelled_seed)
        y_l = self.labels[rows.labelled[self.images.share(len(rows.labelled))]]
        return SemiSupervisedBatch(x_l, y_l, self.draw(rows.unlabelled, rows.unlabelled_seed))

    def draw(self, rows: Tensor, seed: int) -> Tensor:
        if self.binarize:
            return self.images[rows, seed]
        return to_intensities(self.images.images[rows[self.images.share(len(rows))]])


class LabelledChunks(Dataset[tuple[Tensor, Tensor, int, int]]):
    """As :class:`~fastvae.recipes.data.batches.FixedChunks`, with labels: ``x, y, first, rows``."""

    def __init__(self, x: Tensor, labels: np.ndarray, most: int, *, rank: int = 0, world_size: int = 1) -> None:
        self.chunks, self.labels = FixedChunks(x, most, rank=rank, world_size=world_size), torch.from_numpy(labels)

    def __len__(self) -> int:
        return len(self.chunks)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, int, int]:
        x, first, rows = self.chunks[index]
        return x, self.labels[first : first + len(x)], first, rows


class SemiSupervisedBatches(ImageBatches):
    """Training batches :class:`SemiSupervisedBatch`, and test images with labels: ``x, y, first, rows``.

    Args:
        config: the training, a :class:`~fastvae.recipes.training.labelled_config.LabelledTrainConfig`.
        load: looks for the images; its argument is whether to show a progress bar.
        images: the images, if they are there already.
        binarize: whether the images are binarised, at every presentation in training and once for the tests.
    """

    images: LabelledParts

    def __init__(
        self,
        config: Any,
        load: Callable[[bool], LabelledParts],
        images: LabelledParts | None = None,
        *,
        binarize: bool = True,
    ) -> None:
        super().__init__(config, load, images)
        self.binarize = binarize

    def train_dataloader(self) -> DataLoader[Any]:
        config, train, share = self.config, self.images.train, self.share()
        if config.batch_size > len(train):
            raise RecipeError(f"a batch of {config.batch_size} is more than the {len(train)} images")
        try:
            labelled = train.draw_labelled(config.labels, config.label_seed)
        except ValueError as error:
            raise RecipeError(str(error)) from None
        rows = SemiSupervisedRows(labelled, len(train), config.batch_size, config.labelled_batch_size, config.seed)
        if rows.labelled_batch_size % share["world_size"]:
            raise RecipeError(
                f"{rows.labelled_batch_size} labelled images in a batch cannot be shared out evenly by "
                f"{share['world_size']} processes: choose another --labelled-batch-size"
            )
        images = SemiSupervisedImages(train.images, train.labels, binarize=self.binarize, **share)
        return DataLoader(images, batch_size=None, sampler=rows)

    def val_dataloader(self) -> DataLoader[Any]:
        test = self.images.test
        x = prepare_test_images(test.images, self.binarize)
        return DataLoader(LabelledChunks(x, test.labels, 500, **self.share()), batch_size=None)


def prepare_test_images(images: np.ndarray, binarize: bool, seed: int = 0) -> Tensor:
    """Test images, float32 ``(N, pixels)``: under one fixed binarisation, or their intensities."""
    return binarize_fixed(images, seed) if binarize else to_intensities(torch.from_numpy(images).flatten(1))


def to_intensities(images: Tensor) -> Tensor:
    """Pixels 0 ... 255 as float32 in [0, 1]; what is no image, and so float32, as it is."""
    return images if images.is_floating_point() else images.float() / 255.0


def check_pixels(data_features: int, images: LabelledParts) -> None:
    """Checks that a model fits the images.

    Raises:
        RecipeError: ``data_features`` is not the number of their pixels.
    """
    if data_features != images.train.pixels:
        raise RecipeError(
            f"data_features must be {images.train.pixels}, the pixels of an image of {images.source}, got "
            f"{data_features}: --data-features {images.train.pixels}"
        )
