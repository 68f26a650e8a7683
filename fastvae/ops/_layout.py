"""The layout that kernels take: tensors in the dtype of the computation, as matrices with contiguous rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def product(sizes: Sequence[int]) -> int:
    """The product of ``sizes``, symbolic ones too."""
    total = 1
    for size in sizes:
        total = total * size
    return total


def is_compute_dtype(dtype: torch.dtype) -> bool:
    """Whether the C++ kernels compute in ``dtype``."""
    return dtype is torch.float32 or dtype is torch.float64


def to_compute_dtype(t: Tensor) -> Tensor:
    """``t`` in the dtype that the C++ kernels compute in.

    The rows of a matrix stay contiguous, also where rows overlap; images keep their layout.
    """
    if is_compute_dtype(t.dtype):
        return t
    return t.float() if t.dim() == 4 else t.to(torch.float32, memory_format=torch.contiguous_format)


def all_to_compute_dtype(tensors: Sequence[Tensor | None], dtype: torch.dtype) -> Sequence[Any]:
    """``tensors``, all of ``dtype``, in the dtype that the C++ kernels compute in."""
    if is_compute_dtype(dtype):
        return tensors
    return [None if t is None else to_compute_dtype(t) for t in tensors]


def cast(t: Tensor, dtype: torch.dtype) -> Tensor:
    """``t.to(dtype)`` without its microsecond when there is nothing to do."""
    return t if t.dtype is dtype else t.to(dtype)


def all_to(tensors: Sequence[Tensor], dtype: torch.dtype) -> Any:
    """The results of the extension in ``dtype``."""
    return tensors if tensors[0].dtype is dtype else tuple([t.to(dtype) for t in tensors])


def to_rows(t: Tensor, width: int) -> Tensor:
    """``t`` as a matrix of ``width`` columns with contiguous rows; a view wherever strides allow."""
    if t.dim() != 2:
        t = t.reshape(-1 if width else product(t.shape[:-1]), width)
    return t if t.stride(1) == 1 or width <= 1 else t.contiguous()


def count_samples(numel: int, n: int, d: int) -> int:
    """K of a tensor of K·N·D numbers; 0 when there are no rows to sample for."""
    return numel // (n * d) if n else 0


def stack_samples(t: Tensor, n: int, d: int) -> Tensor:
    """Contiguous ``(*sample_shape, *batch, D)`` as ``(K, N, D)``."""
    return t.view(count_samples(t.numel(), n, d), n, d)


def to_shape(t: Tensor, shape: Sequence[int]) -> Tensor:
    return t if t.shape == shape else t.view(shape)


def to_matrices(tril: Tensor, features: int, packed: bool) -> Tensor:
    """``tril`` as ``(N, P)`` or ``(N, D, D)`` with contiguous rows."""
    if packed:
        return to_rows(tril, tril.shape[-1]) if tril.shape[-1] else tril.reshape(product(tril.shape[:-1]), 0)
    if tril.dim() != 3:
        tril = tril.reshape(-1, features, features)
    return tril if tril.stride(2) == 1 or features == 1 else tril.contiguous()
