"""Trains a few steps on one process or on those of torchrun; process 0 writes the losses it saw.

Usage: two_processes.py MNIST.npz FOLDER
"""

import json
import os
import sys
from pathlib import Path

import lightning as L
import numpy as np

from fastvae.recipes.data.mnist import Mnist
from fastvae.recipes.systems.vae.config import VAEConfig, VAETrainConfig
from tests.recipes.training_support import train

CASES = {
    "diagonal": VAEConfig("diagonal", 5, (16,)),
    "triangular": VAEConfig("triangular", 5, (16,)),
    "monte-carlo": VAEConfig("triangular", 5, (16,), kl="monte-carlo"),
    "reference": VAEConfig("diagonal", 5, (16,), impl="reference"),
}


class Losses(L.Callback):
    def __init__(self):
        self.train, self.test = [], []

    def on_train_batch_end(self, trainer, module, outputs, *args):
        self.train.append(trainer.strategy.reduce(outputs["loss"], reduce_op="mean").item())

    def on_validation_end(self, trainer, *args):
        self.test.append(trainer.callback_metrics["test_elbo"].item())


def main(npz, folder):
    with np.load(npz) as archive:
        mnist = Mnist(**archive, source=npz)
    # float64 leaves nothing but the order of summation to differ.
    config = VAETrainConfig(epochs=2, batch_size=60, precision="64-true")
    found = {}
    for name, model in CASES.items():
        losses = Losses()
        train("vae", model, config, Path(folder) / name, images=mnist, callbacks=[losses])
        found[name] = {"train": losses.train, "test": losses.test}
    if os.environ.get("RANK", "0") == "0":
        (Path(folder) / "losses.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
