"""Trains the recipe ``pixelvae`` for a few steps on one process or on those of torchrun.

Usage: pixel_two_processes.py MNIST.npz FOLDER
"""

import sys
from pathlib import Path

import numpy as np

from fastvae.recipes.data.mnist import Mnist
from fastvae.recipes.data.static_mnist import split_mnist
from fastvae.recipes.evaluation.config import EvaluationConfig
from fastvae.recipes.systems.pixelvae.config import PixelVAEConfig, PixelVAETrainConfig
from tests.recipes.training_support import train


def main(npz, folder):
    with np.load(npz) as archive:
        images = split_mnist(Mnist(**archive, source=npz))
    # float64 leaves nothing but the order of summation to differ.
    config = PixelVAETrainConfig(
        data="dynamic", epochs=2, batch_size=50, kl_warmup=5, free_bits=0.05, precision="64-true"
    )
    for levels in (1, 2):
        model = PixelVAEConfig(
            levels,
            latent_features=3,
            latent_maps=2,
            prior_layers=2,
            prior_maps=4,
            decoder_maps=2,
            encoder_maps=(4, 4, 4),
            layers=2,
            filter_size=3,
            maps=4,
        )
        few = EvaluationConfig(samples=2, log_p_images=10)
        train("pixelvae", model, config, Path(folder) / str(levels), evaluation=few, images=images)


if __name__ == "__main__":
    main(*sys.argv[1:])
