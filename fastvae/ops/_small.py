"""Small Gaussians under a compiler on a CPU: it gets their formulas in place of an op.

It joins the formulas with what surrounds them. A call of an op takes longer than all of their arithmetic, and its
tensors must lie in memory.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .. import backend, rng
from ..backend import Route
from ..reference import philox
from . import _layout

# Between two measured training steps of a VAE: at [128, 32] formulas are faster, at [512, 64] kernels.
_MOST_NUMBERS = 1 << 14


def is_left_to_compiler(impl: str, route: Route, numbers: int) -> bool:
    """Whether the formulas of an op on so many numbers are the compiler's."""
    return (
        torch.compiler.is_compiling()
        and route.impl == "cpp"
        and not backend.is_asked_for(impl)
        and numbers <= _MOST_NUMBERS
    )


def draw_eps(mu: Tensor, sample_shape: tuple[int, ...], generator: torch.Generator | None, row_offset: int) -> Tensor:
    """The noise that kernels draw, as formulas: normals are those of a kernel but for rounding."""
    *batch, d = mu.shape
    samples = _layout.product(sample_shape)
    seed = rng.draw_seed(mu.device, generator)
    eps = philox.normal(seed, samples, _layout.product(batch), d, row_offset=row_offset, wide=torch.float32)
    return eps.reshape(*sample_shape, *mu.shape)
