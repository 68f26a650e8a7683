"""The plane of two latent dimensions: decoded over a grid, and test images scattered over it by their class."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..errors import RecipeError

__all__ = ["check_plane", "find_means", "make_decoder"]

ROWS = 500


def check_plane(name: str, model: Any) -> None:
    """Checks that a model of the system ``name`` has two latent dimensions.

    Raises:
        RecipeError: it has others, or none of images.
    """
    features = getattr(model.config, "latent_features", None)
    if features is None or not hasattr(model, "decode"):
        raise RecipeError(f"{name} has no latent plane; choose a checkpoint of vae, m1, m2 or cvae")
    if features != 2:
        raise RecipeError(f"the model must have 2 latent dimensions, got {features}: train it with --latent 2")


def make_decoder(model: Any, label: int | None) -> Any:
    """A function from latents ``(N, 2)`` to intensities ``(N, pixels)``, of one class where the model has classes.

    Raises:
        RecipeError: ``label`` is no class of the model, or is None and the model has classes.
    """
    classes = getattr(model.config, "classes", 0)
    to_intensities = getattr(model, "to_intensities", torch.sigmoid)
    if not classes:
        if label is not None:
            raise RecipeError(f"label must be left out: the model has no classes, got {label}")
        return lambda z: to_intensities(model.decode(z))
    if label is None or not 0 <= label < classes:
        raise RecipeError(f"label must be 0 ... {classes - 1} for a model with classes, got {label}")
    return lambda z: to_intensities(model.decode(z, torch.full((len(z),), label)))


@torch.no_grad()
def find_means(model: Any, x: Tensor, labels: Tensor) -> Tensor:
    """The means ``(N, 2)`` of q(z | x), or of q(z | x, y) where the model has classes."""
    if getattr(model.config, "classes", 0):
        pairs = zip(x.split(ROWS), labels.split(ROWS), strict=True)
        return torch.cat([model.posterior(rows, own).mu for rows, own in pairs])
    return torch.cat([model.encode(rows).mean for rows in x.split(ROWS)])
