"""A whole process of the demonstration's kind, from the start of Python to the last picture: ``bench/whole_run.py``."""

from __future__ import annotations

import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..task import Case, Function, Inputs, Shape, Task, Work
from ..whole_run import EVALUATED, SAMPLES

PIXELS, WIDTH = 784, 400
ROOT = Path(__file__).resolve().parents[2]


def _process(case: Case, impl: str, *, posterior: str) -> Function:
    words = [posterior, str(case.shape.rows), str(case.shape.columns), impl]

    def run(seed: Tensor) -> Tensor:
        done = subprocess.run(
            [sys.executable, "-m", "bench.whole_run", *words], cwd=ROOT, capture_output=True, text=True
        )
        if done.returncode:
            raise RuntimeError(f"bench.whole_run {' '.join(words)} ended with {done.returncode}:\n{done.stderr}")
        return torch.tensor(float(done.stdout.split()[-1]))

    return run


def _nothing(case: Case, generator: torch.Generator) -> Inputs:
    # What a process computes with it makes itself.
    return (torch.zeros(()),)


def _work(case: Case) -> Work:
    """The products of the training, and of the decoder in the evaluation; every image once."""
    ends = PIXELS * WIDTH + WIDTH * WIDTH
    decoder = ends + case.shape.columns * WIDTH
    weights = ends + 2 * case.shape.columns * WIDTH + decoder
    return Work(case.shape.rows * PIXELS, 6 * case.shape.rows * weights + 2 * EVALUATED * SAMPLES * decoder)


# Independent pixels, of which 13 % are ink, have an entropy of 302 nats.
def _check(case: Case, inputs: Inputs, outputs: Any) -> str | None:
    bound = outputs.item()
    return None if -700 < bound < -290 else f"the test ELBO is {bound:.4g} nats, not between -700 and -290"


TASKS = tuple(
    Task(
        op="demo",
        entry="process",
        variant=posterior,
        modes=("step",),
        inputs=_nothing,
        fastvae=partial(_process, posterior=posterior),
        reference=partial(_process, impl="reference", posterior=posterior),
        compiles=False,
        whole=True,
        work=_work,
        check=_check,
        shapes={"cpu": (Shape(20000, 32),), "cuda": (Shape(20000, 32),)},
        dtypes={"cpu": ("float32",), "cuda": ("float32",)},
        sampled=False,
    )
    for posterior in ("diagonal", "triangular")
)
