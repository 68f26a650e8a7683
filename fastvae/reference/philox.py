"""The noise contract in integer PyTorch: slow, readable, and the oracle of both kernels' generators."""

from __future__ import annotations

import math

import torch
from torch import Tensor

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
_MASK = 0xFFFFFFFF


def philox_4x32_10(counter: list[Tensor], key: list[Tensor]) -> list[Tensor]:
    """Four 32-bit outputs for four 32-bit counter words and two key words, all held in int64 tensors.

    Reference: *Parallel random numbers: as easy as 1, 2, 3* (Salmon, Moraes, Dror, Shaw, 2011).
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        hi0, lo0 = _multiply(c0, _MULTIPLIERS[0])
        hi1, lo1 = _multiply(c2, _MULTIPLIERS[1])
        c0, c1, c2, c3 = hi1 ^ c1 ^ k0, lo1, hi0 ^ c3 ^ k1, lo0
        k0, k1 = (k0 + _KEY_STEPS[0]) & _MASK, (k1 + _KEY_STEPS[1]) & _MASK
    return [c0, c1, c2, c3]


def _multiply(a: Tensor, b: int) -> tuple[Tensor, Tensor]:
    # A 64-bit product of two 32-bit words does not fit int64; halves of b keep every partial product below 2^48.
    low = a * (b & 0xFFFF)
    high = a * (b >> 16) + (low >> 16)
    return high >> 16, ((high & 0xFFFF) << 16) | (low & 0xFFFF)


def normal(
    seed: Tensor,
    samples: int,
    rows: int,
    columns: int,
    *,
    row_offset: int = 0,
    wide: torch.dtype = torch.float64,
) -> Tensor:
    r"""Standard normals of the noise contract, float32, shape ``(samples, rows, columns)``.

    With the outputs :math:`(a, b)` of one Box-Muller pair,
    :math:`u = \lfloor a/2 \rfloor 2^{-31} + 2^{-32}`, :math:`r = \sqrt{-2 \ln u}`, the low 30 bits of :math:`b` are an
    angle in :math:`[-\pi/4, \pi/4)` and its two high bits turn it by multiples of :math:`\pi/2`.
    Logarithm, cosine and sine are computed in ``wide``.

    Reference: *A note on the generation of random normal deviates* (Box, Muller, 1958).
    """
    x = _words(seed, samples, rows, columns, row_offset)
    lanes = [*_box_muller(x[0], x[1], wide), *_box_muller(x[2], x[3], wide)]
    return torch.cat(lanes, -1)[..., :columns]


def uniform(seed: Tensor, samples: int, rows: int, columns: int, *, row_offset: int = 0) -> Tensor:
    r"""Uniform numbers of the noise contract, float32, shape ``(samples, rows, columns)``.

    A word w gives :math:`(\lfloor w / 2^9 \rfloor + \tfrac12)\, 2^{-23}`, exact in float32.
    """
    words = _words(seed, samples, rows, columns, row_offset)
    return ((torch.cat(words, -1)[..., :columns] >> 9).float() + 0.5) * 2.0**-23


def _words(seed: Tensor, samples: int, rows: int, columns: int, row_offset: int) -> list[Tensor]:
    """The four words of every counter, each ``(samples, rows, Q)``."""
    device = seed.device
    column = torch.arange(-(-columns // 4), device=device)
    row = torch.arange(row_offset, row_offset + rows, device=device)[:, None]
    sample = torch.arange(samples, device=device)[:, None, None]
    counter = list(torch.broadcast_tensors(column, row & _MASK, row >> 32, sample))
    return philox_4x32_10(counter, [seed & _MASK, (seed >> 32) & _MASK])


def _box_muller(a: Tensor, b: Tensor, wide: torch.dtype) -> tuple[Tensor, Tensor]:
    u = (a >> 1).float() * 2.0**-31 + 2.0**-32
    r = (-2.0 * u.to(wide).log()).sqrt()
    turned = (b << 2) & _MASK
    signed = torch.where(turned >= 2**31, turned - 2**32, turned)
    angle = signed.float() * (math.pi / 4 * 2.0**-31)
    angle = angle.to(wide)
    c, s = angle.cos(), angle.sin()
    swap, negate = (b >> 31).bool(), (b >> 30 & 1).bool()
    first, second = torch.where(swap, s, c), torch.where(swap, c, s)
    r = torch.where(negate, -r, r)
    return (r * first).float(), (r * second).float()
