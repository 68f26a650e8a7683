"""Embedding of the codes of an image."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..precision import check_dtype, is_integral
from ..structure.integers import integers
from ._refusals import check_meta

__all__ = ["CodeEmbedding"]


class CodeEmbedding(nn.Embedding):
    r"""A learned vector for each level of a pixel, as the codes of a VQ-VAE need it: the first layer of their prior.

    .. math::
        y_{n, :, i, j} = W_{k}, \qquad k = \operatorname{round}((\mathrm{levels} - 1)\, x_{n, 1, i, j})

    Args:
        levels: number of levels K, at least 2.
        channels: width E of a vector.
        device, dtype: of the weight, ``(K, E)``; it is initialised and stored as that of :class:`torch.nn.Embedding`.

    Shape:
        ``(N, 1, H, W)``, values k / (K - 1) as :class:`~fastvae.sampling.Categorical` has them, or integers k, to
        ``(N, E, H, W)``.

    Raises:
        TypeError: ``levels`` or ``channels`` is no integer.
        ValueError: a size is out of range, ``x`` is of another shape, or its dtype does not tell the levels apart.
        IndexError: a level is out of range.

    Note:
        :class:`~fastvae.sampling.CausalSampler` computes it pixel by pixel, in every implementation.

    Reference:
        *Neural Discrete Representation Learning* (van den Oord, Vinyals, Kavukcuoglu, 2017).

    Example:
        >>> layer = CodeEmbedding(512, 16)
        >>> codes = torch.randint(0, 512, (2, 1, 8, 8))
        >>> layer(codes).shape, torch.equal(layer(codes), layer(codes / 511))
        (torch.Size([2, 16, 8, 8]), True)
    """

    # The kind of layer that a sampler sees, see fastvae/sampling/layers.py.
    sampled_as: ClassVar[str] = "code_table"

    def __init__(self, levels: int, channels: int, *, device: Any = None, dtype: Any = None) -> None:
        (levels,), (channels,) = integers(2, levels=levels), integers(1, channels=channels)
        super().__init__(levels, channels, device=device, dtype=dtype)

    def forward(self, input: Tensor) -> Tensor:
        if input.dim() != 4 or input.shape[1] != 1:
            raise ValueError(f"x must have shape (N, 1, H, W), got {tuple(input.shape)}")
        check_meta("x", input, self.weight)
        if not is_integral(input):
            check_dtype("x", input.dtype, self.num_embeddings, symmetric=False)
            wide = input if input.dtype == torch.float64 else input.float()
            input = torch.round(wide * (self.num_embeddings - 1))
        rows: Tensor = super().forward(input[:, 0].long())
        return rows.permute(0, 3, 1, 2)
