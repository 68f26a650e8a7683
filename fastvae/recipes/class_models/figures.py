"""Figures of models with classes: bounds, log p(x), and errors by q(y | x) and by the model's own p(y | x)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...objectives import LogMeanExp
from ..data.batches import EVALUATION, stream_seed
from ..evaluation.bounds import identify, mean_bound, spread, standard_error
from ..evaluation.chunks import Chunk
from ..evaluation.classification import ClassFigures, count_classes, describe_classes
from ..evaluation.job import ALONE, Job
from ..settings import check_whole, option

__all__ = ["SemiSupervisedConfig", "SemiSupervisedFigures", "describe_semi_supervised", "evaluate_semi_supervised"]

# The passes of the evaluation, and the streams of their noise.
PASSES = {"bounds": 4, "samples": 5, "classes": 6}


@dataclass(frozen=True)
class SemiSupervisedConfig:
    """How a trained model with classes is evaluated, as plain data.

    Args:
        samples: importance samples K for log p(x) and p(y | x), for each class.
        log_p_images: test images for log p(x) and p(y | x), evenly spread.
        image_chunk: images at a time.
        sample_chunk: samples of each image and class at a time.

    Raises:
        ValueError: a number is below 1.
    """

    samples: int = 20
    log_p_images: int = option("images", 1000)
    image_chunk: int = 100
    sample_chunk: int = 4

    def __post_init__(self) -> None:
        check_whole(self, samples=1, log_p_images=1, image_chunk=1, sample_chunk=1)


@dataclass(frozen=True)
class SemiSupervisedFigures(ClassFigures):
    """Errors in %, and means over test images in nats.

    ``error`` is that of q(y | x); ``posterior_error`` that of p(y | x) by importance samples, on ``log_p_images``
    images, of what ``posterior_of`` names. Where q(y | x) was not trained ``error`` is that of p(y | x), as
    ``error_by`` says. ``kl_terms`` are the divergences of z and of y; ``elbo`` is of ``elbo_images``.
    """

    error_by: str

    posterior_error: float
    posterior_standard_error: float
    posterior_of: str
    elbo: float
    elbo_error: float
    elbo_images: int
    kl_terms: tuple[float, ...]
    log_p: float
    log_p_error: float
    log_p_images: int
    samples: int
    effective_samples: float


def evaluate_semi_supervised(
    model: Any,
    x: Tensor,
    labels: np.ndarray,
    config: SemiSupervisedConfig,
    *,
    intensities: Tensor | None = None,
    kind: str = "binary images",
    seed: int = 0,
    progress: bool = False,
    job: Job = ALONE,
) -> SemiSupervisedFigures:
    """Figures of a trained model in the memory of one chunk of images and samples.

    The noise of a chunk is a function of the seed and its first image: processes and interruptions change no figure.

    Args:
        model: a :class:`~fastvae.recipes.class_models.semi_supervised.SemiSupervisedVAE`; its device is used.
        x: the data of the test images, ``(N, features)``.
        labels: their classes, ``(N,)``.
        config: the settings of the evaluation.
        intensities: the test images that p(y | x) is given, ``(N, features)``; ``x`` if None.
        kind: the name of ``x``.
        seed: of the noise.
        progress: whether to show progress bars.
        job: the processes that share the chunks, and the file that keeps those that are done.

    Raises:
        RecipeError: the file of ``job`` is damaged, of another evaluation, or cannot be written.
    """
    from tqdm import tqdm

    count = min(config.log_p_images, len(x))
    kept = {"samples": config.samples, "log_p_images": count, "image_chunk": config.image_chunk, "seed": seed}
    kept |= {"sample_chunk": config.sample_chunk, "intensities": intensities is not None}
    ledger = job.open(lambda: kept | identify(model, x, None))
    parameter, together = next(model.parameters()), job.processes.count

    def scan(name: str, rows: Tensor, measure: Any) -> list[Chunk]:
        firsts, done = range(0, len(rows), config.image_chunk), ledger.find(name)
        left = [first for first in firsts if first not in done]

        def measure_chunk(first: int) -> Chunk:
            chunk = rows[first : first + config.image_chunk].to(parameter)
            seeded = stream_seed(seed, EVALUATION, first, PASSES[name])
            found = measure(chunk, torch.Generator(chunk.device).manual_seed(seeded))
            return Chunk(*(part.double().cpu() for part in found))

        with tqdm(total=len(left), desc=name, unit="chunk", disable=not progress, leave=False) as bar:
            for index in range(0, len(left), together):
                ledger.share(name, left[index : index + together], measure_chunk)
                bar.update(together)
        return [done[first] for first in firsts]

    @torch.no_grad()
    def measure_bound(rows: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        posterior = model.encode(rows)
        log_p_x, kl = model.measure(rows, posterior, generator=generator)
        found = posterior.class_logits.argmax(-1, keepdim=True)
        return torch.cat([log_p_x[:, None], kl], 1), found

    @torch.no_grad()
    def measure_samples(rows: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        joint, how = LogMeanExp(), {"sample_chunk": config.sample_chunk, "generator": generator}
        of_classes = model.infer_classes(rows, config.samples, joint=joint, **how)
        estimate = torch.stack([joint.value(), joint.effective_sample_size()], 1)
        return estimate, of_classes.argmax(-1, keepdim=True)

    @torch.no_grad()
    def measure_classes(rows: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        found = model.infer_classes(rows, config.samples, sample_chunk=config.sample_chunk, generator=generator)
        return found[:, :0], found.argmax(-1, keepdim=True)

    classes = model.config.classes
    bounds = scan("bounds", x, measure_bound)
    elbo, kl_terms, elbo_error = mean_bound(bounds)
    samples = scan("samples", spread(x, count), measure_samples)
    found = samples if intensities is None else scan("classes", spread(intensities, count), measure_classes)
    by_p = count_classes(to_classes(found), spread(torch.from_numpy(labels), count).numpy(), classes)
    knows = getattr(model, "knows_classes", True)
    log_p, effective = torch.cat([chunk.bound for chunk in samples]).unbind(1)
    return SemiSupervisedFigures(
        **vars(count_classes(to_classes(bounds), labels, classes) if knows else by_p),
        error_by="q(y | x)" if knows else "p(y | x)",
        posterior_error=by_p.error,
        posterior_standard_error=by_p.standard_error,
        posterior_of=kind if intensities is None else "intensities",
        elbo=elbo,
        elbo_error=elbo_error,
        elbo_images=len(x),
        kl_terms=kl_terms,
        log_p=float(log_p.mean()),
        log_p_error=standard_error(log_p),
        log_p_images=count,
        samples=config.samples,
        effective_samples=float(effective.mean()),
    )


def to_classes(chunks: list[Chunk]) -> np.ndarray:
    return torch.cat([chunk.estimate[:, 0] for chunk in chunks]).long().numpy()


def describe_semi_supervised(figures: SemiSupervisedFigures) -> list[str]:
    """The errors and the bounds in lines for the terminal."""
    terms = " + ".join(f"{term:.2f}" for term in figures.kl_terms)
    how = f"K = {figures.samples}, {figures.log_p_images} images"
    by_q = [f"{describe_classes(figures)[0]}, by q(y | x)"] if figures.error_by == "q(y | x)" else []
    return [
        *by_q,
        f"test error {figures.posterior_error:.2f} % ({how}), standard error {figures.posterior_standard_error:.2f}, "
        f"by p(y | x) of {figures.posterior_of}",
        f"test ELBO  {figures.elbo:.2f} nats, of which KL {terms} ({figures.elbo_images} images), standard error "
        f"{figures.elbo_error:.2f}",
        f"log p(x)   {figures.log_p:.2f} nats ({how}; {figures.effective_samples:.1f} effective samples), standard "
        f"error {figures.log_p_error:.2f}",
    ]
