"""Settings of the system ``posterior2d``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from ...settings import Implementation, check_choices, check_positive, check_whole, to_plain

__all__ = ["FITS", "FITS_OF_POINTS", "FOUR_POINTS", "Density", "Posterior2dConfig", "Posterior2dSettings"]

FITS = ("diagonal", "triangular", "iaf")
# The VAE of four data points, in the place of a density, and the posteriors that it is fitted with.
FOUR_POINTS, FITS_OF_POINTS = "four_points", ("diagonal", "iaf")
Density = Literal["ring", "banana", "crescents", "ridge"]


@dataclass(frozen=True)
class Posterior2dConfig:
    """The densities, and how to fit posteriors to them, as plain data.

    Args:
        densities: names out of :data:`fastvae.recipes.systems.posterior2d.densities.DENSITIES`.
        depth: flow steps.
        width: width of the two hidden layers of each flow step.
        steps: steps of Adam.
        batch_size: samples in a step.
        learning_rate: peak of the schedule: a linear rise in the first 5 % of the steps, then half a cosine.
        samples: samples that the bound is estimated from, and that are drawn.
        starts: fits of each Gaussian, all but one from random means; the best is kept. The full-covariance Gaussian
            also starts at the diagonal one's fit. The flow is fitted once.
        seed: of weights and noise.
        impl: implementation of every op, see :mod:`fastvae.backend`.
        figure: ``"densities"``, fits to densities, or ``"four-points"``: a VAE of four data points with latents in the
            plane, whose posteriors together fill the prior as well as they can, once with factorised Gaussians and
            once with flows.

    Raises:
        ValueError: a name is unknown or a number out of its range.
    """

    densities: tuple[Density, ...] = ("ring", "banana", "crescents", "ridge")
    depth: int = 5
    width: int = 48
    steps: int = 1500
    batch_size: int = 256
    learning_rate: float = 5e-3
    samples: int = 100_000
    starts: int = 5
    seed: int = 0
    impl: Implementation = "auto"
    figure: Literal["densities", "four-points"] = "densities"

    def __post_init__(self) -> None:
        check_choices(self)
        if not self.densities:
            raise ValueError("densities must name one or more densities, got none")
        check_whole(self, depth=1, width=1, steps=1, batch_size=1, samples=1, starts=1, seed=0)
        check_positive(self, "learning_rate")

    @property
    def problems(self) -> dict[str, tuple[str, ...]]:
        """The densities, or the VAE in their place, and the posteriors of each."""
        if self.figure == "four-points":
            return {FOUR_POINTS: FITS_OF_POINTS}
        return dict.fromkeys(self.densities, FITS)

    def as_dict(self) -> dict[str, Any]:
        return to_plain(self)


@dataclass(frozen=True)
class Posterior2dSettings:
    """All settings of a run of ``posterior2d``."""

    model: Posterior2dConfig = field(default_factory=Posterior2dConfig)
