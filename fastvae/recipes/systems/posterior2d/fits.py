"""The fits of a run, one after the other: their figures, samples and weights, kept in a checkpoint."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from ...errors import RecipeError
from ...training.checkpoints import CHECKPOINT, read_checkpoint, write_checkpoint
from ...training.history import write_metrics
from .config import FITS, FOUR_POINTS, Posterior2dConfig
from .densities import DENSITIES, log_normalizer
from .four_points import LARGEST_BOUND
from .model import Posterior2d
from .task import fit_four_points, fit_posterior

__all__ = ["Fits", "Posterior2dFigures", "find_limit"]

COLUMNS = ("epoch", "density", "posterior", "log_normalizer", "bound", "standard_error", "gap", "seconds")


def find_limit(name: str) -> float:
    """The largest bound: the logarithm of a density's integral, or that of the VAE in its place; nats."""
    return LARGEST_BOUND if name == FOUR_POINTS else log_normalizer(DENSITIES[name])


@dataclass(frozen=True)
class Posterior2dFigures:
    """For each density the logarithm of its integral; for each posterior bound, standard error and gap; nats.

    The gap is the divergence KL(q || p). Of the VAE of four data points the largest bound is in the integral's place.
    """

    densities: dict[str, Any]


@dataclass
class Fits:
    """Fits that are done: a row of figures for each, samples and weights by density and kind."""

    history: list[dict[str, Any]] = field(default_factory=list)
    samples: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    weights: dict[str, Tensor] = field(default_factory=dict)

    def add(self, density: str, kind: str, config: Posterior2dConfig, *, device: torch.device, progress: bool) -> None:
        """Fits a posterior of this kind to a density."""
        start = self.diagonal(density, config) if kind == "triangular" else None
        began, log_z, once = time.perf_counter(), find_limit(density), kind == "iaf" or density == FOUR_POINTS
        total = config.steps * (1 if once else config.starts + (start is not None))
        with tqdm(total=total, desc=f"{density}, {kind}", disable=not progress, leave=False) as bar:

            def each_step(bound: float) -> None:
                bar.update()
                if bar.n % 50 == 0:
                    bar.set_postfix(bound=f"{bound:.3f}")

            how: dict[str, Any] = {"device": device, "each_step": each_step}
            if density == FOUR_POINTS:
                fit = fit_four_points(kind, config, **how)
            else:
                fit = fit_posterior(kind, DENSITIES[density], config, start=start, **how)
        weights = fit.posterior.state_dict().items()
        self.weights |= {f"model.{density}.{kind}.{name}": value.cpu() for name, value in weights}
        self.samples.setdefault(density, {})[kind] = fit.samples
        self.history.append(
            {
                "epoch": len(self.history) + 1,
                "density": density,
                "posterior": kind,
                "log_normalizer": log_z,
                "bound": fit.bound,
                "standard_error": fit.standard_error,
                "gap": log_z - fit.bound,
                "seconds": time.perf_counter() - began,
            }
        )

    def diagonal(self, density: str, config: Posterior2dConfig) -> Posterior2d:
        """The diagonal Gaussian fitted to a density."""
        found, prefix = Posterior2d("diagonal", impl=config.impl), f"model.{density}.diagonal."
        found.load_state_dict(
            {name.removeprefix(prefix): value for name, value in self.weights.items() if name.startswith(prefix)}
        )
        return found

    def check(self, config: Posterior2dConfig) -> None:
        """Checks the last bound.

        Raises:
            RecipeError: it is not finite.
        """
        if not math.isfinite(self.history[-1]["bound"]):
            raise RecipeError(f"a bound is not finite: try a lower learning rate than {config.learning_rate}")

    def figures(self) -> Posterior2dFigures:
        """The figures by density and kind."""
        found: dict[str, Any] = {}
        for row in self.history:
            part = found.setdefault(row["density"], {"log_normalizer": row["log_normalizer"], "posteriors": {}})
            part["posteriors"][row["posterior"]] = {name: row[name] for name in ("bound", "standard_error", "gap")}
        return Posterior2dFigures(found)

    def write(self, hyper_parameters: dict[str, Any], folder: Path) -> Path:
        """Writes ``metrics.csv`` and the checkpoint; returns the checkpoint's path."""
        write_metrics(self.history, COLUMNS, folder / "metrics.csv")
        done = {"epoch_progress": {"current": {"processed": len(self.history)}}}
        content = {
            "hyper_parameters": hyper_parameters,
            "state_dict": self.weights,
            "history": self.history,
            "samples": self.samples,
            "loops": {"fit_loop": done},
        }
        write_checkpoint(content, folder / CHECKPOINT)
        return folder / CHECKPOINT

    @classmethod
    def read(cls, path: Path) -> Fits:
        """The fits in a checkpoint.

        Raises:
            RecipeError: it cannot be read, or its parts do not belong together.
        """
        content = read_checkpoint(path)
        try:
            found = cls(list(content["history"]), dict(content["samples"]), dict(content["state_dict"]))
            for row in found.history:
                if row["posterior"] not in FITS or found.samples[row["density"]][row["posterior"]].shape[1:] != (2,):
                    raise ValueError("its fits are none")
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise RecipeError(f"{path} cannot be continued: {error!r}") from None
        return found
