"""Base class of small flows: their parameters are learned, or a linear map of a context."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..precision import compute_dtype
from ..structure.integers import integer
from ._refusals import check_floating, check_meta

__all__ = ["AmortisedFlow"]


class AmortisedFlow(nn.Module):
    r"""A flow with parameters :math:`\theta`: learned, or :math:`\theta = W c + \theta_0` of a context c.

    Args:
        features: number D of features.
        context_features: width of the context, 0 for none.
        size: how many parameters there are.

    A subclass writes :meth:`_start`, and draws its own parameters at the end of its construction.
    """

    # W starts uniform on plus and minus this number / sqrt(context_features).
    context_scale = 0.1

    def __init__(self, features: int, context_features: int, size: int, device: Any = None, dtype: Any = None) -> None:
        super().__init__()
        self.features, self.context_features = features, context_features
        self.bias = nn.Parameter(torch.empty(size, device=device, dtype=dtype))
        if context_features:
            self.weight = nn.Parameter(torch.empty(size, context_features, device=device, dtype=dtype))

    def _start(self, **options: Any) -> Tensor:
        r""":math:`\theta_0` ``(size,)``, the start of the parameters; ``options`` are its device and dtype."""
        raise NotImplementedError

    @torch.no_grad()
    def _draw(self) -> None:
        self.bias.copy_(self._start(device=self.bias.device, dtype=self.bias.dtype))
        if self.context_features:
            bound = self.context_scale / math.sqrt(self.context_features)
            self.weight.uniform_(-bound, bound)

    def reset_parameters(self) -> None:
        """Draws the initial parameters again."""
        self._draw()

    def _parameters_of(self, context: Tensor | None) -> Tensor:
        if not self.context_features:
            return self.bias
        assert context is not None
        check_meta("context", context, self.weight)
        return functional.linear(context, self.weight, self.bias)

    def _prepare(self, z: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        """``z`` ``(*, D)``, expanded to the joint batch, and the parameters, in the dtype to compute in."""
        if z.dim() == 0 or z.shape[-1] != self.features:
            raise ValueError(f"z must have shape (*, {self.features}), got {tuple(z.shape)}")
        check_floating("z", z)
        if not self.context_features:
            if context is not None:
                raise ValueError("context must be None: the flow was made with context_features=0")
        else:
            if context is None:
                raise ValueError(f"context must be given, shape (*, {self.context_features})")
            if context.dim() == 0 or context.shape[-1] != self.context_features:
                raise ValueError(f"context must have shape (*, {self.context_features}), got {tuple(context.shape)}")
            try:
                batch = torch.broadcast_shapes(z.shape[:-1], context.shape[:-1])
            except RuntimeError:
                raise ValueError(
                    f"the batch shapes of z and context must broadcast, got z {tuple(z.shape)} and "
                    f"context {tuple(context.shape)}"
                ) from None
            z = z.expand(*batch, self.features)
        dtype = compute_dtype(z.dtype)
        return z.to(dtype), self._parameters_of(context).to(dtype)

    def extra_repr(self) -> str:
        return f"features={self.features}, context_features={self.context_features}"


def check_sizes(features: int, context_features: int) -> tuple[int, int]:
    """Both as Python integers."""
    return integer("features", features, 1), integer("context_features", context_features, 0)


def matvec(matrix: Tensor, vector: Tensor) -> Tensor:
    """``(*, I, J)`` times ``(*, J)``; of one matrix without the batch a plain product."""
    return vector @ matrix.mT if matrix.dim() == 2 else torch.einsum("...ij,...j->...i", matrix, vector)


def log_of_positive(value: Tensor) -> Tensor:
    """log of a number that only rounding can make zero or negative."""
    return value.clamp(min=torch.finfo(value.dtype).tiny).log()


def no_log_det(x: Tensor, log_det_map: bool) -> Tensor:
    """The log-determinant 0 of points ``x`` ``(*, D)``: ``(*)``, or a share for each feature."""
    return x.new_zeros(x.shape if log_det_map else x.shape[:-1])
