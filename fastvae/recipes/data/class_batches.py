"""Batches of images with the label of each, which do not depend on the number of processes."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..errors import RecipeError
from .batches import BinarizedImages, JointBatches, binarize_fixed
from .loaders import ImageBatches
from .semi_supervised import LabelledChunks

__all__ = ["ClassBatches", "ClassImages"]


class ClassImages(Dataset[tuple[Tensor, Tensor]]):
    """As :class:`~fastvae.recipes.data.batches.BinarizedImages`, with the labels after the images."""

    def __init__(self, images: np.ndarray, labels: np.ndarray, *, rank: int = 0, world_size: int = 1) -> None:
        self.images = BinarizedImages(images, rank=rank, world_size=world_size)
        self.labels = torch.from_numpy(labels).long()

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, batch: tuple[Tensor, int]) -> tuple[Tensor, Tensor]:
        rows, _ = batch
        return self.images[batch], self.labels[rows[self.images.share(len(rows))]]


class ClassBatches(ImageBatches):
    """Training batches ``x, y``, and those that are measured: ``x, y, first, rows``."""

    def train_dataloader(self) -> DataLoader[Any]:
        images, labels = self.images.x_train, self.images.y_train
        if self.config.batch_size > len(images):
            raise RecipeError(f"a batch of {self.config.batch_size} is more than the {len(images)} images")
        batches = JointBatches(len(images), self.config.batch_size, self.config.seed)
        return DataLoader(ClassImages(images, labels, **self.share()), batch_size=None, sampler=batches)

    def val_dataloader(self) -> DataLoader[Any]:
        x, labels = (getattr(self.images, f"{kind}_{self.config.measured_part}") for kind in "xy")
        chunks = LabelledChunks(binarize_fixed(x), labels.astype(np.int64), 500, **self.share())
        return DataLoader(chunks, batch_size=None)
