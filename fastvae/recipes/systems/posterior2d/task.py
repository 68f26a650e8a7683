"""Three kinds of posterior fitted to awkward densities on the plane, and drawn side by side."""

from __future__ import annotations

import copy
import math
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .. import backend
from .._version import __version__
from ..distributions import DiagonalGaussian, TriangularGaussian
from ..nn import InverseAutoregressiveFlow
from .config import check_whole
from .densities2d import DENSITIES, log_normalizer
from .files import write_json

__all__ = ["FITS", "Fit2d", "Posterior2dConfig", "fit_posterior", "run_posterior2d"]

FITS = ("diagonal", "triangular", "iaf")


@dataclass(frozen=True)
class Posterior2dConfig:
    """What is fitted and how, as plain data.

    Args:
        densities: names out of :data:`fastvae.recipes.densities2d.DENSITIES`.
        depth: steps of the flow.
        width: width of the two hidden layers of each step's network.
        steps: steps of Adam.
        batch_size: samples in a step.
        learning_rate: peak of the schedule: a linear rise in the first 5 % of the steps, then half a cosine.
        samples: samples that the bound is estimated from, and that are drawn.
        starts: fits of each Gaussian, all but one from random means, of which the best is kept; the full-covariance
            one also starts at the diagonal one's fit. The flow is fitted once.
        seed: of weights and noise.
        impl: implementation of every op, see :mod:`fastvae.backend`.

    Raises:
        ValueError: a name is unknown or a number out of its range.
    """

    densities: tuple[str, ...] = tuple(DENSITIES)
    depth: int = 5
    width: int = 48
    steps: int = 1500
    batch_size: int = 256
    learning_rate: float = 5e-3
    samples: int = 100_000
    starts: int = 5
    seed: int = 0
    impl: str = "auto"

    def __post_init__(self) -> None:
        object.__setattr__(self, "densities", tuple(self.densities))
        if not self.densities:
            raise ValueError("densities must name one or more densities, got none")
        for name in self.densities:
            if name not in DENSITIES:
                raise ValueError(f"densities must be out of {', '.join(DENSITIES)}, got {name!r}")
        if self.impl not in backend.IMPLEMENTATIONS:
            raise ValueError(f"impl must be one of {', '.join(backend.IMPLEMENTATIONS)}, got {self.impl!r}")
        check_whole(self, depth=1, width=1, steps=1, batch_size=1, samples=1, starts=1, seed=0)
        if not 0 < self.learning_rate < math.inf:
            raise ValueError(f"learning_rate must be > 0 and finite, got {self.learning_rate}")


