"""The Frey faces: 1965 frames of one face, with intensities."""

from __future__ import annotations

import hashlib
import io
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import DataLoader

from ..errors import RecipeError
from ..files import read_bounded
from .batches import BinarizedImages, FixedChunks, JointBatches
from .loaders import ImageBatches
from .mnist import cache_folder
from .semi_supervised import prepare_test_images

__all__ = ["PIXELS", "FreyBatches", "FreyFaces", "load_frey"]

FILE, FRAMES, TRAINING, HEIGHT, WIDTH = "freyfaces.npy", 1965, 1600, 28, 20
PIXELS = HEIGHT * WIDTH
SHA256 = "2438ba4f0d2a6bd8bac43de756141eaa33c8d248dd613d464bdb1210d9b7af78"
MOST_BYTES = 1 << 21


@dataclass(frozen=True)
class FreyFaces:
    """1600 frames for training and the last 365 for tests, uint8 ``(N, 28, 20)``, and where they came from."""

    x_train: np.ndarray
    x_test: np.ndarray
    source: str


def load_frey() -> FreyFaces:
    """The Frey faces out of ``freyfaces.npy``, uint8 ``(1965, 560)``, in ``$FASTVAE_DATA`` or in the user's cache.

    Raises:
        RecipeError: there is no such file, or it holds anything else.
    """
    given, cache = os.environ.get("FASTVAE_DATA"), cache_folder()
    if given and not Path(given).is_dir():
        raise RecipeError(f"FASTVAE_DATA must name a folder; {given!r} is none")
    folders = [Path(given), cache] if given else [cache]
    for folder in folders:
        if (folder / FILE).exists():
            return read_frey(folder / FILE)
    raise RecipeError(
        f"the Frey faces were not found: there is no {FILE} in {' or in '.join(map(str, folders))}. What to do: put "
        f"{FILE} there, uint8 of shape ({FRAMES}, {PIXELS}), a frame of {HEIGHT} x {WIDTH} in each row. There is no "
        "place that it is fetched from."
    )


def read_frey(path: Path) -> FreyFaces:
    content = read_bounded(path, MOST_BYTES, "the Frey faces")
    try:
        frames = np.load(io.BytesIO(content), allow_pickle=False)
    except Exception as error:
        said = " ".join(str(error).split()) or type(error).__name__
        raise RecipeError(f"{path} cannot be read ({said}); delete it or replace it by a sound copy") from None
    digest = hashlib.sha256(frames.tobytes()).hexdigest()
    if frames.dtype != np.uint8 or frames.shape != (FRAMES, PIXELS) or digest != SHA256:
        raise RecipeError(
            f"{path} is corrupted or not the Frey faces: {frames.dtype} of shape {frames.shape} has SHA-256 {digest}, "
            f"expected {SHA256}; delete it or replace it by a sound copy"
        )
    frames = frames.reshape(-1, HEIGHT, WIDTH)
    return FreyFaces(frames[:TRAINING], frames[TRAINING:], str(path))


class Intensities(BinarizedImages):
    """The intensities of a joint batch's images, of which a process takes its rows."""

    def __getitem__(self, batch: tuple[Tensor, int]) -> Tensor:
        rows, _ = batch
        return self.images[rows[self.share(len(rows))]].float() / 255.0


class FreyBatches(ImageBatches):
    """Batches of intensities."""

    def train_dataloader(self) -> DataLoader[Any]:
        images, config = self.images.x_train, self.config
        if config.batch_size > len(images):
            raise RecipeError(f"a batch of {config.batch_size} is more than the {len(images)} images")
        batches = JointBatches(len(images), config.batch_size, config.seed)
        return DataLoader(Intensities(images, **self.share()), batch_size=None, sampler=batches)

    def val_dataloader(self) -> DataLoader[tuple[Tensor, int, int]]:
        x = prepare_test_images(self.images.x_test, binarize=False)
        return DataLoader(FixedChunks(x, 500, **self.share()), batch_size=None)
