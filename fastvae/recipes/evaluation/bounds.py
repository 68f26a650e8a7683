"""Figures of trained ``pixelcnn`` and ``pixelvae``: log p(x), its bound, its estimate, and the speed of sampling."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..distributions import DiagonalGaussian
from ..objectives import LogMeanExp, importance_log_prob
from .batches import EVALUATION, binarize_fixed, stream_seed
from .pixelcnn import BinaryPixelCNN
from .pixelvae import PixelVAE
from .static_data import BinaryImages

__all__ = [
    "SAMPLED",
    "PixelCNNFigures",
    "PixelVAEFigures",
    "evaluate_pixelcnn",
    "evaluate_pixelvae",
    "sampling_speed",
    "spread",
]

SAMPLED = 64


@dataclass(frozen=True)
class PixelCNNFigures:
    """Mean negative log-likelihoods, nats, and how many images a second are drawn in batches of 64."""

    valid_nll: float
    test_nll: float
    valid_images: int
    test_images: int
    sampled_images_per_second: float


@dataclass(frozen=True)
class PixelVAEFigures:
    """Means over test images, nats: the bound, its KL terms from below, and the importance-sampled log p(x).

    ``valid_elbo`` is the bound of the validation images.
    """

    valid_elbo: float
    elbo: float
    kl: float
    kl_terms: tuple[float, ...]
    elbo_images: int
    log_p: float
    log_p_images: int
    samples: int
    effective_samples: float
    sampled_images_per_second: float


def chunks_of(x: Tensor, size: int, progress: bool, what: str) -> Any:
    """(index of the first row, rows) with a progress bar."""
    from tqdm import tqdm

    parts = [(start, x[start : start + size]) for start in range(0, len(x), size)]
    return tqdm(parts, desc=what, unit="chunk", disable=not progress, leave=False)


def spread(x: Tensor, count: int) -> Tensor:
    """``count`` rows, or all where there are fewer, spread evenly: the static test images are sorted by digit."""
    return x[torch.arange(min(count, len(x))) * len(x) // min(count, len(x))]


def sampling_speed(sample: Callable[[int], Any], device: torch.device) -> float:
    """Images drawn a second in the second of two batches of 64."""
    for _ in range(2):
        began = time.perf_counter()
        sample(SAMPLED)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    return SAMPLED / (time.perf_counter() - began)


@torch.no_grad()
def evaluate_pixelcnn(
    model: BinaryPixelCNN, images: BinaryImages, *, image_chunk: int = 200, progress: bool = False
) -> PixelCNNFigures:
    """Exact negative log-likelihoods of validation and test images, and the speed of sampling.

    Args:
        model: the model; its device is used.
        images: those that are not binary yet are binarised once, with seed 0.
        image_chunk: images at a time.
        progress: whether to show a progress bar.
    """
    parameter = next(model.parameters())
    nll = {}
    for name, part in (("valid", images.x_valid), ("test", images.x_test)):
        x = binarize_fixed(part)
        found = [
            -model.log_prob(rows.to(parameter)).sum(dtype=torch.float64)
            for _, rows in chunks_of(x, image_chunk, progress, f"{name} images")
        ]
        nll[name] = float(torch.stack(found).sum() / len(x))
    return PixelCNNFigures(
        valid_nll=nll["valid"],
        test_nll=nll["test"],
        valid_images=len(images.x_valid),
        test_images=len(images.x_test),
        sampled_images_per_second=sampling_speed(model.sample, parameter.device),
    )


@torch.no_grad()
def evaluate_pixelvae(
    model: PixelVAE,
    images: BinaryImages,
    *,
    samples: int = 128,
    log_p_images: int = 10_000,
    seed: int = 0,
    image_chunk: int = 100,
    sample_chunk: int = 32,
    progress: bool = False,
) -> PixelVAEFigures:
    """Bounds of validation and test images, importance-sampled log p(x) of the latter, and the speed of sampling.

    Args:
        model: the model; its device is used.
        images: those that are not binary yet are binarised once, with seed 0.
        samples: number K of importance samples.
        log_p_images: how many test images, spread evenly over all, log p(x) is estimated on.
        seed: of the posterior noise.
        image_chunk: images at a time.
        sample_chunk: samples of each image at a time.
        progress: whether to show progress bars.
    """
    parameter = next(model.parameters())
    generator = torch.Generator(parameter.device).manual_seed(stream_seed(seed, EVALUATION, 0))
    bounds, terms = {}, {}
    for name, part in (("valid", images.x_valid), ("test", images.x_test)):
        x = binarize_fixed(part)
        found = []
        for _, rows in chunks_of(x, image_chunk, progress, f"bound of {name} images"):
            log_p_x, kl = model.measure(rows.to(parameter), generator=generator)
            found.append(torch.cat([log_p_x[:, None], kl], -1).sum(0, dtype=torch.float64))
        log_p_x_mean, *terms[name] = (torch.stack(found).sum(0) / len(x)).tolist()
        bounds[name] = log_p_x_mean - sum(terms[name])
    x = spread(binarize_fixed(images.x_test), log_p_images)
    log_ps, effective = [], []
    for _, rows in chunks_of(x, image_chunk, progress, f"log p(x), K = {samples}"):
        at_device = rows.to(parameter)
        posteriors = model.encode(at_device)

        def log_weights(k: int, x: Tensor = at_device, q: Sequence[DiagonalGaussian] = posteriors) -> Tensor:
            return model.log_weights(x, q, k, generator=generator)

        accumulator = LogMeanExp()
        log_ps.append(importance_log_prob(log_weights, samples, sample_chunk, accumulator=accumulator))
        effective.append(accumulator.effective_sample_size())
    return PixelVAEFigures(
        valid_elbo=bounds["valid"],
        elbo=bounds["test"],
        kl=sum(terms["test"]),
        kl_terms=tuple(terms["test"]),
        elbo_images=len(images.x_test),
        log_p=float(torch.cat(log_ps).mean()),
        log_p_images=len(x),
        samples=samples,
        effective_samples=float(torch.cat(effective).mean()),
        sampled_images_per_second=sampling_speed(model.sample, parameter.device),
    )
