"""Fits of a posterior to a density on the plane."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .config import FOUR_POINTS, Posterior2dConfig
from .densities import DENSITIES
from .four_points import FourPoints
from .model import Posterior2d

__all__ = ["Fit2d", "Weigh", "fit_four_points", "fit_posterior", "measure_fit", "weigh_density", "weigh_problem"]

# Draws so many samples, and returns points (N, 2) with the terms of the bound, (N,).
Weigh = Callable[[int, torch.Generator], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Fit2d:
    """A fitted posterior, the bound it reaches with its standard error, nats, and samples of it ``(samples, 2)``."""

    posterior: nn.Module
    bound: float
    standard_error: float
    samples: Tensor


def fit_posterior(
    kind: str,
    log_density: Callable[[Tensor], Tensor],
    config: Posterior2dConfig,
    *,
    device: torch.device | str = "cpu",
    start: Posterior2d | None = None,
    each_step: Callable[[float], None] | None = None,
) -> Fit2d:
    r"""Fits a posterior by maximising :math:`\mathbb{E}_q[\log \tilde p(z) - \log q(z)] \le \log \int \tilde p`.

    Args:
        kind: ``"diagonal"``, ``"triangular"`` or ``"iaf"``.
        log_density: :math:`\log \tilde p`, of points ``(N, 2)``.
        config: how to fit.
        device: where to fit.
        start: a Gaussian whose mean and scales a fit begins at, besides those of ``config.starts``.
        each_step: called after every step with its bound.

    Returns:
        The fit; the bound is estimated from ``config.samples`` new samples.
    """
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        posterior = Posterior2d(kind, depth=config.depth, width=config.width, impl=config.impl).to(device)
        starts = [(torch.zeros(2), torch.zeros(2))]
        if kind != "iaf":
            # Mode-seeking fits get stuck where they begin.
            starts += [(torch.randn(2), -torch.ones(2)) for _ in range(config.starts - 1)]
        if start is not None:
            starts.append((start.mu.detach(), start.log_sigma.detach()))
    generator = torch.Generator(device).manual_seed(config.seed)
    best: Fit2d | None = None
    for mu, log_sigma in starts:
        attempt = copy.deepcopy(posterior)
        with torch.no_grad():
            attempt.mu.copy_(mu)
            attempt.log_sigma.copy_(log_sigma)
        weigh = weigh_density(attempt, log_density)
        maximise(attempt, weigh, config, generator, each_step)
        fit = measure_fit(attempt, weigh, config.samples, generator)
        if best is None or fit.bound > best.bound:
            best = fit
    assert best is not None
    return best


def fit_four_points(
    kind: str,
    config: Posterior2dConfig,
    *,
    device: torch.device | str = "cpu",
    each_step: Callable[[float], None] | None = None,
) -> Fit2d:
    """Fits the VAE of four data points; arguments as of :func:`fit_posterior`. The samples are those of the four in
    turn.
    """
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        model = FourPoints(kind, depth=config.depth, width=config.width, impl=config.impl).to(device)
    generator = torch.Generator(device).manual_seed(config.seed)
    maximise(model, model.weigh, config, generator, each_step)
    return measure_fit(model, model.weigh, config.samples, generator)


def weigh_density(posterior: Posterior2d, log_density: Callable[[Tensor], Tensor]) -> Weigh:
    """Draws of a posterior, with the terms of its bound on a density's normaliser."""

    def weigh(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        z, log_q = posterior.rsample_with_log_prob(count, generator)
        return z, log_density(z) - log_q

    return weigh


def weigh_problem(name: str, posterior: nn.Module) -> Weigh:
    """The same of a fit to the density of this name, or of a VAE in its place."""
    if isinstance(posterior, FourPoints) and name == FOUR_POINTS:
        return posterior.weigh
    assert isinstance(posterior, Posterior2d)
    return weigh_density(posterior, DENSITIES[name])


def maximise(
    posterior: nn.Module,
    weigh: Weigh,
    config: Posterior2dConfig,
    generator: torch.Generator,
    each_step: Callable[[float], None] | None,
) -> None:
    optimizer = torch.optim.Adam(posterior.parameters(), lr=config.learning_rate, fused=True)
    for step in range(config.steps):
        progress = step / config.steps
        share = min(progress / 0.05 + 0.01, 1.0) * 0.5 * (1.0 + math.cos(math.pi * progress))
        optimizer.param_groups[0]["lr"] = config.learning_rate * share
        bound = weigh(config.batch_size, generator)[1].mean()
        optimizer.zero_grad(set_to_none=True)
        (-bound).backward()
        optimizer.step()
        if each_step is not None:
            each_step(bound.item())


@torch.no_grad()
def measure_fit(posterior: nn.Module, weigh: Weigh, samples: int, generator: torch.Generator) -> Fit2d:
    z, terms = weigh(samples, generator)
    values = terms.double()
    error = float(values.std(correction=0)) / math.sqrt(len(values))
    return Fit2d(posterior, float(values.mean()), error, z.cpu())
