"""A whole process: imports, a VAE, an epoch of training, its evaluation, checkpoint and pictures.

``python -m bench.whole_run POSTERIOR IMAGES LATENT IMPL`` prints the test ELBO, nats. Images are random, as no data may
have to be fetched; of a demonstration they are what does not matter to its time.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

TEST_IMAGES, EVALUATED, SAMPLES, INK = 1000, 100, 128, 0.13


def run(posterior: Any, images: int, latent: int, impl: Any) -> float:
    """The test ELBO after one epoch on ``images`` random images."""
    import numpy as np

    from fastvae.recipes.data.mnist import Mnist
    from fastvae.recipes.evaluation.config import EvaluationConfig
    from fastvae.recipes.systems.vae.config import VAEConfig, VAESettings, VAETrainConfig
    from fastvae.recipes.systems.vae.system import SYSTEM

    rng = np.random.default_rng(0)
    train, test = (np.where(rng.random((n, 28, 28)) < INK, 255, 0).astype(np.uint8) for n in (images, TEST_IMAGES))
    labels = np.zeros(max(images, TEST_IMAGES), np.uint8)
    mnist = Mnist(train, labels[:images], test, labels[:TEST_IMAGES], "random images")
    settings = VAESettings(
        VAEConfig(posterior, latent_features=latent, impl=impl),
        VAETrainConfig(epochs=1),
        EvaluationConfig(samples=SAMPLES, log_p_images=EVALUATED),
    )
    with tempfile.TemporaryDirectory() as folder:
        done = SYSTEM.run(settings, Path(folder) / "run", images=mnist, accelerator="cpu", progress=False)
    return float(done.figures.elbo)


if __name__ == "__main__":
    chosen, count, size, how = sys.argv[1:]
    print(run(chosen, int(count), int(size), how))
