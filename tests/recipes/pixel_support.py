"""Small models, small binary images in three parts, and a file of them that passes for static binarised MNIST."""

import hashlib

import numpy as np

from fastvae.recipes.data import static_mnist
from fastvae.recipes.data.batches import binarize_fixed
from fastvae.recipes.data.static_mnist import BinaryImages, split_mnist
from fastvae.recipes.systems.pixelvae.config import PixelVAEConfig

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
    "two levels, normalised": {
        "levels": 2,
        "latent": "map",
        "decoder": "upsampling",
        "prior": "pixelcnn",
        "weight_norm": True,
    },
    "two levels, conv": {"levels": 2, "latent": "map", "decoder": "conv", "prior": "pixelcnn"},
}


def static_images(tiny):
    """250 training, 50 validation and 60 test images, one binarisation of ``tiny``."""

    def binary(images):
        return (255 * binarize_fixed(images)).numpy().astype(np.uint8).reshape(-1, 28, 28)

    parts = split_mnist(tiny)
    return BinaryImages(binary(parts.x_train), binary(parts.x_valid), binary(parts.x_test), "synthetic")


def pack(images):
    """The arrays of a file of static images."""
    return {
        name: np.packbits(getattr(images, f"x_{name}").reshape(-1, 784) > 0, axis=1)
        for name in ("train", "valid", "test")
    }


def keep(images, folder, monkeypatch):
    """Writes the file into ``folder``; its checksums become the ones that are asked for."""
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / static_mnist.FILE, **pack(images))
    digests = {
        name: hashlib.sha256(np.unpackbits(rows, axis=1).tobytes()).hexdigest() for name, rows in pack(images).items()
    }
    monkeypatch.setattr(static_mnist, "BITS_SHA256", digests)


def is_png(path):
    return path.read_bytes().startswith(b"\x89PNG")
