"""A VAE of four data points whose latents lie in the plane."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ....distributions import DiagonalGaussian
from ....likelihoods import bernoulli_log_prob
from ....nn import InverseAutoregressiveFlow
from ....objectives import standard_normal_log_prob
from ...flow_posterior import FlowPosterior
from .config import FITS_OF_POINTS

__all__ = ["LARGEST_BOUND", "POINTS", "FourPoints"]

POINTS, CONTEXT = 4, 8
# The mean of log p(x) over equally frequent points is at most that of the uniform distribution.
LARGEST_BOUND = -math.log(POINTS)


class FourPoints(nn.Module):
    """p(z) = N(0, I) in the plane, Bernoulli pixels p(x | z), and a posterior of each of four data points.

    A data point has one pixel of four.

    Args:
        kind: of the posteriors: ``"diagonal"``, factorised Gaussians, or ``"iaf"``, which a flow makes of them.
        depth: steps of the flow.
        width: width of its hidden layers, and of those of the decoder.
        impl: implementation of every op, see :mod:`fastvae.backend`.

    Raises:
        ValueError: ``kind`` is another word.

    Example:
        >>> z, terms = FourPoints("iaf", depth=2, width=8).weigh(10)
        >>> z.shape, terms.shape
        (torch.Size([12, 2]), torch.Size([12]))
    """

    def __init__(self, kind: str, *, depth: int = 5, width: int = 48, impl: str = "auto") -> None:
        super().__init__()
        if kind not in FITS_OF_POINTS:
            raise ValueError(f"kind must be one of {', '.join(FITS_OF_POINTS)}, got {kind!r}")
        self.impl = impl
        self.mu, self.log_sigma = nn.Parameter(0.1 * torch.randn(POINTS, 2)), nn.Parameter(torch.zeros(POINTS, 2))
        self.decoder = nn.Sequential(
            nn.Linear(2, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, POINTS)
        )
        self.data: Tensor
        self.register_buffer("data", torch.eye(POINTS), persistent=False)
        self.context, self.flow = None, None
        if kind == "iaf":
            self.context = nn.Parameter(torch.randn(POINTS, CONTEXT))
            self.flow = InverseAutoregressiveFlow(
                2, (width, width), steps=depth, context_features=CONTEXT, kind="softplus", activation="tanh", impl=impl
            )

    def weigh(self, count: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Samples of the four posteriors in turn, and the terms of the bound.

        Args:
            count: of samples; it is rounded up to a multiple of four.
            generator: of the noise.

        Returns:
            Points ``(N, 2)``, and log p(x | z) + log p(z) - log q(z | x), ``(N,)``, nats.
        """
        base = DiagonalGaussian(self.mu, self.log_sigma, impl=self.impl)
        q: DiagonalGaussian | FlowPosterior = base
        if self.flow is not None and self.context is not None:
            q = FlowPosterior(base, self.flow, self.context)
        z, log_q = q.rsample_with_log_prob((-(-count // POINTS),), generator=generator)
        log_p_x = bernoulli_log_prob(self.data, self.decoder(z))
        terms = log_p_x + standard_normal_log_prob(z) - log_q
        return z.flatten(0, 1), terms.flatten()
