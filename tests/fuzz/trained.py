"""A checkpoint as training writes it, made within seconds."""

from __future__ import annotations

import contextlib
import io
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from fastvae.recipes.data.mnist import Mnist
from fastvae.recipes.evaluation.config import EvaluationConfig
from fastvae.recipes.systems.vae.config import VAEConfig, VAETrainConfig
from fastvae.recipes.systems.vae.system import SYSTEM


def checkpoints() -> list[tuple[bytes, Callable[[Path], Any]]]:
    """Files, and what loads each."""
    rng = np.random.RandomState(0)
    images = rng.randint(0, 256, (24, 28, 28)).astype(np.uint8)
    mnist = Mnist(images, np.zeros(24, np.uint8), images[:8], np.zeros(8, np.uint8), source="random")
    model = VAEConfig("triangular", latent_features=3, hidden_features=(8,))
    config = VAETrainConfig(epochs=1, batch_size=8)
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        settings = SYSTEM.settings(model, config, EvaluationConfig(samples=2))
        run = SYSTEM.run(settings, Path(folder), images=mnist, accelerator="cpu", progress=False, finish=False)
        return [(run.checkpoint.read_bytes(), SYSTEM.load)]
