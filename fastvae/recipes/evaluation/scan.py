"""Passes over images in chunks: the bound and its KL terms, and importance sampling in the memory of one chunk."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sized
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ...objectives import LogMeanExp, importance_log_prob
from ..data.batches import EVALUATION, stream_seed
from .chunks import Chunk
from .job import Ledger
from .units import has_units, measure_units

__all__ = ["LatentModel", "scan"]

# A pass has noise of its own.
PASSES = ("test", "log p", "valid")


class LatentModel(Protocol):
    """The part of a model, a module, that evaluation calls.

    ``encode`` returns a posterior of any kind. ``measure`` returns log p(x | z) of one sample, ``(N,)``, and the KL
    terms, ``(N, T)``; a model without latents has T = 0. ``log_weights`` returns log p(x, z) - log q(z | x) of new
    samples, ``(samples, N)``. ``noise`` is ``generator``, ``row_offset`` or ``eps``. Figures of single units need a
    :class:`~fastvae.recipes.evaluation.units.HasUnits`.
    """

    def encode(self, x: Tensor) -> Any: ...
    def measure(self, x: Tensor, posterior: Any = None, **noise: Any) -> tuple[Tensor, Tensor]: ...
    def log_weights(self, x: Tensor, posterior: Any, samples: int, **noise: Any) -> Tensor: ...
    def parameters(self) -> Iterator[nn.Parameter]: ...
    def state_dict(self) -> dict[str, Any]: ...


@torch.no_grad()
def scan(
    model: LatentModel,
    x: Tensor,
    ledger: Ledger,
    name: str,
    *,
    chunk: int,
    units: bool = False,
    samples: int = 0,
    sample_chunk: int = 1,
    seed: int = 0,
    progress: bool = False,
    what: str = "evaluating",
) -> list[Chunk]:
    """Passes over images ``(N, pixels)`` once; the noise of a chunk is a function of seed, pass and first image.

    It measures log p(x | z) and the KL terms or, with ``samples``, estimates log p(x).

    Args:
        model: its device is used.
        x: binary images.
        ledger: the chunks that are done, which it takes the others in.
        name: of the pass, one of :data:`PASSES`.
        chunk: images at a time.
        units: whether to measure the units of a model that knows them.
        samples: number K of importance samples.
        sample_chunk: samples of each image at a time.
        seed: of the noise.
        progress: whether to show a progress bar, which moves with every chunk of samples.
        what: names the pass there.
    """
    from tqdm import tqdm

    parameter, firsts = next(model.parameters()), range(0, len(x), chunk)
    done, together = ledger.find(name), ledger.job.processes.count
    left = [first for first in firsts if first not in done]

    def count_steps(some: Sized) -> int:
        return len(some) * (-(-samples // sample_chunk) if samples else 1)

    def measure(first: int) -> Chunk:
        rows = x[first : first + chunk].to(parameter)
        generator = torch.Generator(rows.device).manual_seed(stream_seed(seed, EVALUATION, first, PASSES.index(name)))
        if samples:
            return estimate_chunk(model, rows, generator, samples, sample_chunk, lambda: bar.update())
        return measure_chunk(model, rows, generator, units)

    steps = count_steps(firsts)
    with tqdm(
        total=steps, initial=steps - count_steps(left), desc=what, unit="chunk", disable=not progress, leave=False
    ) as bar:
        for index in range(0, len(left), together):
            shared, before = left[index : index + together], bar.n
            ledger.share(name, shared, measure)
            bar.update(count_steps(shared) - (bar.n - before))
    return [done[first] for first in firsts]


def measure_chunk(model: LatentModel, rows: Tensor, generator: torch.Generator, units: bool) -> Chunk:
    """log p(x | z) and the KL terms of the images ``rows`` and, if asked for, what the units do."""
    posterior, nothing = model.encode(rows), rows.new_empty(len(rows), 0).double().cpu()
    if units and has_units(model):
        log_p_x, kl, sums = measure_units(model, rows, posterior, generator)
        return Chunk(torch.cat([log_p_x[:, None], kl], 1).cpu(), nothing, sums.cpu())
    log_p_x, kl = model.measure(rows, posterior, generator=generator)
    return Chunk(torch.cat([log_p_x[:, None], kl], 1).double().cpu(), nothing)


def estimate_chunk(
    model: LatentModel,
    rows: Tensor,
    generator: torch.Generator,
    samples: int,
    sample_chunk: int,
    advance: Callable[[], Any],
) -> Chunk:
    """log p(x) of the images ``rows`` and the effective sample size; ``advance`` is called after every chunk."""
    posterior = model.encode(rows)

    def log_weights(count: int) -> Tensor:
        log_w = model.log_weights(rows, posterior, count, generator=generator)
        advance()
        return log_w

    accumulator = LogMeanExp()
    log_p = importance_log_prob(log_weights, samples, sample_chunk, accumulator=accumulator)
    found = torch.stack([log_p, accumulator.effective_sample_size()], 1).double().cpu()
    return Chunk(found[:, :0], found)
