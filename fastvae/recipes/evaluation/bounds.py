"""Figures of trained models: the bound, its KL terms, and log p(x), exact or estimated by importance sampling."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from ...objectives import LogMeanExp, importance_log_prob
from ..data.batches import EVALUATION, stream_seed
from ..errors import RecipeError

__all__ = ["Figures", "LatentModel", "Likelihoods", "check_figures", "evaluate", "evaluate_exact", "spread"]


class LatentModel(Protocol):
    """The part of a model, a module, that evaluation calls.

    ``encode`` returns a posterior of any kind. ``measure`` returns log p(x | z) of one sample, ``(N,)``, and the KL
    terms, ``(N, T)``; a model without latents has T = 0. ``log_weights`` returns log p(x, z) - log q(z | x) of new
    samples, ``(samples, N)``. ``noise`` is ``generator``, ``row_offset`` or ``eps``.
    """

    def encode(self, x: Tensor) -> Any: ...
    def measure(self, x: Tensor, posterior: Any = None, **noise: Any) -> tuple[Tensor, Tensor]: ...
    def log_weights(self, x: Tensor, posterior: Any, samples: int, **noise: Any) -> Tensor: ...
    def parameters(self) -> Iterator[nn.Parameter]: ...


@dataclass(frozen=True)
class Figures:
    """Means over test images, nats: the bound, its KL part and terms, and the importance-sampled log p(x).

    ``*_error`` are standard errors over images. ``valid_elbo`` is the bound of the validation images.
    """

    elbo: float
    elbo_error: float
    kl: float
    kl_terms: tuple[float, ...]
    elbo_images: int
    log_p: float
    log_p_error: float
    log_p_images: int
    samples: int
    effective_samples: float
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


@dataclass
class Scan:
    """What a pass over images found, in chunks."""

    log_p_x: list[Tensor] = field(default_factory=list)
    kl: list[Tensor] = field(default_factory=list)
    log_p: list[Tensor] = field(default_factory=list)
    effective: list[Tensor] = field(default_factory=list)

    def mean_bound(self, *, double: bool) -> tuple[float, tuple[float, ...], float]:
        """The bound, its KL terms, and the bound's standard error."""
        bounds = [log_p_x - kl.sum(-1) for log_p_x, kl in zip(self.log_p_x, self.kl, strict=True)]
        count = sum(map(len, bounds))
        error = standard_error(torch.cat(bounds))
        if double:
            pairs = zip(self.log_p_x, self.kl, strict=True)
            both = [torch.cat([log_p_x[:, None], kl], -1).sum(0, dtype=torch.float64) for log_p_x, kl in pairs]
            mean, *terms = (torch.stack(both).sum(0) / count).tolist()
            return mean - sum(terms), tuple(terms), error
        # In single precision the difference of two large sums would lose digits.
        bound = float(torch.stack([chunk.sum() for chunk in bounds]).sum() / count)
        columns = [[chunk[:, term].sum() for chunk in self.kl] for term in range(self.kl[0].shape[1])]
        return bound, tuple(float(torch.stack(column).sum() / count) for column in columns), error


