"""Figures in lines for the terminal."""

from __future__ import annotations

from itertools import chain

from .bounds import Figures, Likelihoods
from .speed import SAMPLED
from .units import Units

__all__ = ["describe_figures", "describe_likelihoods"]

# Terms of a KL divergence that a line names one by one.
MOST_TERMS = 6


def describe_figures(figures: Figures, *, bound: str = "test ELBO", images: str = "images") -> list[str]:
    """The bound, log p(x), the units and the speed of sampling where they were measured.

    Args:
        figures: of a model with latents.
        bound: the name of the bound.
        images: the name of the images.
    """
    pairs = zip(figures.kl_terms, figures.kl_terms_error, strict=True)
    terms = " + ".join(f"{term:.2f} ± {error:.2f}" for term, error in pairs)
    if len(figures.kl_terms) > MOST_TERMS:
        terms = f"{figures.kl:.2f} in {len(figures.kl_terms)} terms"
    lines = [
        f"{bound:<10} {figures.elbo:.2f} nats, of which KL {terms} ({figures.elbo_images} {images}), "
        f"standard error {figures.elbo_error:.2f}",
        f"log p(x)   {figures.log_p:.2f} nats (K = {figures.samples}, {figures.log_p_images} {images}; "
        f"{figures.effective_samples:.1f} ± {figures.effective_samples_error:.1f} effective samples), standard error "
        f"{figures.log_p_error:.2f}",
    ]
    return lines + describe_units(figures.units) + describe_speed(figures.sampled_images_per_second)


def describe_units(units: Units) -> list[str]:
    """How many units of each layer are active, and their KL parts."""
    if not units.number:
        return []
    pairs = list(zip(units.active, units.number, strict=True))
    if len(pairs) > MOST_TERMS:
        pairs = [(sum(units.active), sum(units.number))]
    counts = ", ".join(f"{active} of {number}" for active, number in pairs)
    kl = list(chain(*units.kl))
    return [f"units      {counts} active, KL of a unit {min(kl):.2f} to {max(kl):.2f} nats"]


def describe_likelihoods(figures: Likelihoods) -> list[str]:
    """The negative log-likelihoods, and the speed of sampling where it was measured."""
    lines = [
        f"NLL        {figures.valid_nll:.2f} nats, validation ({figures.valid_images} images)",
        f"NLL        {figures.test_nll:.2f} nats, test ({figures.test_images} images), standard error "
        f"{figures.test_nll_error:.2f}",
    ]
    return lines + describe_speed(figures.sampled_images_per_second)


def describe_speed(images_per_second: float | None) -> list[str]:
    return (
        [] if images_per_second is None else [f"sampling   {images_per_second:.1f} images/s, in batches of {SAMPLED}"]
    )
