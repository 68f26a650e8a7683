"""The networks of auxiliary and skip deep generative models."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import reduce

import torch
from torch import Tensor, nn

from ....nn import ClassLinear, DiagonalGaussianHead
from .statistics import BatchStatistics, ClassBatchNorm

__all__ = ["ClassNetwork", "Network", "make_head"]

# Of the initial weights that log-sigma is made with.
HEAD_SCALE = 1e-3


class Hidden(nn.Module):
    """Batch normalisation with ReLU of a first layer's output, and further such layers.

    Args:
        widths: of the hidden layers.
    """

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        self.norms = nn.ModuleList([ClassBatchNorm(width) for width in widths])
        self.layers = nn.ModuleList([nn.Linear(*pair, bias=False) for pair in itertools.pairwise(widths)])

    def forward(self, h: Tensor, statistics: BatchStatistics | None, weights: Tensor | None) -> Tensor:
        for norm, layer in itertools.zip_longest(self.norms, self.layers):
            h = norm(h, statistics, weights)
            h = h if layer is None else layer(h)
        return h


class Network(nn.Module):
    """Hidden layers of several inputs; the first is the sum of a linear map of each.

    Args:
        parents: numbers of each input.
        widths: of the hidden layers.
    """

    def __init__(self, parents: Sequence[int], widths: Sequence[int]) -> None:
        super().__init__()
        self.maps = nn.ModuleList([nn.Linear(features, widths[0], bias=False) for features in parents])
        self.hidden = Hidden(widths)

    def forward(self, *inputs: Tensor, statistics: BatchStatistics | None = None) -> Tensor:
        products = [layer(x) for layer, x in zip(self.maps, inputs, strict=True)]
        found: Tensor = self.hidden(reduce(torch.add, products), statistics, None)
        return found


class ClassNetwork(nn.Module):
    """As :class:`Network`, with the class as a further input.

    Args:
        parents: numbers of each input.
        classes: how many there are.
        widths: of the hidden layers.
        impl: implementation of the first layer.
    """

    def __init__(self, parents: Sequence[int], classes: int, widths: Sequence[int], impl: str) -> None:
        super().__init__()
        self.first = ClassLinear(parents, classes, widths[0], bias=False, impl=impl)
        self.hidden = Hidden(widths)

    def forward(
        self, *inputs: Tensor, labels: Tensor | None = None, statistics: BatchStatistics | None = None
    ) -> Tensor:
        """Features ``(*, width)``, or ``(*, C, width)`` for every class; ``labels`` as of :class:`ClassLinear`."""
        weights = statistics.class_weights if statistics is not None else None
        found: Tensor = self.hidden(self.first(*inputs, labels=labels), statistics, weights)
        return found

    @property
    def classes(self) -> Tensor:
        """Labels for inputs that differ from class to class."""
        return self.first.classes


def make_head(width: int, features: int, impl: str) -> DiagonalGaussianHead:
    """A Gaussian head whose log-sigma starts near 0, whatever the features are."""
    head = DiagonalGaussianHead(width, features, impl=impl)
    with torch.no_grad():
        head.linear.weight[features:].normal_(0.0, HEAD_SCALE)
        head.linear.bias.zero_()
    return head
