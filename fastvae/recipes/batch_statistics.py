"""Batch norm whose averages are collected after training, not during it; and what cannot be done with it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from .errors import RecipeError

__all__ = ["EPS", "CollectedBatchNorm", "check_one_process", "collect_statistics", "normalize_rows"]

# What is added to a variance.
EPS = 1e-5


class CollectedBatchNorm(nn.BatchNorm1d):
    """Batch norm of rows ``(N, features)``. In training it takes the statistics of the rows and keeps none.

    In evaluation it takes averages of the statistics of whole batches. :func:`collect_statistics` measures them with
    the trained weights. So perturbed inputs of a training step leave no trace in the averages.

    Args:
        features: columns.
        affine: whether there are a learned scale and bias.
    """

    def __init__(self, features: int, *, affine: bool = True) -> None:
        super().__init__(features, eps=EPS, momentum=None, affine=affine)
        self.collecting = False

    def forward(self, x: Tensor) -> Tensor:
        """The rows with mean 0 and variance 1, scaled and shifted.

        Raises:
            ValueError: fewer than 2 rows come in training.
        """
        if self.training and not self.collecting:
            return normalize_rows(x, self.weight, self.bias)
        found: Tensor = super().forward(x)
        return found


def normalize_rows(x: Tensor, scale: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
    """The rows ``(N, features)`` with mean 0 and variance 1 over N, scaled and shifted.

    Raises:
        ValueError: there are fewer than 2 rows.
    """
    if x.shape[0] < 2:
        raise ValueError(f"x must have 2 rows or more, whose statistics batch norm takes; got {x.shape[0]}")
    return nn.functional.batch_norm(x, None, None, scale, bias, training=True, eps=EPS)


@contextmanager
def collecting(norms: list[CollectedBatchNorm]) -> Iterator[None]:
    for norm in norms:
        norm.reset_running_stats()
        norm.collecting = True
    try:
        yield
    finally:
        for norm in norms:
            norm.collecting = False


@torch.no_grad()
def collect_statistics(model: nn.Module, batches: Iterable[Tensor]) -> None:
    """Sets the averages of every :class:`CollectedBatchNorm` to the means over batches, each passed forward once.

    Args:
        model: the model; ``model(x)`` passes a batch forward. It stays in its mode.
        batches: rows ``(N, features)``, of the size that the model is trained with.
    """
    norms = [module for module in model.modules() if isinstance(module, CollectedBatchNorm)]
    mode = model.training
    model.train()
    try:
        with collecting(norms):
            for x in batches:
                model(x)
    finally:
        model.train(mode)


def check_one_process(name: str) -> None:
    """Checks that a system that takes statistics of joint batches runs on one process.

    Raises:
        RecipeError: ``torchrun`` has started several.
    """
    count = int(os.environ.get("WORLD_SIZE", 1))
    if count > 1:
        raise RecipeError(
            f"{name} takes batch statistics of the joint batch: it must run on 1 process, and torchrun started {count}"
        )