@torch.no_grad()
def scan(
    model: LatentModel,
    x: Tensor,
    *,
    chunk: int,
    bound: bool = True,
    estimated: int = 0,
    samples: int = 0,
    sample_chunk: int = 1,
    generator: torch.Generator | None = None,
    progress: bool = False,
    what: str = "evaluating",
) -> Scan:
    """Passes over images ``(N, pixels)`` once.

    Args:
        model: its device is used.
        x: binary images.
        chunk: images at a time.
        bound: whether to measure log p(x | z) and the KL terms.
        estimated: how many of the first images log p(x) is estimated on.
        samples: number K of importance samples.
        sample_chunk: samples of each image at a time.
        generator: of the noise.
        progress: whether to show a progress bar.
        what: names the pass there.
    """
    from tqdm import tqdm

    parameter, found = next(model.parameters()), Scan()
    for start in tqdm(range(0, len(x), chunk), desc=what, unit="chunk", disable=not progress, leave=False):
        rows = x[start : start + chunk].to(parameter)
        posterior = model.encode(rows)
        if bound:
            log_p_x, kl = model.measure(rows, posterior, generator=generator)
            found.log_p_x.append(log_p_x)
            found.kl.append(kl)
        if start < estimated:

            def log_weights(k: int, rows: Tensor = rows, posterior: Any = posterior) -> Tensor:
                return model.log_weights(rows, posterior, k, generator=generator)

            accumulator = LogMeanExp()
            found.log_p.append(importance_log_prob(log_weights, samples, sample_chunk, accumulator=accumulator))
            found.effective.append(accumulator.effective_sample_size())
    return found


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
    passes: Literal["joint", "separate"] = "joint",
    progress: bool = False,
) -> Figures:
    """Bound and importance-sampled log p(x) of a trained model.

    Args:
        model: the model; its device is used.
        x: binary test images ``(N, pixels)``.
        valid: validation images, whose bound is measured, too.
        samples: number K of importance samples.
        log_p_images: how many test images log p(x) is estimated on.
        seed: of the posterior noise.
        image_chunk: images at a time.
        sample_chunk: samples of each image at a time.
        passes: ``"joint"``: one pass, in which log p(x) is estimated on the first images, with sums in the model's
            precision; ``"separate"``: bounds first, then log p(x) on images spread evenly over all, with sums in
            double precision.
        progress: whether to show progress bars.

    Returns:
        The means. The bound takes one sample of each image.
    """
    generator = torch.Generator(next(model.parameters()).device).manual_seed(stream_seed(seed, EVALUATION, 0))
    how: dict[str, Any] = {"chunk": image_chunk, "generator": generator, "progress": progress}
    importance: dict[str, Any] = {"samples": samples, "sample_chunk": sample_chunk}
    separate, count = passes == "separate", min(log_p_images, len(x))
    valid_elbo = None
    if valid is not None:
        valid_elbo = scan(model, valid, what="bound of valid images", **how).mean_bound(double=separate)[0]
    measured, estimated = scan_test(model, x, count, importance, how, separate=separate)
    elbo, kl_terms, elbo_error = measured.mean_bound(double=separate)
    log_p = torch.cat(estimated.log_p)[:count]
    return Figures(
        elbo=elbo,
        elbo_error=elbo_error,
        kl=sum(kl_terms),
        kl_terms=kl_terms,
        elbo_images=len(x),
        log_p=float(log_p.mean()),
        log_p_error=standard_error(log_p),
        log_p_images=count,
        samples=samples,
        effective_samples=float(torch.cat(estimated.effective)[:count].mean()),
        valid_elbo=valid_elbo,
    )


def scan_test(
    model: LatentModel, x: Tensor, count: int, importance: Mapping[str, Any], how: Mapping[str, Any], *, separate: bool
) -> tuple[Scan, Scan]:
    """The passes that measure the bounds of all images and estimate log p(x) of ``count``; one pass may do both."""
    if not separate:
        joint = scan(model, x, estimated=count, **importance, **how)
        return joint, joint
    measured = scan(model, x, what="bound of test images", **how)
    what = f"log p(x), K = {importance['samples']}"
    return measured, scan(model, spread(x, count), bound=False, estimated=count, what=what, **importance, **how)


def evaluate_exact(
    model: LatentModel, x: Tensor, *, valid: Tensor, image_chunk: int = 200, progress: bool = False
) -> Likelihoods:
    """Exact negative log-likelihoods of a model without latents.

    Args:
        model: the model; its device is used.
        x: binary test images ``(N, pixels)``.
        valid: validation images.
        image_chunk: images at a time.
        progress: whether to show a progress bar.
    """
    found = {
        name: scan(model, part, chunk=image_chunk, progress=progress, what=f"{name} images").mean_bound(double=True)
        for name, part in (("valid", valid), ("test", x))
    }
    return Likelihoods(-found["valid"][0], -found["test"][0], found["test"][2], len(valid), len(x))


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
