"""Evaluation of p(x | y): a model whose images carry their labels."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["WithLabels", "join_labels"]


def join_labels(x: Tensor, labels: Tensor) -> Tensor:
    """Images ``(N, pixels)`` with the label of each in a last column."""
    return torch.cat([x, labels[:, None].to(x)], 1)


class WithLabels:
    """A :class:`~fastvae.recipes.evaluation.scan.LatentModel` of images with labels, of a model that is given labels.

    Its ``x`` are images with a last column, see :func:`join_labels`.

    Args:
        model: its ``encode``, ``measure`` and ``log_weights`` take ``labels``.
    """

    def __init__(self, model: Any) -> None:
        self.model, self.config = model, model.config

    def encode(self, x: Tensor) -> Any:
        return self.model.encode(x[:, :-1], labels=x[:, -1].long())

    def measure(self, x: Tensor, posterior: Any = None, **noise: Any) -> tuple[Tensor, Tensor]:
        found: tuple[Tensor, Tensor] = self.model.measure(x[:, :-1], posterior, labels=x[:, -1].long(), **noise)
        return found

    def measure_units(self, x: Tensor, posterior: Any, **noise: Any) -> tuple[Tensor, list[Tensor]]:
        found: tuple[Tensor, list[Tensor]]
        found = self.model.measure_units(x[:, :-1], posterior, labels=x[:, -1].long(), **noise)
        return found

    def average_units(self, posterior: Any, samples: int, **noise: Any) -> list[Tensor]:
        found: list[Tensor] = self.model.average_units(posterior, samples, **noise)
        return found

    def log_weights(self, x: Tensor, posterior: Any, samples: int, **noise: Any) -> Tensor:
        found: Tensor = self.model.log_weights(x[:, :-1], posterior, samples, labels=x[:, -1].long(), **noise)
        return found

    def parameters(self) -> Iterator[nn.Parameter]:
        yield from self.model.parameters()

    def state_dict(self) -> dict[str, Any]:
        found: dict[str, Any] = self.model.state_dict()
        return found
