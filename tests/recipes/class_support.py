"""Small models of the digits of scikit-learn, and an M1 for those that need one."""

from functools import partial

import numpy as np

from fastvae.recipes.class_models.figures import SemiSupervisedConfig
from fastvae.recipes.data.published_weights import HEAD, M1_ARRAYS
from fastvae.recipes.evaluation.config import EvaluationConfig
from fastvae.recipes.systems.cvae.config import CVAEConfig, CVAETrainConfig
from fastvae.recipes.systems.m1m2.config import M1M2Config, M1M2TrainConfig
from fastvae.recipes.systems.m2.config import M2Config, M2EvaluationConfig, M2TrainConfig

PIXELS, M1_LATENT, M1_HIDDEN = 64, 6, 12
DIGITS = {"data": "digits", "batch_size": 300}
LABELLED = {"labels": 20, "labelled_batch_size": 10, "average_decay": 0.8}
EVALUATION = {"samples": 3, "log_p_images": 900, "image_chunk": 300}
FEW = SemiSupervisedConfig(**EVALUATION)
SMALL = {
    "m2": (
        M2Config(2, (12, 8), data_features=PIXELS),
        partial(M2TrainConfig, **DIGITS, **LABELLED),
        M2EvaluationConfig(**EVALUATION),
    ),
    "m1m2": (
        M1M2Config(2, (8,), data_features=PIXELS, m1_latent=M1_LATENT, m1_hidden=(M1_HIDDEN, M1_HIDDEN)),
        partial(M1M2TrainConfig, **DIGITS, **LABELLED),
        FEW,
    ),
    "cvae": (
        CVAEConfig(latent_features=2, hidden_features=(12, 8), data_features=PIXELS),
        partial(CVAETrainConfig, **DIGITS),
        EvaluationConfig(**EVALUATION),
    ),
}


def arrays_of_m1(unused=2):
    """Random weights in the form of the authors' file; the last units' means do not vary."""
    random = np.random.RandomState(0)
    widths = {"q_w0": PIXELS, "p_w0": M1_LATENT}
    rows = {"p_out_w": PIXELS, "q_mean_w": M1_LATENT, "q_logvar_w": M1_LATENT}
    arrays = {}
    for name in [*M1_ARRAYS.values(), *HEAD]:
        if "_b" not in name:
            size = rows.get(name, M1_HIDDEN), widths.get(name, M1_HIDDEN)
            arrays[name] = random.standard_normal(size) / np.sqrt(size[1])
            arrays[name.replace("_w", "_b")] = np.zeros((size[0], 1))
    arrays["q_mean_w"] *= 5.0
    arrays["q_mean_w"][-unused:] = 0.0
    return {name: array.astype(np.float32) for name, array in arrays.items()}


def keep_m1(folder):
    """Writes such a file; returns its path."""
    path = folder / "nips14_ssl_m1.npz"
    np.savez(path, **arrays_of_m1())
    return path