class Posterior2d(nn.Module):
    """A distribution on the plane: a Gaussian with learned parameters, carried on by a flow if it is ``"iaf"``.

    Args:
        kind: ``"diagonal"``, ``"triangular"`` or ``"iaf"``.
        depth: steps of the flow.
        width: width of its hidden layers.
        impl: implementation of every op, see :mod:`fastvae.backend`.

    Raises:
        ValueError: ``kind`` is none of those above.

    Example:
        >>> z, log_q = Posterior2d("iaf", depth=2, width=8).rsample_with_log_prob(10)
        >>> z.shape, log_q.shape
        (torch.Size([10, 2]), torch.Size([10]))
    """

    def __init__(self, kind: str, *, depth: int = 5, width: int = 48, impl: str = "auto") -> None:
        super().__init__()
        if kind not in FITS:
            raise ValueError(f"kind must be one of {', '.join(FITS)}, got {kind!r}")
        self.impl = impl
        self.mu, self.log_sigma = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2))
        self.tril = nn.Parameter(torch.zeros(1)) if kind == "triangular" else None
        self.flow = (
            InverseAutoregressiveFlow(2, (width, width), steps=depth, kind="softplus", activation="tanh", impl=impl)
            if kind == "iaf"
            else None
        )

    def rsample_with_log_prob(self, count: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """``count`` samples ``(count, 2)`` and their log-densities ``(count,)``."""
        base: DiagonalGaussian | TriangularGaussian
        if self.tril is None:
            base = DiagonalGaussian(self.mu, self.log_sigma, impl=self.impl)
        else:
            base = TriangularGaussian(self.mu, self.log_sigma, self.tril, impl=self.impl)
        z, log_q = base.rsample_with_log_prob((count,), generator=generator)
        if self.flow is None:
            return z, log_q
        z, log_det = self.flow(z)
        return z, log_q - log_det


@dataclass(frozen=True)
class Fit2d:
    """A fitted posterior, the bound it reaches with its standard error, nats, and samples of it ``(samples, 2)``."""

    posterior: Posterior2d
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
        device: where to.
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
        maximise(attempt, log_density, config, generator, each_step)
        fit = measured(attempt, log_density, config.samples, generator)
        if best is None or fit.bound > best.bound:
            best = fit
    assert best is not None
    return best


def maximise(
    posterior: Posterior2d,
    log_density: Callable[[Tensor], Tensor],
    config: Posterior2dConfig,
    generator: torch.Generator,
    each_step: Callable[[float], None] | None,
) -> None:
    optimizer = torch.optim.Adam(posterior.parameters(), lr=config.learning_rate, fused=True)
    for step in range(config.steps):
        progress = step / config.steps
        share = min(progress / 0.05 + 0.01, 1.0) * 0.5 * (1.0 + math.cos(math.pi * progress))
        optimizer.param_groups[0]["lr"] = config.learning_rate * share
        z, log_q = posterior.rsample_with_log_prob(config.batch_size, generator)
        bound = (log_density(z) - log_q).mean()
        optimizer.zero_grad(set_to_none=True)
        (-bound).backward()
        optimizer.step()
        if each_step is not None:
            each_step(bound.item())


@torch.no_grad()
def measured(
    posterior: Posterior2d, log_density: Callable[[Tensor], Tensor], samples: int, generator: torch.Generator
) -> Fit2d:
    z, log_q = posterior.rsample_with_log_prob(samples, generator)
    values = (log_density(z) - log_q).double()
    error = float(values.std(correction=0)) / math.sqrt(samples)
    return Fit2d(posterior, float(values.mean()), error, z.cpu())


def run_posterior2d(
    folder: Path,
    config: Posterior2dConfig | None = None,
    *,
    device: torch.device | str = "cpu",
    progress: bool = True,
) -> dict[str, Any]:
    """Fits every posterior to every density; prints a table, writes ``result.json`` and ``posteriors.png``.

    Args:
        folder: where both go.
        config: what to fit and how.
        device: where to fit.
        progress: whether to show progress bars.

    Returns:
        The results as plain data: of each density the logarithm of its integral, of each posterior the bound, its
        standard error and the gap, which is the divergence KL(q || p), nats.
    """
    from tqdm import tqdm

    from .pictures2d import draw_posteriors

    config = Posterior2dConfig() if config is None else config
    started = time.perf_counter()
    results: dict[str, Any] = {}
    samples: dict[str, dict[str, Tensor]] = {}
    for name in config.densities:
        log_density = DENSITIES[name]
        log_z = log_normalizer(log_density)
        results[name], samples[name] = {"log_normalizer": log_z, "posteriors": {}}, {}
        diagonal: Posterior2d | None = None
        for kind in FITS:
            start = diagonal if kind == "triangular" else None
            total = config.steps * (1 if kind == "iaf" else config.starts + (start is not None))
            with tqdm(total=total, desc=f"{name}, {kind}", disable=not progress, leave=False) as bar:

                def each_step(bound: float, bar: Any = bar) -> None:
                    bar.update()
                    if bar.n % 50 == 0:
                        bar.set_postfix(bound=f"{bound:.3f}")

                fit = fit_posterior(kind, log_density, config, device=device, start=start, each_step=each_step)
            diagonal = fit.posterior if kind == "diagonal" else diagonal
            results[name]["posteriors"][kind] = {
                "bound": fit.bound,
                "standard_error": fit.standard_error,
                "gap": log_z - fit.bound,
            }
            samples[name][kind] = fit.samples
    draw_posteriors(samples, results, folder / "posteriors.png")
    found = {
        "recipe": "posterior2d",
        "densities": results,
        "config": asdict(config),
        "seconds": time.perf_counter() - started,
        "versions": {"fastvae": __version__, "torch": torch.__version__, "python": platform.python_version()},
        "threads": torch.get_num_threads(),
    }
    write_json(folder / "result.json", found)
    print(table(results, FITS))
    return found


def table(results: Mapping[str, Any], kinds: Sequence[str]) -> str:
    """One line for each density: the logarithm of its integral, and each posterior's bound, nats."""
    width = max(len("density"), *map(len, results))
    lines = ["density".ljust(width) + "".join(cell.rjust(12) for cell in ("log Z", *kinds))]
    lines.append("-" * len(lines[0]))
    for name, row in results.items():
        bounds = [row["log_normalizer"], *(row["posteriors"][kind]["bound"] for kind in kinds)]
        lines.append(name.ljust(width) + "".join(f"{bound:12.3f}" for bound in bounds))
    return "\n".join(lines)
