"""Runs ``fastvae evaluate`` on images out of a file, on one process or on those of torchrun.

Usage: evaluating_processes.py MNIST.npz ARGUMENTS...
"""

import sys

import numpy as np

from fastvae.recipes.cli import main as cli
from fastvae.recipes.data.mnist import Mnist
from fastvae.recipes.latent_system import LatentSystem


def main(npz, *arguments):
    with np.load(npz) as archive:
        images = Mnist(**archive, source=npz)
    LatentSystem.load_images = lambda system, config, *, progress: images
    return cli.main(["evaluate", *arguments])


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
