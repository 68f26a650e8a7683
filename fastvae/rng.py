"""Seeds out of torch generators, and the noise contract of every sampling op.

A standard normal is a pure function of (seed, sample, row, column): Philox-4x32-10 with

    key = (seed low, seed high),  counter = (column mod Q, row low, row high, sample),  Q = ceil(D / 4),

and the four outputs of one call are the columns ``c, c + Q, c + 2Q, c + 3Q``. The noise therefore depends neither
on block sizes, threads and batch splits, nor on the device. :mod:`fastvae.reference.philox` is its specification.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["check_generator", "draw_seed"]

_SEED_END = 2**63 - 1


def check_generator(generator: torch.Generator | None, device: torch.device | str) -> None:
    """Raises unless ``generator`` is None or a torch generator on the type of ``device``."""
    if generator is None:
        return
    if not isinstance(generator, torch.Generator):
        raise TypeError(f"generator must be a torch.Generator, got {type(generator).__name__}")
    if generator.device.type != torch.device(device).type:
        raise ValueError(f"generator must live on the device of the parameters, {device}; it is on {generator.device}")


def draw_seed(device: torch.device | str, generator: torch.Generator | None = None) -> Tensor:
    r"""Draws the seed of one call's noise from a torch generator.

    The seed stays on the device: nothing is read back, so a call can stand in a CUDA graph (where every replay draws
    a new seed) and in activation checkpointing (which restores the generator, hence the noise).

    Args:
        device: where the noise will be used.
        generator: the source; the device's default generator when None.

    Returns:
        A 0-d int64 tensor on ``device``.

    Raises:
        TypeError: ``generator`` is not a :class:`torch.Generator`.
        ValueError: ``generator`` lives on another type of device.

    Example:
        >>> draw_seed("cpu", torch.Generator().manual_seed(0)).dtype
        torch.int64
    """
    if generator is None:
        return torch.randint(_SEED_END, (), device=device)
    check_generator(generator, device)
    return torch.randint(_SEED_END, (), device=device, generator=generator)
