"""Figures of auxiliary deep generative models: the error of q(y | x), and the bound of images without labels."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import Tensor

from ...data.batches import EVALUATION, stream_seed
from ...data.noise import Noise
from ...evaluation.bounds import identify, mean_bound
from ...evaluation.chunks import Chunk
from ...evaluation.classification import ClassFigures, count_classes, describe_classes
from ...evaluation.job import ALONE, Job
from .config import ADGMEvaluationConfig
from .model import ADGM

__all__ = ["ADGMFigures", "describe_adgm", "evaluate_adgm"]

# The pass of an evaluation, and its number beside those of scan.py.
PASS, NUMBER = "bounds and classes", 4


@dataclass(frozen=True)
class ADGMFigures(ClassFigures):
    """The error of the mean of q(y | a, x) over samples of a, in %, and means over test images, nats.

    ``elbo`` is the bound of log p(x); its ``kl_terms`` are the divergences of y, of a and of z.
    """

    elbo: float
    elbo_error: float
    kl_terms: tuple[float, ...]
    samples: int


@torch.no_grad()
def measure_images(model: ADGM, x: Tensor, samples: int, noise: Noise) -> tuple[Tensor, Tensor]:
    """Mean log-likelihood and divergences of y, a and z under q, ``(N, 4)``, nats; and q(y | x), ``(N, C)``."""
    terms = model.measure_terms(x, samples=samples, noise=noise)
    log_q = terms.class_logits.log_softmax(-1)
    q = log_q.exp()
    parts = (terms.log_p_x, log_q + np.log(q.shape[-1]), terms.kl_a, terms.kl_z)
    return torch.stack([(q * part).sum(-1).mean(1) for part in parts], 1), q.mean(1)


def evaluate_adgm(
    model: ADGM,
    x: Tensor,
    labels: np.ndarray,
    config: ADGMEvaluationConfig,
    *,
    seed: int = 0,
    progress: bool = False,
    job: Job = ALONE,
) -> ADGMFigures:
    """Figures of a trained model in the memory of one chunk of images and samples.

    The noise of a chunk is a function of the seed and its first image: processes and interruptions change no figure.

    Args:
        model: the model; its device is used.
        x: test images ``(N, pixels)``.
        labels: their classes, ``(N,)``.
        config: the settings of the evaluation.
        seed: of the noise.
        progress: whether to show a progress bar.
        job: the processes that share the chunks, and the file that keeps those that are done.

    Raises:
        RecipeError: the file of ``job`` is damaged, of another evaluation, or cannot be written.
    """
    from tqdm import tqdm

    ledger = job.open(lambda: asdict(config) | {"seed": seed} | identify(model, x, None))
    parameter, firsts = next(model.parameters()), range(0, len(x), config.image_chunk)
    done, together = ledger.find(PASS), job.processes.count

    def measure(first: int) -> Chunk:
        rows = x[first : first + config.image_chunk].to(parameter)
        generator = torch.Generator(rows.device).manual_seed(stream_seed(seed, EVALUATION, first, NUMBER))
        bound, q = measure_images(model, rows, config.samples, Noise(generator))
        return Chunk(bound.double().cpu(), q.argmax(1, keepdim=True).double().cpu())

    left = [first for first in firsts if first not in done]
    with tqdm(total=len(left), desc=PASS, unit="chunk", disable=not progress, leave=False) as bar:
        for index in range(0, len(left), together):
            ledger.share(PASS, left[index : index + together], measure)
            bar.update(together)
    chunks = [done[first] for first in firsts]
    elbo, kl_terms, elbo_error = mean_bound(chunks)
    found = torch.cat([chunk.estimate[:, 0] for chunk in chunks]).long().numpy()
    of_classes = vars(count_classes(found, labels, model.config.classes))
    return ADGMFigures(**of_classes, elbo=elbo, elbo_error=elbo_error, kl_terms=kl_terms, samples=config.samples)


def describe_adgm(figures: ADGMFigures) -> list[str]:
    """The error and the bound in lines for the terminal."""
    terms = " + ".join(f"{term:.2f}" for term in figures.kl_terms)
    return [
        *describe_classes(figures),
        f"test ELBO  {figures.elbo:.2f} nats, of which KL of y, a, z {terms} ({figures.test_images} images, "
        f"{figures.samples} samples of a), standard error {figures.elbo_error:.2f}",
    ]
