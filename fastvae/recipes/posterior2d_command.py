"""The command ``fastvae train posterior2d``."""

from __future__ import annotations

import argparse
from math import isfinite
from pathlib import Path
from typing import Any

from ..backend import IMPLEMENTATIONS
from . import RecipeError
from .config_file import read_config_file
from .densities2d import DENSITIES
from .options import add_accelerator, add_folder, built, check_impl, given, option_adder, positive, seed
from .paths import check_folder
from .posterior2d import Posterior2dConfig, run_posterior2d

__all__ = ["add_to"]


def add_to(recipes: Any) -> None:
    """Adds the command to what ``add_subparsers`` returned."""
    command = recipes.add_parser(
        "posterior2d",
        help="three posteriors fitted to awkward densities on the plane, and drawn",
        description="Fit a diagonal Gaussian, a full-covariance Gaussian and an inverse autoregressive flow to "
        "densities on the plane, by maximising the evidence lower bound; print the bounds and draw the fits.",
    )
    command.set_defaults(command=fit, parser=command)
    add_folder(command, "posterior2d-out")
    command.add_argument(
        "--config", type=Path, metavar="FILE", help="TOML or JSON with any of the settings below; options win over it"
    )
    command.add_argument("--no-progress", action="store_true", help="no progress bars")
    add_accelerator(command)
    add = option_adder(command, "fits", Posterior2dConfig)
    add("--densities", "densities", "what is fitted", choices=tuple(DENSITIES), nargs="+")
    add("--depth", "depth", "flow steps", type=positive, metavar="T")
    add("--width", "width", "width of the two hidden layers of each step", type=positive, metavar="W")
    add("--steps", "steps", "steps of Adam", type=positive, metavar="N")
    add("--batch-size", "batch_size", "samples in a step", type=positive, metavar="N")
    add("--learning-rate", "learning_rate", "its peak", type=float, metavar="R")
    add("--samples", "samples", "samples for the bound and the picture", type=positive, metavar="N")
    add("--starts", "starts", "fits of each Gaussian, of which the best is kept", type=positive, metavar="N")
    add("--seed", "seed", "of weights and noise", type=seed, metavar="N")
    add("--impl", "impl", "implementation of every op", choices=IMPLEMENTATIONS)


def fit(options: argparse.Namespace) -> None:
    from .trainer import device_of

    device = device_of(options.accelerator)
    chosen = {} if options.config is None else read_config_file(options.config, "posterior2d", [Posterior2dConfig])
    chosen |= given(options, Posterior2dConfig)
    config = built(options, Posterior2dConfig, chosen)
    check_impl(config.impl, options.accelerator)
    check_folder(options.out)
    found = run_posterior2d(options.out, config, device=device, progress=not options.no_progress)
    if not all(
        isfinite(fit["bound"]) for density in found["densities"].values() for fit in density["posteriors"].values()
    ):
        raise RecipeError(f"a bound is not finite: try a lower learning rate than {config.learning_rate}")
    print(f"\n{found['seconds']:.0f} s in all; posteriors.png and result.json are in {options.out}")
