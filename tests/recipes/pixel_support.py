"""Small models, small binary images in three parts, and a file of them that passes for static binarised MNIST."""

import csv
import hashlib

import lightning as L
import numpy as np
import torch

from fastvae.recipes import static_data
from fastvae.recipes.data.batches import binarize_fixed
from fastvae.recipes.pixel_config import PixelVAEConfig
from fastvae.recipes.data.static_mnist import BinaryImages, split_mnist

SMALL_VAE = PixelVAEConfig(
    latent_features=3,
    latent_maps=2,
    prior_layers=2,
    prior_maps=4,
    decoder_maps=2,
    encoder_maps=(6, 8, 8),
    layers=2,
    filter_size=3,
    first_filter_size=5,
    maps=4,
)
VARIANTS = {
    "vector": {},
    "plain": {"network": "plain"},
    "upsampling": {"decoder": "upsampling"},
    "conv": {"decoder": "conv"},
    "map": {"latent": "map", "decoder": "upsampling"},
    "map, conv": {"latent": "map", "decoder": "conv"},
    "map, prior": {"latent": "map", "decoder": "upsampling", "prior": "pixelcnn"},
    "two levels": {"levels": 2, "latent": "map", "decoder": "upsampling", "prior": "pixelcnn"},
    "two levels, conv": {"levels": 2, "latent": "map", "decoder": "conv", "prior": "pixelcnn"},
}


def static_images(tiny):
    """250 training, 50 validation and 60 test images, one binarisation of ``tiny``."""

    def binary(images):
        return (255 * binarize_fixed(images)).numpy().astype(np.uint8).reshape(-1, 28, 28)

    parts = split_mnist(tiny)
    return BinaryImages(binary(parts.x_train), binary(parts.x_valid), binary(parts.x_test), "synthetic")


def packed(images):
    """The arrays of a file of static images."""
    return {
        name: np.packbits(getattr(images, f"x_{name}").reshape(-1, 784) > 0, axis=1)
        for name in ("train", "valid", "test")
    }


def keep(images, folder, monkeypatch):
    """Writes the file into ``folder``; its checksums become the ones that are asked for."""
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / static_data.FILE, **packed(images))
    digests = {
        name: hashlib.sha256(np.unpackbits(rows, axis=1).tobytes()).hexdigest() for name, rows in packed(images).items()
    }
    monkeypatch.setattr(static_data, "BITS_SHA256", digests)


class Crash(L.Callback):
    def on_train_batch_end(self, trainer, module, outputs, batch, index):
        if (trainer.current_epoch, index) == (1, 1):
            raise RuntimeError("power failure")


def metrics(folder):
    with open(folder / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


def assert_same_run(found, expected):
    for name, value in expected.model.state_dict().items():
        assert torch.equal(found.model.state_dict()[name], value), name
    for name, value in vars(expected.figures).items():
        if name != "sampled_images_per_second":
            assert getattr(found.figures, name) == value, name


def is_png(path):
    return path.read_bytes().startswith(b"\x89PNG")
