"""Random calls of the functions that read and write through windows on images."""

from __future__ import annotations

import torch

import fastvae.functional as F

from .draw import Draw, Problem


def _windows(draw: Draw, count: int, sizes: tuple[int, int]) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Images or patches, and the windows on them, of batches that broadcast."""
    batch = draw.batch()
    others = batch if draw.chance(0.8) else tuple(1 if draw.chance(0.4) else size for size in batch)
    return [draw.tensor(*batch, *sizes) for _ in range(count)], draw.tensor(*others, 5)


def attention_filters(draw: Draw) -> Problem:
    points, size = draw.some(), (draw.some(), draw.some())
    return Problem(lambda _, w: F.attention_filters(w, points, size), [_windows(draw, 0, size)[1]])


def attention_read(draw: Draw) -> Problem:
    points, count, alone = draw.size(zero=0.02), draw.choice((1, 2)), draw.chance(0.7)
    images, window = _windows(draw, count, (draw.size(zero=0.02), draw.size(zero=0.02)))

    def call(_, *tensors):
        given = tensors[0] if count == 1 and alone else tensors[:-1]
        return F.attention_read(given, tensors[-1], points)

    return Problem(call, [*images, window], ill_conditioned=draw.hostile)


def attention_write(draw: Draw) -> Problem:
    points, size = draw.size(zero=0.02), (draw.size(zero=0.02), draw.size(zero=0.02))
    (patch,), window = _windows(draw, 1, (points, points))
    return Problem(lambda _, *t: F.attention_write(*t, size), [patch, window], ill_conditioned=draw.hostile)
