"""Figures of trained models: the bound, its KL terms, and log p(x), exact or estimated by importance sampling."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from ..._version import __version__
from ..errors import RecipeError
from .chunks import Chunk
from .job import ALONE, Job
from .scan import LatentModel, scan
from .units import Units, summarise_units

__all__ = ["Figures", "LatentModel", "Likelihoods", "check_figures", "evaluate", "evaluate_exact", "spread"]


@dataclass(frozen=True)
class Figures:
    """Means over test images, nats: the bound, its KL part and terms, and the importance-sampled log p(x).

    A KL term belongs to a layer of latents, from below. ``effective_samples`` is the mean effective sample size of the
    importance weights of an image, between 1 and K = ``samples``. ``log_p_images`` are spread evenly over the test
    images. ``*_error`` are standard errors over images. ``valid_elbo`` is the bound of the validation images.
    """

    elbo: float
    elbo_error: float
    kl: float
    kl_terms: tuple[float, ...]
    kl_terms_error: tuple[float, ...]
    elbo_images: int
    log_p: float
    log_p_error: float
    log_p_images: int
    samples: int
    effective_samples: float
    effective_samples_error: float
    units: Units
    valid_elbo: float | None = None
    sampled_images_per_second: float | None = None


@dataclass(frozen=True)
class Likelihoods:
    """Mean negative log-likelihoods, nats, the test's standard error, and images drawn a second in batches of 64."""

    valid_nll: float
    test_nll: float
    test_nll_error: float
    valid_images: int
    test_images: int
    sampled_images_per_second: float | None = None


def evaluate(
    model: LatentModel,
    x: Tensor,
    *,
    valid: Tensor | None = None,
    samples: int = 128,
    log_p_images: int = 10_000,
    seed: int = 0,
    image_chunk: int = 100,
    sample_chunk: int = 32,
    progress: bool = False,
    job: Job = ALONE,
) -> Figures:
    """Bound, units and log p(x) by importance samples of a trained model, in the memory of one chunk of both.

    The noise of a chunk of images is a function of the seed and its first image. An evaluation that is shared out to
    processes, or interrupted and continued, therefore has the figures of one that is not.

    Args:
        model: the model; its device is used.
        x: binary test images ``(N, pixels)``.
        valid: validation images, whose bound is measured, too.
        samples: number K of importance samples.
        log_p_images: how many test images log p(x) is estimated on; they are spread evenly over all.
        seed: of the posterior noise.
        image_chunk: images at a time.
        sample_chunk: samples of each image at a time.
        progress: whether to show progress bars.
        job: the processes that share the chunks, and the file that keeps those that are done.

    Returns:
        The means. The bound takes one sample of each image. A model that does not know its units has no figures of
        them.

    Raises:
        RecipeError: the file of ``job`` is damaged, of another evaluation, or cannot be written.
    """
    count = min(log_p_images, len(x))
    importance: dict[str, Any] = {"samples": samples, "sample_chunk": sample_chunk}
    settings = importance | {"log_p_images": count, "seed": seed, "image_chunk": image_chunk}
    ledger = job.open(lambda: settings | identify(model, x, valid))
    how: dict[str, Any] = {"chunk": image_chunk, "seed": seed, "progress": progress}
    valid_elbo = None
    if valid is not None:
        valid_elbo = mean_bound(scan(model, valid, ledger, "valid", what="bound of valid images", **how))[0]
    measured = scan(model, x, ledger, "test", units=True, what="bound of test images", **how)
    what = f"log p(x), K = {samples}"
    estimated = scan(model, spread(x, count), ledger, "log p", what=what, **importance, **how)
    elbo, kl_terms, elbo_error = mean_bound(measured)
    terms = torch.cat([chunk.bound[:, 1:] for chunk in measured])
    log_p, effective = torch.cat([chunk.estimate for chunk in estimated]).unbind(1)
    return Figures(
        elbo=elbo,
        elbo_error=elbo_error,
        kl=sum(kl_terms),
        kl_terms=kl_terms,
        kl_terms_error=tuple(standard_error(term) for term in terms.unbind(1)),
        elbo_images=len(x),
        log_p=float(log_p.mean()),
        log_p_error=standard_error(log_p),
        log_p_images=count,
        samples=samples,
        effective_samples=float(effective.mean()),
        effective_samples_error=standard_error(effective),
        units=summarise_units(measured),
        valid_elbo=valid_elbo,
    )


def evaluate_exact(
    model: LatentModel, x: Tensor, *, valid: Tensor, image_chunk: int = 200, progress: bool = False, job: Job = ALONE
) -> Likelihoods:
    """Exact negative log-likelihoods of a model without latents.

    Args:
        model: the model; its device is used.
        x: binary test images ``(N, pixels)``.
        valid: validation images.
        image_chunk: images at a time.
        progress: whether to show a progress bar.
        job: as of :func:`evaluate`.
    """
    ledger = job.open(lambda: {"image_chunk": image_chunk} | identify(model, x, valid))
    found = {
        name: mean_bound(scan(model, part, ledger, name, chunk=image_chunk, progress=progress, what=f"{name} images"))
        for name, part in (("valid", valid), ("test", x))
    }
    return Likelihoods(-found["valid"][0], -found["test"][0], found["test"][2], len(valid), len(x))


def mean_bound(chunks: Sequence[Chunk]) -> tuple[float, tuple[float, ...], float]:
    """The mean bound, its KL terms, and the bound's standard error, out of the chunks of a pass."""
    bounds = torch.cat([chunk.bound[:, 0] - chunk.bound[:, 1:].sum(1) for chunk in chunks])
    sums = torch.stack([chunk.bound.sum(0) for chunk in chunks]).sum(0)
    mean, *terms = (sums / len(bounds)).tolist()
    return mean - sum(terms), tuple(terms), standard_error(bounds)


def identify(model: Any, x: Tensor, valid: Tensor | None) -> dict[str, str]:
    """Digests of a model with its configuration, and of the images; the device and the version."""
    weights = hashlib.sha256(repr(getattr(model, "config", None)).encode())
    for name, value in model.state_dict().items():
        weights.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        weights.update(to_bytes(value))
    images = hashlib.sha256()
    for part in (x, valid):
        images.update(b"none" if part is None else f"{tuple(part.shape)}".encode() + to_bytes(part))
    return {
        "model": weights.hexdigest()[:16],
        "images": images.hexdigest()[:16],
        "device": next(model.parameters()).device.type,
        "version": __version__,
    }


def to_bytes(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def spread(x: Tensor, count: int) -> Tensor:
    """``count`` rows, or all where there are fewer, spread evenly: the static test images are sorted by digit."""
    return x[torch.arange(min(count, len(x))) * len(x) // min(count, len(x))]


def standard_error(values: Tensor) -> float:
    """Of the mean of values ``(N,)``."""
    return float(values.double().std(correction=0)) / math.sqrt(len(values))


def check_figures(figures: Any) -> None:
    """Checks the figures of a trained model, a dataclass.

    Raises:
        RecipeError: one is not finite.
    """
    for name, value in asdict(figures).items():
        if isinstance(value, float) and not math.isfinite(value):
            raise RecipeError(f"the trained model has {name} = {value}: try a lower learning rate")
