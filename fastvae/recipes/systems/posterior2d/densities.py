r"""Awkward densities on the plane, unnormalised, and their normalisers.

========  ===========================================================================================================
name      log-density up to a constant, at z = (x, y)
========  ===========================================================================================================
ring      :math:`-\tfrac12 ((\lVert z \rVert - 2) / 0.3)^2`
banana    :math:`-\tfrac12 (x / 1.4)^2 - \tfrac12 ((y - 0.5 x^2 + 1.5) / 0.4)^2`
crescents log of the sum over (s, c) = (1, -1), (-1, 1) of
          :math:`\exp(-\tfrac12 ((\lVert z - m \rVert - 1.6) / 0.2)^2) \operatorname{sigmoid}(6 s (y - 0.4 c))`, with
          m = (0.8 c, 0.4 c)
ridge     :math:`-\tfrac12 (x / 2.2)^2 - \tfrac12 ((y - 1.4 \sin(\pi x / 2)) / 0.3)^2`
========  ===========================================================================================================
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

__all__ = ["DENSITIES", "SIDE", "grid", "log_normalizer"]

# Beyond this distance from the origin, along either axis, no density has more than 3e-4 of its mass.
SIDE = 12.0


def ring(z: Tensor) -> Tensor:
    return -0.5 * ((_norm(z) - 2.0) / 0.3).square()


def banana(z: Tensor) -> Tensor:
    x, y = z.unbind(-1)
    return -0.5 * (x / 1.4).square() - 0.5 * ((y - 0.5 * x.square() + 1.5) / 0.4).square()


def crescents(z: Tensor) -> Tensor:
    halves = []
    for side in (1.0, -1.0):
        centre = z.new_tensor([-0.8 * side, -0.4 * side])
        on_circle = -0.5 * ((_norm(z - centre) - 1.6) / 0.2).square()
        halves.append(on_circle + logsigmoid(6.0 * side * (z[..., 1] - centre[1])))
    return torch.logaddexp(*halves)


def ridge(z: Tensor) -> Tensor:
    x, y = z.unbind(-1)
    return -0.5 * (x / 2.2).square() - 0.5 * ((y - 1.4 * torch.sin(0.5 * math.pi * x)) / 0.3).square()


def _norm(z: Tensor) -> Tensor:
    # The gradient of a norm is NaN at 0.
    return (z.square().sum(-1) + 1e-12).sqrt()


DENSITIES: dict[str, Callable[[Tensor], Tensor]] = {
    "ring": ring,
    "banana": banana,
    "crescents": crescents,
    "ridge": ridge,
}


def grid(side: float, points: int) -> Tensor:
    """``(points, points, 2)``: the centres of equal squares that fill the square from -side to side; y runs first."""
    axis = (torch.arange(points, dtype=torch.float64) + 0.5) * (2.0 * side / points) - side
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    return torch.stack([x, y], -1)


def log_normalizer(log_density: Callable[[Tensor], Tensor], *, points: int = 1600) -> float:
    """Logarithm of the integral of a density over the plane, by the midpoint rule on a fine grid."""
    width = 2.0 * SIDE / points
    return float(log_density(grid(SIDE, points)).logsumexp((0, 1))) + 2.0 * math.log(width)
