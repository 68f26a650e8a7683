"""Trains the recipe ``iaf_vae`` for a few steps on one process or on those of torchrun.

Usage: iaf_two_processes.py MNIST.npz FOLDER
"""

import sys
from pathlib import Path

import numpy as np

from fastvae.recipes.data.mnist import Mnist
from fastvae.recipes.evaluation.config import EvaluationConfig
from fastvae.recipes.systems.iaf_vae.config import IAFTrainConfig, IAFVAEConfig
from tests.recipes.training_support import train


def main(npz, folder):
    with np.load(npz) as archive:
        mnist = Mnist(**archive, source=npz)
    # float64 leaves nothing but the order of summation to differ.
    config = IAFTrainConfig(epochs=2, batch_size=60, free_bits=0.05, precision="64-true")
    for posterior in ("triangular", "iaf"):
        model = IAFVAEConfig(posterior, latent_features=3, width=8, feature_maps=(2,), dense_features=8)
        few = EvaluationConfig(samples=2)
        train("iaf_vae", model, config, Path(folder) / posterior, evaluation=few, images=mnist)


if __name__ == "__main__":
    main(*sys.argv[1:])
