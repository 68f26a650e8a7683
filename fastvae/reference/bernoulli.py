r"""Bernoulli units in plain PyTorch: a sample and its log-probability.

.. math::
    b_i = 1[u_i > \sigma(-l_i)], \qquad \log q(b) = \sum_i \log \sigma\left((2 b_i - 1)\, l_i\right)

Half-precision logits are computed in float32; the sample has the logits' dtype, log-probabilities stay float32.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as TF
from torch import Tensor

from ..precision import compute_dtype


def draw_uniforms(shape: tuple[int, ...], like: Tensor, generator: torch.Generator | None) -> Tensor:
    options: Any = {"dtype": compute_dtype(like.dtype), "device": like.device}
    # Dynamo traces symbolic sizes only through the overload that takes no generator at all.
    return torch.rand(shape, **options) if generator is None else torch.rand(shape, generator=generator, **options)


def log_prob(logits: Tensor, b: Tensor) -> Tensor:
    """The log-probability of units ``b``, zeros and ones, ``(*sample_shape, *, D)``."""
    logits = logits.to(compute_dtype(logits.dtype))
    return TF.logsigmoid(logits * (2.0 * b.to(logits.dtype) - 1.0)).sum(-1)


def sample(
    logits: Tensor,
    sample_shape: tuple[int, ...],
    antithetic: bool,
    uniforms: Tensor | None,
    generator: torch.Generator | None,
) -> tuple[Tensor, Tensor]:
    if uniforms is None:
        uniforms = draw_uniforms((*sample_shape, *logits.shape), logits, generator)
    off = torch.sigmoid(-logits.detach().to(compute_dtype(logits.dtype)))
    uniforms = uniforms.detach().to(off.dtype)
    on = (torch.stack([uniforms, 1.0 - uniforms]) if antithetic else uniforms) > off
    b = on.to(logits.dtype)
    return b, log_prob(logits, b)
