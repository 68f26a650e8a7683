"""What each latent unit does: its part of the KL divergence, and whether its posterior mean varies over images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeGuard

import torch
from torch import Tensor

from ... import functional as F
from .chunks import Chunk
from .features import LEAST

__all__ = ["HasUnits", "Units", "has_units", "kl_by_unit", "log_prob_by_unit", "measure_units", "summarise_units"]

# Draws in each of the two averages that the variance of a posterior mean is estimated from.
DRAWS = 8
DIGITS = 6


class HasUnits(Protocol):
    """The part of a model that knows its units; layers are listed from below.

    ``measure_units`` returns log p(x | z) of one sample, ``(N,)``, and of each layer the part of every unit in the
    KL divergence, ``(N, D)``, nats. ``average_units`` returns of each layer the mean of every unit under q, ``(N, D)``:
    exact, or of so many samples.
    """

    def measure_units(self, x: Tensor, posterior: Any, **noise: Any) -> tuple[Tensor, list[Tensor]]: ...
    def average_units(self, posterior: Any, samples: int, **noise: Any) -> list[Tensor]: ...


@dataclass(frozen=True)
class Units:
    """The units of each layer of latents, from below: how many there are, and how many are active.

    ``kl`` has the KL part of every unit, a mean over test images, nats, and ``kl_error`` its standard error.
    ``mean_variance`` is the variance over images of a unit's mean under q. An active unit's is above 0.01.
    """

    number: tuple[int, ...] = ()
    active: tuple[int, ...] = ()
    kl: tuple[tuple[float, ...], ...] = ()
    kl_error: tuple[tuple[float, ...], ...] = ()
    mean_variance: tuple[tuple[float, ...], ...] = ()


def has_units(model: Any) -> TypeGuard[HasUnits]:
    """Whether a model knows its units."""
    return hasattr(model, "measure_units")


def kl_by_unit(mu: Tensor, log_sigma: Tensor, prior_mu: Tensor, prior_log_sigma: Tensor) -> Tensor:
    """The divergence of a diagonal Gaussian from another in each dimension, of the shape of ``mu``, nats."""
    parameters = (part.unsqueeze(-1) for part in (mu, log_sigma, prior_mu, prior_log_sigma))
    return F.diag_gaussian_kl(*parameters)


def log_prob_by_unit(z: Tensor, mu: Tensor, log_sigma: Tensor) -> Tensor:
    """The log-density of a diagonal Gaussian in each dimension, of the shape of ``z``, nats."""
    return F.diag_gaussian_log_prob(*(part.unsqueeze(-1) for part in (z, mu, log_sigma)))


def measure_units(
    model: HasUnits, x: Tensor, posterior: Any, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """What is found of a chunk of N images, in float64.

    Args:
        model: the model.
        x: the images ``(N, pixels)``.
        posterior: what the model's ``encode`` returned for them.
        generator: of the noise.

    Returns:
        log p(x | z), ``(N,)``; the KL divergence of each layer, ``(N, layers)``; and sums over the images, a column for
        each unit of all layers: the number of its layer, its KL part, that part's square, two independent estimates of
        its mean under q, and their product, ``(6, units)``.
    """
    log_p_x, kl = model.measure_units(x, posterior, generator=generator)
    parts = torch.cat([layer.double() for layer in kl], 1)
    one, other = (
        torch.cat([layer.double() for layer in model.average_units(posterior, DRAWS, generator=generator)], 1)
        for _ in range(2)
    )
    sums = torch.stack([of_images.sum(0) for of_images in (parts, parts.square(), one, other, one * other)])
    layers = torch.cat([torch.full((layer.shape[1],), float(i)) for i, layer in enumerate(kl)])
    terms = torch.stack([layer.double().sum(1) for layer in kl], 1)
    return log_p_x.double(), terms, torch.cat([layers.to(sums)[None], sums])


def summarise_units(chunks: Sequence[Chunk]) -> Units:
    """The units' figures out of the chunks of a pass; none where the model does not know its units.

    The covariance of two independent estimates of a mean is the variance of the mean: their noise does not add to it.
    """
    if not chunks[0].units.shape[1]:
        return Units()
    layers, count = chunks[0].units[0], sum(len(chunk.bound) for chunk in chunks)
    kl, squares, one, other, product = torch.stack([chunk.units[1:] for chunk in chunks]).sum(0) / count
    errors = (squares - kl.square()).clamp(min=0.0).sqrt() / math.sqrt(count)
    variances = product - one * other
    members = [layers == layer for layer in layers.unique().tolist()]

    def by_layer(values: Tensor) -> tuple[tuple[float, ...], ...]:
        return tuple(tuple(float(f"{value:.{DIGITS}g}") for value in values[member].tolist()) for member in members)

    return Units(
        number=tuple(int(member.sum()) for member in members),
        active=tuple(int((variances[member] > LEAST**2).sum()) for member in members),
        kl=by_layer(kl),
        kl_error=by_layer(errors),
        mean_variance=by_layer(variances),
    )
