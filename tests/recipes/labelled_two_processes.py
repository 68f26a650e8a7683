"""Trains m1 and a classifier a few steps on one process or on those of torchrun; process 0 writes the losses it saw.

Usage: labelled_two_processes.py IMAGES.npz FOLDER
"""

import json
import os
import sys
from pathlib import Path

import lightning as L
import numpy as np

from fastvae.recipes.data.labelled import LabelledImages, LabelledParts
from fastvae.recipes.systems.loading import find_system
from fastvae.recipes.systems.m1.config import M1Config, M1Settings, M1TrainConfig
from fastvae.recipes.training.labelled_config import LabelledTrainConfig
from tests.recipes.labelled_support import LinearSettings, LinearSystem


class Losses(L.Callback):
    def __init__(self):
        self.train, self.test = [], []

    def on_train_batch_end(self, trainer, module, outputs, *args):
        self.train.append(trainer.strategy.reduce(outputs["loss"], reduce_op="mean").item())

    def on_validation_end(self, trainer, module):
        self.test.append(trainer.callback_metrics[module.measured].item())


def main(npz, folder):
    with np.load(npz) as arrays:
        parts = LabelledParts(*(LabelledImages(arrays[f"x_{p}"], arrays[f"y_{p}"], 3) for p in ("train", "test")))
    # float64 leaves nothing but the order of summation to differ.
    few = {"labels": 12, "labelled_batch_size": 8, "precision": "64-true"}
    cases = {
        "m1": (find_system("m1"), M1Settings(M1Config(2, (8,), 16), M1TrainConfig(2, 20, precision="64-true"))),
        "linear": (LinearSystem(), LinearSettings(training=LabelledTrainConfig(2, 20, 0.1, **few))),
    }
    found = {}
    for name, (system, settings) in cases.items():
        losses, options = Losses(), {"accelerator": "cpu", "progress": False, "finish": False}
        system.run(settings, Path(folder) / name, images=parts, callbacks=[losses], **options)
        found[name] = {"train": losses.train, "test": losses.test}
    if os.environ.get("RANK", "0") == "0":
        (Path(folder) / "losses.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
