"""Small runs of the systems, and what tests look at in them."""

import contextlib
import csv
import os
import subprocess
import sys
from pathlib import Path

import lightning as L
import numpy as np
import torch

from fastvae.recipes.data.mnist import NPZ_KEYS
from fastvae.recipes.systems.loading import find_system
from fastvae.recipes.training import checkpoints


def train(name, model, training, folder, *, evaluation=None, **options):
    """A run of a system, on the CPU and in silence."""
    system = find_system(name)
    parts = {"model": model, "training": training} | ({} if evaluation is None else {"evaluation": evaluation})
    return system.run(system.settings(**parts), folder, **{"accelerator": "cpu", "progress": False} | options)


def load(name, path, **options):
    """The model of a checkpoint, and how it was trained."""
    model, settings = find_system(name).load(path, **options)
    return model, settings.training


def train_on_one_and_two_processes(script, images, folder):
    """Runs a script of this folder twice; returns the folders of the run on one process and of that on two."""
    npz = folder / "images.npz"
    np.savez(npz, **{key: getattr(images, key) for key in NPZ_KEYS.values()})
    path = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    launchers = {"one": [], "two": ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]}
    for name, launcher in launchers.items():
        (folder / name).mkdir()
        subprocess.run(
            [sys.executable, *launcher, Path(__file__).with_name(script), npz, folder / name],
            check=True,
            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path},
            stdout=subprocess.DEVNULL,
        )
    return [folder / name for name in launchers]


def independent_pixels(images):
    """The mean log-density of the binarised training images under independent pixels of their means, nats."""
    means = torch.from_numpy(images.x_train).flatten(1).double().mean(0) / 255.0
    return -float((torch.special.entr(means) + torch.special.entr(1.0 - means)).sum())


def enlarge(images):
    """Images of 8 x 8 as such of 28 x 28 with a margin."""
    return np.pad(np.kron(images, np.ones((1, 3, 3), images.dtype)), ((0, 0), (2, 2), (2, 2)))


class Crash(L.Callback):
    """A failure in an epoch, at its second batch."""

    def __init__(self, epoch=1):
        self.when = (epoch, 1)

    def on_train_batch_end(self, trainer, module, outputs, batch, index):
        if (trainer.current_epoch, index) == self.when:
            raise RuntimeError("power failure")


@contextlib.contextmanager
def watched_saves():
    """A list that is not empty while a checkpoint is written."""
    sound, active = checkpoints.WholeCheckpoints.write_kept, []

    def write_kept(writer, path):
        active.append(path)
        try:
            return sound(writer, path)
        finally:
            active.clear()

    checkpoints.WholeCheckpoints.write_kept = write_kept
    try:
        yield active
    finally:
        checkpoints.WholeCheckpoints.write_kept = sound


def metrics(folder):
    with open(folder / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


def assert_same_weights(found, expected):
    for name, value in expected.model.state_dict().items():
        assert torch.equal(found.model.state_dict()[name], value), name


def assert_same_run(found, expected):
    assert_same_weights(found, expected)
    for name, value in vars(expected.figures).items():
        if name != "sampled_images_per_second":
            assert getattr(found.figures, name) == value, name
