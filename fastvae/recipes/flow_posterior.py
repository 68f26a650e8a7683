"""A posterior that a flow makes of a Gaussian, and the shares of its dimensions in a log-density."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..distributions import DiagonalGaussian, TriangularGaussian
from ..nn.sequence import carry_shares
from ..objectives import standard_normal_log_prob
from ..precision import keep_full_precision

__all__ = ["FlowPosterior", "draw_by_dimension", "normal_by_dimension"]

LOG_2PI = math.log(2.0 * math.pi)


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

    def rsample_with_kl(
        self, sample_shape: Sequence[int] = (), *, kl: str = "sum", **noise: Any
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The same, and the divergence from N(0, I) as each sample estimates it, ``(*sample_shape, N)``.

        With ``kl="dimensions"`` its parts are returned, ``(*sample_shape, N, D)``: every dimension's share of log q
        less its log p. See :func:`draw_by_dimension`.
        """
        if kl == "dimensions":
            z, shares = draw_by_dimension(self, sample_shape, **noise)
            return z, shares.sum(-1), shares - normal_by_dimension(z)
        z, log_q = self.rsample_with_log_prob(sample_shape, **noise)
        return z, log_q, log_q - standard_normal_log_prob(z)


def draw_by_dimension(
    q: DiagonalGaussian | TriangularGaussian | FlowPosterior, sample_shape: Sequence[int] = (), **noise: Any
) -> tuple[Tensor, Tensor]:
    r"""A sample z and the share of each of its dimensions in log q, which is their sum; both ``(*sample_shape, N, D)``.

    A Gaussian's share is :math:`\log q(z_i \mid z_{<i})`. A flow subtracts the share of dimension i in its
    log-determinant. Autoregressive steps, also those in reversed order, keep every dimension at its place; where a
    permutation moves dimensions, the shares move with them. Share i therefore belongs to dimension i of z.

    Args:
        q: a posterior of batch shape ``(N,)``.
        sample_shape: of the samples.
        noise: as of ``rsample_with_log_prob``.
    """
    if isinstance(q, FlowPosterior):
        z, shares = draw_by_dimension(q.base, sample_shape, **noise)
        z, log_det = q.flow(z, q.context, log_det_map=True)
        return z, carry_shares(q.flow, shares) - log_det
    z, _ = q.rsample_with_log_prob(sample_shape, **noise)
    given = noise.get("eps")
    # Given the noise, log q depends on the scales alone, so eps needs no gradient.
    eps = _noise_of(q, z.detach()) if given is None else given
    return z, -0.5 * (eps.square() + LOG_2PI) - q.log_sigma


def normal_by_dimension(z: Tensor) -> Tensor:
    """log N(0, 1) of every number."""
    return -0.5 * (z.square() + LOG_2PI)


@torch.no_grad()
def _noise_of(q: DiagonalGaussian | TriangularGaussian, z: Tensor) -> Tensor:
    residual = z - q.mu
    if isinstance(q, DiagonalGaussian):
        return residual * (-q.log_sigma).exp()
    with keep_full_precision(z.device.type):
        return torch.linalg.solve_triangular(q.scale_tril, residual.unsqueeze(-1), upper=False).squeeze(-1)
