"""Images and parameters of discretised mixtures of logistics."""

from __future__ import annotations

import torch
from torch import Tensor

from fastvae.ops.logistic_mixture import logistic_mixture_log_prob
from tests.support.oracle import Problem

PER_COMPONENT = {1: 3, 3: 10}


def images(n: int, channels: int, height: int, width: int, levels: int = 256) -> Tensor:
    """Random levels, the lowest and the highest among them."""
    level = torch.randint(levels, (n, channels, height, width))
    level.view(-1)[::7] = 0
    level.view(-1)[3::7] = levels - 1
    return level * (2.0 / (levels - 1)) - 1.0


def parameters(n: int, channels: int, components: int, height: int, width: int) -> Tensor:
    """Means among the data, scales from a tenth of a bin to a tenth of the range."""
    params = torch.randn(n, PER_COMPONENT[channels] * components, height, width)
    params[:, (1 + channels) * components : (1 + 2 * channels) * components] -= 3.0
    return params


def problem(n: int, channels: int, components: int, height: int, width: int, levels: int = 256) -> Problem:
    x = images(n, channels, height, width, levels)

    def call(impl, p):
        return (logistic_mixture_log_prob(x.to(p[0].device), *p, levels=levels, impl=impl),)

    return Problem(call, [parameters(n, channels, components, height, width).requires_grad_()])
