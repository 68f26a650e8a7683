r"""Grids of Gaussian filters on images, in plain PyTorch.

A window is five numbers :math:`(g_X, g_Y, \log\sigma^2, \log\delta, \log\gamma)` on an image of H rows and W columns.
It has N x N points. Pixels and points are counted from 1.

.. math::
    \mu_X^n = \tfrac{W + 1}{2} (g_X + 1) + \left(n - \tfrac{N + 1}{2}\right) \tfrac{\max(H, W) - 1}{N - 1}\, \delta,
    \qquad F_X[n, a] \propto \exp\left(-\frac{(a - \mu_X^n)^2}{2 \sigma^2}\right)

Rows of both matrices sum to 1. Half-precision inputs are computed in float32.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..precision import compute_dtype, keep_full_precision

# Smaller logarithms of the variance count as this one: the filter of a point is its nearest pixel long before.
LEAST_LOG_VARIANCE = -60.0


class Grid(NamedTuple):
    """Of every window: the centre in pixels, the distance of points, the inverse variance and the gain, ``(*)``."""

    centre_x: Tensor
    centre_y: Tensor
    stride: Tensor
    precision: Tensor
    gain: Tensor


def grid_of(window: Tensor, points: int, height: int, width: int) -> Grid:
    g_x, g_y, log_variance, log_stride, log_gain = window.unbind(-1)
    unit = (max(height, width) - 1) / max(points - 1, 1)
    return Grid(
        0.5 * (width + 1) * (g_x + 1.0),
        0.5 * (height + 1) * (g_y + 1.0),
        unit * log_stride.exp(),
        (-log_variance.clamp(min=LEAST_LOG_VARIANCE)).exp(),
        log_gain.exp(),
    )


def axis_filters(centre: Tensor, stride: Tensor, precision: Tensor, points: int, size: int) -> Tensor:
    """The weights of an axis' pixels, ``(*, points, size)``.

    Pixels are counted from the nearest one of each point. The weights are those of the plain formula, and exponents
    far from the image do not cancel.
    """
    options: dict[str, Any] = {"dtype": centre.dtype, "device": centre.device}
    places = torch.arange(points, **options) - 0.5 * (points - 1)
    mu = (centre.unsqueeze(-1) + places * stride.unsqueeze(-1)).unsqueeze(-1)
    nearest = mu.detach().round().clamp(1, size)
    distance = torch.arange(1, size + 1, **options) - nearest
    exponent = distance * (distance - 2.0 * (mu - nearest)) * (-0.5 * precision)[..., None, None]
    return exponent.softmax(-1)


def filters(window: Tensor, points: int, height: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """F_Y ``(*, N, H)``, F_X ``(*, N, W)`` and the gain ``(*, 1, 1)``."""
    grid = grid_of(window, points, height, width)
    filter_y = axis_filters(grid.centre_y, grid.stride, grid.precision, points, height)
    filter_x = axis_filters(grid.centre_x, grid.stride, grid.precision, points, width)
    return filter_y, filter_x, grid.gain[..., None, None]


def read(x: Tensor, other: Tensor | None, window: Tensor, points: int) -> Tensor:
    """Patches ``(*, K, N, N)`` of one image ``(*, H, W)`` or of two, gain F_Y x F_X^T."""
    out_dtype, dtype = x.dtype, compute_dtype(x.dtype)
    filter_y, filter_x, gain = filters(window.to(dtype), points, *x.shape[-2:])
    images = x.unsqueeze(-3) if other is None else torch.stack([x, other], -3)
    with keep_full_precision(x.device.type):
        patches = filter_y.unsqueeze(-3) @ images.to(dtype) @ filter_x.mT.unsqueeze(-3)
    return (gain.unsqueeze(-3) * patches).to(out_dtype)


def write(patch: Tensor, window: Tensor, height: int, width: int) -> Tensor:
    """Images ``(*, H, W)`` of patches ``(*, N, N)``, F_Y^T patch F_X / gain."""
    out_dtype, dtype = patch.dtype, compute_dtype(patch.dtype)
    filter_y, filter_x, gain = filters(window.to(dtype), patch.shape[-1], height, width)
    with keep_full_precision(patch.device.type):
        return (filter_y.mT @ (patch.to(dtype) / gain) @ filter_x).to(out_dtype)
