"""Householder flow."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..precision import compute_dtype
from ..structure.integers import integer
from ._refusals import check_linear
from .amortised import AmortisedFlow, check_sizes, no_log_det

__all__ = ["HouseholderFlow", "reflect"]


def reflect(z: Tensor, v: Tensor) -> Tensor:
    r""":math:`z - 2 v v^\top z / \lVert v \rVert^2`; z itself where v is zero."""
    squared = v.square().sum(-1, keepdim=True).clamp(min=torch.finfo(v.dtype).tiny)
    return z - (2.0 / squared) * (v * z).sum(-1, keepdim=True) * v


class HouseholderFlow(AmortisedFlow):
    r"""Householder flow, a rotation made of T reflections: ``forward`` and ``inverse`` are equally fast.

    .. math::
        z_t = \left(I - 2 \frac{v_t v_t^\top}{\lVert v_t \rVert^2}\right) z_{t-1}, \qquad \log|\det| = 0

    With a context c, :math:`v_1` is a linear map of c, and :math:`v_{t+1}` one of :math:`v_t`. Behind a diagonal
    Gaussian it makes a Gaussian of full covariance.

    Args:
        features: number D of features.
        reflections: number T of reflections.
        context_features: width of the context; 0: the vectors are learned themselves.

    Shape:
        ``z`` ``(*, D)`` and ``context`` ``(*, context_features)`` to ``(*, D)``, dtype of ``z``, and ``log_det``
        ``(*)``, with ``log_det_map=True`` ``(*, D)``, zeros, float32 (float64 for float64 inputs); batches broadcast.

    Raises:
        ValueError: shapes or sizes that do not fit, or a context missing or unexpected.

    Reference:
        *Improving Variational Auto-Encoders using Householder Flow* (Tomczak, Welling, 2016).

    Example:
        >>> flow, z = HouseholderFlow(4, 3), torch.randn(6, 4)
        >>> rotated, log_det = flow(z)
        >>> torch.allclose(flow.inverse(rotated)[0], z, atol=1e-5), log_det.abs().max().item()
        (True, 0.0)
    """

    def __init__(
        self,
        features: int,
        reflections: int = 1,
        context_features: int = 0,
        *,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        features, context_features = check_sizes(features, context_features)
        reflections = integer("reflections", reflections, 1)
        learned = 1 if context_features else reflections
        super().__init__(features, context_features, learned * features, device, dtype)
        self.reflections = reflections
        self._draw()
        self.following = nn.ModuleList(
            nn.Linear(features, features, device=device, dtype=dtype) for _ in range(reflections - learned)
        )

    def _start(self, **options: Any) -> Tensor:
        return torch.randn(len(self.bias), **options)

    def reset_parameters(self) -> None:
        super().reset_parameters()
        for layer in self.following:
            assert isinstance(layer, nn.Linear)
            layer.reset_parameters()

    def _vectors(self, z: Tensor, context: Tensor | None) -> tuple[Tensor, list[Tensor]]:
        x, v = self._prepare(z, context)
        if not self.context_features:
            return x, list(v.unflatten(-1, (self.reflections, self.features)).unbind(-2))
        vectors = [v]
        for layer in self.following:
            check_linear("context", v, layer)
            v = layer(v.to(self.weight.dtype))
            vectors.append(v.to(compute_dtype(z.dtype)))
        return x, vectors

    def forward(self, z: Tensor, context: Tensor | None = None, log_det_map: bool = False) -> tuple[Tensor, Tensor]:
        """Base noise to sample (fast): the sample and log |det| of the map, zero."""
        x, vectors = self._vectors(z, context)
        for v in vectors:
            x = reflect(x, v)
        return x.to(z.dtype), no_log_det(x, log_det_map)

    def inverse(self, z: Tensor, context: Tensor | None = None, log_det_map: bool = False) -> tuple[Tensor, Tensor]:
        """Sample to base noise (fast): the noise and log |det| of the inverse map, zero."""
        x, vectors = self._vectors(z, context)
        for v in reversed(vectors):
            x = reflect(x, v)
        return x.to(z.dtype), no_log_det(x, log_det_map)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, reflections={self.reflections}"
