"""Batch normalisation of networks that are given every class of an image without a label."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, distributed, nn

from ...batch_statistics import EPS

__all__ = ["BatchStatistics", "ClassBatchNorm"]

MOMENTUM = 0.1


class BatchStatistics:
    r"""The batch statistics of one training step, by layer.

    They are taken of the unlabelled images alone. A row of an image under a class has the weight q(y | a, x): they are
    the moments that classes drawn from q would give, not those of the enumeration. A class of probability 0 does not
    change them. Labelled images are normalised with the same statistics.

    Args:
        rows: images of the joint batch.

    Attributes:
        class_weights: q(y | a, x), ``(N, S, C)``, without a gradient.
        found: mean and variance of the layers that have taken theirs.
        are_taken: whether the next rows are unlabelled ones, of which statistics are taken.

    Raises:
        ValueError: there are fewer than 2 images.
    """

    def __init__(self, rows: int) -> None:
        if rows < 2:
            raise ValueError(f"x_u must hold at least 2 images, since batch statistics are taken of it, got {rows}")
        self.class_weights: Tensor | None = None
        self.found: dict[nn.Module, tuple[Tensor, Tensor]] = {}
        self.are_taken = True


class ClassBatchNorm(nn.Module):
    r"""Batch normalisation and ReLU, with weighted statistics.

    .. math::
        m = \frac{\sum_r w_r h_r}{\sum_r w_r}, \qquad v = \frac{\sum_r w_r (h_r - m)^2}{\sum_r w_r}, \qquad
        y = \operatorname{relu}\Big(\gamma \frac{h - m}{\sqrt{v + \epsilon}} + \beta\Big)

    On several processes the sums are those over all of them.

    Args:
        features: numbers of a row.

    Attributes:
        running_mean: the moving average of m, which is used outside of training.
        running_var: that of v.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, features: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(features))
        self.bias = nn.Parameter(torch.zeros(features))
        self.register_buffer("running_mean", torch.zeros(features))
        self.register_buffer("running_var", torch.ones(features))

    def forward(self, h: Tensor, statistics: BatchStatistics | None, weights: Tensor | None = None) -> Tensor:
        """Normalises rows ``(*, features)``.

        Args:
            h: the rows.
            statistics: of the training step; None to use the moving averages.
            weights: of the rows, ``(*)``; equal ones if None.
        """
        mean, variance = self.find_moments(h, statistics, weights)
        scale = self.gain * (variance + EPS).rsqrt()
        return torch.addcmul(self.bias - mean * scale, h.to(scale.dtype), scale).relu_()

    def find_moments(
        self, h: Tensor, statistics: BatchStatistics | None, weights: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        if statistics is None:
            return self.running_mean, self.running_var
        if statistics.are_taken:
            moments = measure_moments(h.to(self.gain.dtype), weights)
            statistics.found[self] = moments
            self.update(*moments)
        return statistics.found[self]

    @torch.no_grad()
    def update(self, mean: Tensor, variance: Tensor) -> None:
        """Takes statistics into the moving averages."""
        self.running_mean.lerp_(mean, MOMENTUM)
        self.running_var.lerp_(variance, MOMENTUM)


def measure_moments(h: Tensor, weights: Tensor | None) -> tuple[Tensor, Tensor]:
    """Mean and variance ``(features,)`` of weighted rows ``(*, features)`` of all processes."""
    h = h.flatten(0, -2)
    rows = h.new_ones(len(h)) if weights is None else weights.flatten().to(h.dtype)
    rows = rows / add_processes(rows.sum())
    mean = add_processes(sum_rows(rows, h))
    return mean, add_processes(sum_squares(rows, h, mean))


def sum_rows(weights: Tensor, h: Tensor) -> Tensor:
    with torch.autocast(h.device.type, enabled=False):
        return weights @ h


def sum_squares(weights: Tensor, h: Tensor, mean: Tensor) -> Tensor:
    """The weighted sum of (h - mean)^2 over rows; the weights have no gradient."""
    found: Tensor = _SumSquares.apply(weights, h, mean)
    return found


class _SumSquares(torch.autograd.Function):
    """The gradient reads the rows twice, where that of single operations does six times."""

    @staticmethod
    def forward(ctx: Any, weights: Tensor, h: Tensor, mean: Tensor) -> Tensor:
        ctx.save_for_backward(weights, h, mean)
        return sum_rows(weights, (h - mean).square_())

    @staticmethod
    def backward(ctx: Any, d_sum: Tensor) -> tuple[None, Tensor, Tensor]:
        weights, h, mean = ctx.saved_tensors
        slope = 2.0 * d_sum
        d_mean = slope * (mean * weights.sum() - sum_rows(weights, h))
        return None, torch.addcmul(-mean * slope, h, slope) * weights[:, None], d_mean


def add_processes(value: Tensor) -> Tensor:
    """The sum of a value over all processes, with its gradient."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return value
    found: Tensor = _AddProcesses.apply(value)
    return found


class _AddProcesses(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        total = value.clone(memory_format=torch.contiguous_format)
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, d_total: Tensor) -> Tensor:
        # Every process has a loss of its own, on which the total acts.
        found: Tensor = _AddProcesses.apply(d_total)
        return found
