"""A posterior that a flow makes of a Gaussian."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from ..distributions import DiagonalGaussian, TriangularGaussian
from ..objectives import standard_normal_log_prob

__all__ = ["FlowPosterior"]


class FlowPosterior:
    r"""A Gaussian carried on by a flow: :math:`\log q(z) = \log q(z_0) - \log|\det \partial z/\partial z_0|`.

    Args:
        base: the Gaussian of z0, batch shape ``(N,)``.
        flow: maps z0 to z.
        context: the context of the flow, ``(N, context_features)``.
    """

    def __init__(self, base: DiagonalGaussian | TriangularGaussian, flow: nn.Module, context: Tensor) -> None:
        self.base, self.flow, self.context = base, flow, context

    def rsample_with_log_prob(self, sample_shape: Sequence[int] = (), **noise: Any) -> tuple[Tensor, Tensor]:
        """A sample ``(*sample_shape, N, D)`` and its log-density ``(*sample_shape, N)``; ``noise`` as of the base."""
        z, log_q = self.base.rsample_with_log_prob(sample_shape, **noise)
        z, log_det = self.flow(z, self.context)
        return z, log_q - log_det

    def rsample_with_kl(self, sample_shape: Sequence[int] = (), **noise: Any) -> tuple[Tensor, Tensor, Tensor]:
        """The same, and the divergence from N(0, I) as each sample estimates it, ``(*sample_shape, N)``."""
        z, log_q = self.rsample_with_log_prob(sample_shape, **noise)
        return z, log_q, log_q - standard_normal_log_prob(z)
