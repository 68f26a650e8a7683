"""Kills runs while they save, or fills their disk; the checkpoint that is left must resume, bit for bit.

Usage: killed_runs.py FOLDER ROUNDS [SEED]. TMPDIR of the runs is on another filesystem where there is one.
"""

import io
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from fastvae.recipes import files
from fastvae.recipes.data import mnist as data
from fastvae.recipes.evaluation.config import EvaluationConfig
from fastvae.recipes.systems.vae.config import VAEConfig, VAETrainConfig
from fastvae.recipes.training.checkpoints import epochs_done, read_checkpoint
from tests.recipes.training_support import train, watched_saves

MODEL = VAEConfig(latent_features=8, hidden_features=(300,))
TRAINING = VAETrainConfig(epochs=4, batch_size=60, learning_rate=1e-3)
# What is done to a run at one of its saves: a kill in a write, on a full disk no kill, before and after the calls
# that end the save, and at any moment after its begin.
TROUBLES = ("write", "disk", "replace", "fsync", "replaced", "moment")


def run(folder, **options):
    # A run of another number of threads is another run.
    torch.set_num_threads(1)
    rng = np.random.RandomState(0)
    images = rng.randint(0, 256, (360, 28, 28)).astype(np.uint8)
    labels = np.zeros(360, np.uint8)
    mnist = data.Mnist(images[:300], labels[:300], images[300:], labels[300:], source="noise")
    few = EvaluationConfig(samples=2)
    return train("vae", MODEL, TRAINING, folder, evaluation=few, images=mnist, **options)


class Trouble:
    """Stands in for ``open`` and ``os`` of the module that writes files; makes trouble at one of the saves."""

    def __init__(self, kind, save, share):
        self.kind, self.save, self.share, self.saves, self.saving = kind, save, share, 0, []

    def __getattr__(self, name):
        return getattr(os, name)

    def now(self, kind):
        return bool(self.saving) and self.kind == kind and self.saves == self.save

    def kill(self):
        os.kill(os.getpid(), signal.SIGKILL)

    def open(self, path, *arguments):
        if not str(path).rpartition("/")[2].startswith(files.PART):
            return os.open(path, *arguments)
        if not self.saving:
            return open(path, *arguments)
        self.saves += 1
        if self.now("moment"):
            print("saving", flush=True)
        return File(path, "x", self)

    def fsync(self, descriptor):
        if self.now("fsync"):
            self.kill()
        os.fsync(descriptor)

    def replace(self, old, new):
        if self.now("replace"):
            self.kill()
        os.replace(old, new)
        if self.now("replaced"):
            self.kill()


class File(io.FileIO):
    def __init__(self, path, mode, trouble):
        super().__init__(path, mode)
        self.trouble = trouble

    def write(self, content):
        size = int(len(content) * self.trouble.share)
        if self.trouble.now("disk"):
            # The kernel writes as much as there is room for, and refuses the rest.
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
        if self.trouble.now("write"):
            super().write(content[:size])
            self.trouble.kill()
        with memoryview(content) as left:
            done = 0
            while done < len(left):
                done += super().write(left[done : done + (1 << 16)])
        return done


def child(folder, kind, save, share):
    trouble = Trouble(kind, int(save), float(share))
    files.os, files.open = trouble, trouble.open
    with watched_saves() as trouble.saving:
        run(Path(folder))


def one_round(folder, kind, save, share, elsewhere, delay):
    """Runs a child into its trouble; returns its exit status and what it said."""
    arguments = [sys.executable, __file__, "child", str(folder), kind, str(save), str(share)]
    root = str(Path(__file__).parents[2])
    path = os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"TMPDIR": str(elsewhere), "PYTHONPATH": path}
    process = subprocess.Popen(arguments, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if kind == "moment":
        while (line := process.stdout.readline()) and line != "saving\n":
            pass
        time.sleep(delay)
        process.kill()
    said = process.communicate()[1]
    return process.returncode, said


def main(folder, rounds, seed=0):
    """Returns a line for each round; raises AssertionError if a checkpoint is lost or a resumed run differs."""
    folder.mkdir(parents=True, exist_ok=True)
    choose = random.Random(seed)
    expected = run(folder / "whole").model.state_dict()
    others = (Path("/dev/shm"), Path("/tmp"), Path.home())
    other = next((each for each in others if each.is_dir() and each.stat().st_dev != folder.stat().st_dev), folder)
    lines = []
    for index in range(rounds):
        kind, save, share = TROUBLES[index % len(TROUBLES)], choose.randint(1, TRAINING.epochs), choose.random()
        delay = choose.uniform(0.0, 0.02)
        out = folder / f"round{index}"
        with tempfile.TemporaryDirectory(dir=other) as elsewhere:
            status, said = one_round(out, kind, save, share, elsewhere, delay)
        # One that was to be killed at a moment after its last save may have ended before.
        assert status == {"disk": 1}.get(kind, -signal.SIGKILL) or (kind, status) == ("moment", 0), (status, said)
        if kind == "disk":
            assert "RecipeError" in said.splitlines()[-1], said
            assert "cannot be written" in said.splitlines()[-1], said
        checkpoint = out / "last.ckpt"
        done = epochs_done(read_checkpoint(checkpoint)) if checkpoint.exists() else 0
        lowest = save if kind == "replaced" else save - 1
        highest = {"moment": TRAINING.epochs, "replaced": save}.get(kind, save - 1)
        assert lowest <= done <= highest, (kind, save, done)
        found = run(out, resume=checkpoint if done else None).model.state_dict()
        assert all(torch.equal(found[name], value) for name, value in expected.items()), (kind, save)
        assert not list(out.glob(files.PART + "*")), os.listdir(out)
        lines.append(f"{index + 1}: {kind} at save {save}, {share:.2f} of it; {done} epochs were left; equal")
        print(lines[-1], flush=True)
    return lines


if __name__ == "__main__":
    if sys.argv[1] == "child":
        child(*sys.argv[2:])
    else:
        main(Path(sys.argv[1]), int(sys.argv[2]), *map(int, sys.argv[3:]))
