"""How ``m1m2`` is trained."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ....distributions import DiagonalGaussian
from ...class_models.semi_supervised import SemiSupervisedVAE
from ...class_models.task import SemiSupervisedTask
from ...data.mnist import cache_folder
from ...data.published_weights import read_m1_weights
from ...data.semi_supervised import SemiSupervisedBatch, SemiSupervisedBatches, prepare_test_images
from ...errors import RecipeError
from ...evaluation.features import IMAGES, Features, features
from ...training.checkpoints import read_checkpoint, system_of, weights_of
from .model import M1M2

__all__ = ["FeatureBatches", "M1M2Task", "read_first_stage"]

PUBLISHED = "nips14_ssl_m1.npz"
# The noise of z1, of each part of a batch.
FEATURE_NOISE = 2


class FeatureImages(Dataset[SemiSupervisedBatch]):
    """The mean and the log-sigma of q(z1 | x), ``(N, 2 D)``, in place of the images of a dataset."""

    def __init__(self, features: Tensor, images: Any) -> None:
        self.features, self.images = features, images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, rows: Any) -> SemiSupervisedBatch:
        share = self.images.images.share
        x_l, x_u = (self.features[part[share(len(part))]] for part in (rows.labelled, rows.unlabelled))
        return SemiSupervisedBatch(x_l, self.images.labels[rows.labelled[share(len(rows.labelled))]], x_u)


class FeatureBatches(SemiSupervisedBatches):
    """Batches of what M1 finds of the training images, each of which it encodes once."""

    def train_dataloader(self) -> DataLoader[Any]:
        loader = super().train_dataloader()
        task = cast(Any, self.trainer).lightning_module
        mean, std, _ = encode_all(task.model, prepare_test_images(self.images.x_train, binarize=False))
        encoded = FeatureImages(torch.cat([mean, std.log()], 1), loader.dataset)
        return DataLoader(encoded, batch_size=None, sampler=loader.sampler)


def encode_all(model: M1M2, x: Tensor) -> Features:
    """Means and standard deviations of q(z1 | x) in all units, of intensities ``(N, pixels)``."""
    return features(model.first, x, active=torch.ones(model.config.m1_latent, dtype=torch.bool))


class M1M2Task(SemiSupervisedTask):
    """The loss of the model M2, for z1 drawn anew from q(z1 | x) at every step."""

    model: M1M2

    def setup(self, stage: str) -> None:
        super().setup(stage)
        trainer = cast(Any, self.trainer)
        # A resumed run has M1's weights in its checkpoint.
        if trainer.ckpt_path is not None:
            return
        path, images = find_first_stage(self.config.m1), trainer.datamodule.images.x_train
        try:
            self.model.start_from(read_first_stage(path), prepare_test_images(images[:IMAGES], binarize=False))
        except RuntimeError as error:
            raise RecipeError(
                f"{path} does not fit: M1 must have --m1-latent {self.model.config.m1_latent}, --m1-hidden "
                f"{' '.join(map(str, self.model.config.m1_hidden))} and {self.model.config.data_features} pixels; "
                + str(error).splitlines()[-1].strip()
            ) from None
        if not self.model.second.active.any():
            raise RecipeError(f"{path} must be an M1 with active units, got one without: train it longer")
        self.model.to(trainer.strategy.root_device)
        x = prepare_test_images(images[self.first_rows()], binarize=False).to(next(self.model.parameters()))
        with torch.no_grad():
            self.start_from(self.model.first.encode(x).mu)

    @property
    def core(self) -> SemiSupervisedVAE:
        return self.model.second

    def take_data(self, x: Tensor, part: int) -> Tensor:
        mu, log_sigma = x.chunk(2, -1)
        noise = self.part_noise(mu, FEATURE_NOISE + part, features=mu.shape[1])
        return DiagonalGaussian(mu, log_sigma, impl=self.impl).rsample_with_log_prob(**noise)[0]


def find_first_stage(name: str) -> Path:
    """The file of M1: the one of this name, or the published one.

    Raises:
        RecipeError: there is none.
    """
    if name:
        return Path(name)
    folders = [Path(given)] if (given := os.environ.get("FASTVAE_DATA")) else []
    for folder in [*folders, cache_folder()]:
        if (folder / PUBLISHED).exists():
            return folder / PUBLISHED
    raise RecipeError(
        f"m1 must name a trained M1 (--m1): a checkpoint of fastvae train m1; without it {PUBLISHED}, the authors' "
        f"weights, must be in {' or '.join(map(str, [*folders, cache_folder()]))}, and is not"
    )


def read_first_stage(path: Path) -> dict[str, Tensor]:
    """The weights of M1 out of a checkpoint, or of the npz file of the authors' weights.

    Raises:
        RecipeError: the file cannot be read, or is of another system.
    """
    if path.suffix == ".npz":
        return read_m1_weights(path)
    content = read_checkpoint(path)
    if (name := system_of(content)) != "m1":
        raise RecipeError(f"m1 must be a checkpoint of m1, got one of {name}: {path}")
    return weights_of(content)
