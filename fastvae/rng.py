"""Seeds out of torch generators, and the noise contract of every sampling op.

A standard normal is a pure function of (seed, sample, row, column): Philox-4x32-10 with

    key = (seed low, seed high),  counter = (column mod Q, row low, row high, sample),  Q = ceil(D / 4),

and the four outputs of one call are the columns ``c, c + Q, c + 2Q, c + 3Q``. The noise therefore depends neither
on block sizes, threads and batch splits, nor on the device. :mod:`fastvae.reference.philox` is its specification.
Its integers are the same bits everywhere. Normals are the same bits on one instruction set; between instruction sets,
which round differently, and between a CPU and a GPU, they differ by up to 2.4e-7.
Uniform numbers, which Bernoulli units and samplers of images take, come from the same words; those of sample 0 are
:func:`philox_uniform`.
"""

from __future__ import annotations

import threading

import torch
from torch import Tensor

from . import backend
from .reference import philox

__all__ = ["check_generator", "draw_seed", "philox_uniform"]

_SEED_END = 2**63 - 1


def check_generator(generator: torch.Generator | None, device: torch.device | str) -> None:
    """Raises unless ``generator`` is None or a torch generator on the type of ``device`` that a call can draw from."""
    if generator is None:
        return
    if not isinstance(generator, torch.Generator):
        raise TypeError(f"generator must be a torch.Generator, got {type(generator).__name__}")
    if generator.device.type != torch.device(device).type:
        raise ValueError(f"generator must live on the device of the parameters, {device}; it is on {generator.device}")
    if torch._C._get_tracing_state() is not None:
        raise RuntimeError(
            "generator must be None under torch.jit.trace, which would leave it out: a traced module draws from the "
            "default generator"
        )


def draw_seed(device: torch.device | str, generator: torch.Generator | None = None) -> Tensor:
    r"""Draws the seed of one call's noise from a torch generator.

    The seed stays on the device and nothing is read back. So a CUDA graph may hold the call (every replay draws a new
    seed), and activation checkpointing, which restores the generator, restores the noise.

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


class _OwnSeed(threading.local):
    """A thread's tensor for the seed of its present call."""

    def __init__(self) -> None:
        # A tensor that is made in inference mode cannot be written outside of it.
        with torch.inference_mode(False):
            self.tensor = torch.empty((), dtype=torch.int64, device="cpu")


_OWN_SEED = _OwnSeed()


def draw_seed_for(route: backend.Route, device: torch.device, generator: torch.Generator | None = None) -> Tensor:
    """The seed of one call of kernels, the same number as :func:`draw_seed` draws.

    C++ kernels read it at once, and no backward pass keeps it. They get a tensor that the thread's next call
    overwrites: a new one takes 4 % of a small call.
    """
    if route.impl != "cpp" or route.dispatched:
        return draw_seed(device, generator)
    if generator is None:
        return _OWN_SEED.tensor.random_(0, _SEED_END)
    check_generator(generator, device)
    return _OWN_SEED.tensor.random_(0, _SEED_END, generator=generator)


def philox_uniform(seed: Tensor, rows: int, columns: int, row_offset: int = 0) -> Tensor:
    r"""Uniform numbers of the noise contract, in (0, 1).

    The word w of (row, column) gives :math:`u = (\lfloor w / 2^9 \rfloor + \tfrac12)\, 2^{-23}`, exact in float32,
    symmetric about one half, never 0 or 1. All is integer arithmetic: the numbers are the same bits on every device.

    Args:
        seed: as :func:`draw_seed` gives it; decides on the device.
        rows: number of rows.
        columns: number D of columns.
        row_offset: number of the first row, so that shards of a batch draw the noise of the whole.

    Returns:
        float32, ``(rows, columns)``.

    Example:
        >>> u = philox_uniform(torch.tensor(7), 4, 10)
        >>> u.shape, torch.equal(philox_uniform(torch.tensor(7), 2, 10, row_offset=2), u[2:])
        (torch.Size([4, 10]), True)
    """
    if backend.can_read("auto", seed):
        out = torch.empty(rows, columns, dtype=torch.float32, device="cpu")
        backend._C.philox_uniform(seed, row_offset, out)
        return out
    return philox.uniform(seed, 1, rows, columns, row_offset=row_offset)[0]
