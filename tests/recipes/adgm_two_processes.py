"""Trains the recipe ``adgm`` for a few steps on one process or on those of torchrun.

Usage: adgm_two_processes.py MNIST.npz FOLDER
"""

import sys
from pathlib import Path

import numpy as np

from fastvae.recipes.data.labelled import split_labelled
from fastvae.recipes.data.mnist import Mnist
from fastvae.recipes.systems.adgm.config import ADGMConfig, ADGMTrainConfig
from tests.recipes.training_support import train


def main(npz, folder):
    with np.load(npz) as archive:
        images = split_labelled(Mnist(**archive, source=npz), classes=2)
    # float64 leaves nothing but the order of summation to differ.
    config = ADGMTrainConfig(epochs=2, batch_size=60, labels=8, auxiliary_samples=2, precision="64-true")
    for kind, impl in (("adgm", "auto"), ("sdgm", "reference")):
        model = ADGMConfig(kind, 3, 2, (6, 5), classes=2, impl=impl)
        train("adgm", model, config, Path(folder) / kind, images=images)


if __name__ == "__main__":
    main(*sys.argv[1:])
