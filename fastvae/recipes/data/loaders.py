"""Batches of images for Lightning's trainer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import lightning as L
import numpy as np
from torch import Tensor
from torch.utils.data import DataLoader

from ..errors import RecipeError
from .batches import BinarizedImages, FixedChunks, JointBatches, binarize_fixed

__all__ = ["ImageBatches", "Images"]


class Images(Protocol):
    """Images, uint8 ``(N, height, width)``, and where they came from; some have ``x_valid`` or labels, too."""

    @property
    def x_train(self) -> np.ndarray: ...
    @property
    def x_test(self) -> np.ndarray: ...
    @property
    def source(self) -> str: ...


class ImageBatches(L.LightningDataModule):
    """Dynamically binarised training images, and those that are measured, under one fixed binarisation.

    Args:
        config: the training: its ``batch_size``, ``seed`` and ``measured_part``.
        load: looks for the images; its argument is whether to show a progress bar.
        images: the images, if they are there already.
    """

    images: Any

    def __init__(self, config: Any, load: Callable[[bool], Images], images: Images | None = None) -> None:
        super().__init__()
        self.config, self.load = config, load
        if images is not None:
            self.images = images

    def prepare_data(self) -> None:
        if not hasattr(self, "images"):
            self.load(True)

    def setup(self, stage: str) -> None:
        if not hasattr(self, "images"):
            self.images = self.load(False)

    def train_dataloader(self) -> DataLoader[Any]:
        images = self.images.x_train
        if self.config.batch_size > len(images):
            raise RecipeError(f"a batch of {self.config.batch_size} is more than the {len(images)} images")
        batches = JointBatches(len(images), self.config.batch_size, self.config.seed)
        return DataLoader(BinarizedImages(images, **self.share()), batch_size=None, sampler=batches)

    def val_dataloader(self) -> DataLoader[tuple[Tensor, int, int]]:
        measured = getattr(self.images, f"x_{self.config.measured_part}")
        return DataLoader(FixedChunks(binarize_fixed(measured), 500, **self.share()), batch_size=None)

    def share(self) -> dict[str, int]:
        """Which part of every joint batch this process takes."""
        assert self.trainer is not None
        return {"rank": self.trainer.global_rank, "world_size": self.trainer.world_size}
