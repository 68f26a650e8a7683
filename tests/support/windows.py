"""Calls that read and write windows, on random images."""

from __future__ import annotations

import torch
from torch import Tensor

import fastvae.functional as F
from tests.support.oracle import Problem


def random_windows(*batch: int) -> Tensor:
    """Centres inside and outside of images, strides and widths of about a pixel."""
    return torch.randn(*batch, 5) * torch.tensor([0.6, 0.6, 0.7, 0.5, 0.3])


def window_problem(batch: tuple[int, ...], points: int, size: tuple[int, int], *, images: int = 1) -> Problem:
    """What windows read of one image or of two."""
    inputs = [*(torch.randn(*batch, *size) for _ in range(images)), random_windows(*batch)]

    def call(impl: str, p: list[Tensor]) -> tuple[Tensor, ...]:
        return (F.attention_read(p[0] if images == 1 else p[:-1], p[-1], points, impl=impl),)

    return Problem(call, [t.requires_grad_() for t in inputs])


def written_problem(batch: tuple[int, ...], points: int, size: tuple[int, int]) -> Problem:
    """What windows write."""
    inputs = [torch.randn(*batch, points, points), random_windows(*batch)]
    return Problem(lambda impl, p: (F.attention_write(*p, size, impl=impl),), [t.requires_grad_() for t in inputs])
