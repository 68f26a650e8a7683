"""Figures in lines for the terminal."""

from __future__ import annotations

from .bounds import Figures, Likelihoods
from .speed import SAMPLED

__all__ = ["describe_figures", "describe_likelihoods"]


def describe_figures(figures: Figures, *, bound: str = "test ELBO", images: str = "images") -> list[str]:
    """The bound, log p(x), and the speed of sampling where it was measured.

    Args:
        figures: of a model with latents.
        bound: the name of the bound.
        images: the name of the images.
    """
    terms = " + ".join(f"{term:.2f}" for term in figures.kl_terms)
    lines = [
        f"{bound:<10} {figures.elbo:.2f} nats, of which KL {terms} ({figures.elbo_images} {images}), "
        f"standard error {figures.elbo_error:.2f}",
        f"log p(x)   {figures.log_p:.2f} nats (K = {figures.samples}, {figures.log_p_images} {images}; "
        f"{figures.effective_samples:.1f} effective samples), standard error {figures.log_p_error:.2f}",
    ]
    return lines + describe_speed(figures.sampled_images_per_second)


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
