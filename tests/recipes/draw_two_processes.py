"""Trains the recipe ``draw`` for a few steps on one process or on those of torchrun.

Usage: draw_two_processes.py MNIST.npz FOLDER
"""

import sys
from pathlib import Path

import numpy as np

from fastvae.recipes.data.mnist import Mnist
from fastvae.recipes.evaluation.config import EvaluationConfig
from fastvae.recipes.systems.draw.config import DRAWConfig, DRAWTrainConfig
from tests.recipes.training_support import train


def main(npz, folder):
    with np.load(npz) as archive:
        images = Mnist(**archive, source=npz)
    model, few = DRAWConfig(2, latent_features=3, hidden_features=6), EvaluationConfig(samples=2, log_p_images=20)
    for name, changes in {"plain": {}, "free": {"free_bits": 0.1}}.items():
        # float64 leaves nothing but the order of summation to differ.
        config = DRAWTrainConfig(epochs=2, batch_size=50, precision="64-true", **changes)
        train("draw", model, config, Path(folder) / name, evaluation=few, images=images)


if __name__ == "__main__":
    main(*sys.argv[1:])
