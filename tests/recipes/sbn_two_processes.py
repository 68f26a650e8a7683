"""Trains the recipe ``sbn`` for a few steps on one process or on those of torchrun.

Usage: sbn_two_processes.py MNIST.npz FOLDER
"""

import sys
from pathlib import Path

import numpy as np

from fastvae.recipes.data.mnist import Mnist
from fastvae.recipes.data.static_mnist import split_mnist
from fastvae.recipes.evaluation.config import EvaluationConfig
from fastvae.recipes.systems.sbn.config import SBNConfig, SBNTrainConfig
from tests.recipes.training_support import train


def main(npz, folder):
    with np.load(npz) as archive:
        images = split_mnist(Mnist(**archive, source=npz))
    model, few = SBNConfig("linear2", latent_features=6), EvaluationConfig(samples=2)
    for estimator in ("nvil", "loo"):
        # float64 leaves nothing but the order of summation to differ.
        config = SBNTrainConfig(estimator=estimator, k=2, epochs=2, batch_size=50, precision="64-true")
        train("sbn", model, config, Path(folder) / estimator, evaluation=few, images=images)


if __name__ == "__main__":
    main(*sys.argv[1:])
