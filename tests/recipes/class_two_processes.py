"""Trains ``m2``, ``m1m2`` and ``cvae`` for a few steps on one process or on those of torchrun.

Usage: class_two_processes.py IMAGES.npz FOLDER
"""

import sys
from pathlib import Path

from tests.recipes.class_support import SMALL, keep_m1
from tests.recipes.training_support import train


def main(npz, folder):
    m1 = keep_m1(Path(folder))
    for name, (model, training, evaluation) in SMALL.items():
        # float64 leaves nothing but the order of summation to differ.
        changes = {"epochs": 2, "precision": "64-true"} | ({"m1": str(m1)} if name == "m1m2" else {})
        train(name, model, training(**changes), Path(folder) / name, evaluation=evaluation)


if __name__ == "__main__":
    main(*sys.argv[1:])
