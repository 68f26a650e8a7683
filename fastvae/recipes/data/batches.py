"""Binarised batches that do not depend on the number of processes.

Order, binarisation and noise are functions of (seed, epoch or step) alone: a run can resume at any epoch, and
N processes that take a batch's rows between them see what one process with the whole batch sees.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

__all__ = ["BinarizedImages", "FixedChunks", "JointBatches", "binarize_fixed", "stream_seed"]

ORDER, BINARIZATION, NOISE, EVALUATION = range(4)


def stream_seed(seed: int, stream: int, *step: int) -> int:
    """A 64-bit seed that is unrelated to those of other streams and steps; a step is one number or several."""
    return int(np.random.SeedSequence([seed, stream, *step]).generate_state(1, np.uint64)[0])


def binarize_fixed(images: np.ndarray, seed: int = 0) -> Tensor:
    """One Bernoulli sample of the intensities: float32 ``(N, pixels)``, a function of images and seed alone.

    numpy freezes the stream of ``RandomState``, so that figures on this binarisation compare across versions.
    """
    intensities = images.reshape(len(images), -1) / 255.0
    uniform = np.random.RandomState(seed).random_sample(intensities.shape)
    return torch.from_numpy((uniform < intensities).astype(np.float32))


class JointBatches(Sampler[tuple[Tensor, int]]):
    """The joint batches of one epoch, as (row indices, seed of the binarisation).

    Every epoch is shuffled afresh; the rows that do not fill a last batch are left out of it.
    """

    def __init__(self, size: int, batch_size: int, seed: int) -> None:
        self.size, self.batch_size, self.seed = size, batch_size, seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.size // self.batch_size

    def __iter__(self) -> Iterator[tuple[Tensor, int]]:
        generator = torch.Generator().manual_seed(stream_seed(self.seed, ORDER, self.epoch))
        order = torch.randperm(self.size, generator=generator)
        for index in range(len(self)):
            rows = order[index * self.batch_size : (index + 1) * self.batch_size]
            yield rows, stream_seed(self.seed, BINARIZATION, self.epoch * len(self) + index)


class BinarizedImages(Dataset[Tensor]):
    """Dynamically binarised images: every joint batch is drawn anew, a process takes its rows of it."""

    def __init__(self, images: np.ndarray, *, rank: int = 0, world_size: int = 1) -> None:
        self.images = torch.from_numpy(images.reshape(len(images), -1))
        self.rank, self.world_size = rank, world_size

    def __len__(self) -> int:
        return len(self.images)

    def share(self, rows: int) -> slice:
        """The part of the rows of a joint batch that this process takes."""
        local = rows // self.world_size
        return slice(self.rank * local, (self.rank + 1) * local)

    def __getitem__(self, batch: tuple[Tensor, int]) -> Tensor:
        rows, seed = batch
        mine = self.share(len(rows))
        generator = torch.Generator().manual_seed(seed)
        shape = (len(rows), self.images.shape[1])
        # A uniform integer of 0 ... 254 is below a pixel with probability pixel / 255 exactly.
        level = torch.randint(0, 255, shape, dtype=torch.uint8, generator=generator)
        return (level[mine] < self.images[rows[mine]]).float()


class FixedChunks(Dataset[tuple[Tensor, int, int]]):
    """Every ``world_size``-th chunk of fixed rows, with the index of its first row and the number of all rows."""

    def __init__(self, x: Tensor, most: int, *, rank: int = 0, world_size: int = 1) -> None:
        self.x = x
        # Small enough that every process has a chunk.
        self.chunk = max(1, min(most, len(x) // world_size))
        self.starts = range(0, len(x), self.chunk)[rank::world_size]

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: int) -> tuple[Tensor, int, int]:
        start = self.starts[index]
        return self.x[start : start + self.chunk], start, len(self.x)
