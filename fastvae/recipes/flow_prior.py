"""A prior of a latent vector that a masked autoregressive flow learns."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..nn import MaskedAutoregressiveFlow
from ..nn._start import Start, start_as
from ..objectives import standard_normal_log_prob
from .flow_posterior import normal_by_dimension

__all__ = ["FlowPrior"]


class FlowPrior(nn.Module):
    r"""An autoregressive prior: :math:`p(z) = \prod_i N(z_i; \mu_i(z_{<i}), \sigma_i^2(z_{<i}))`, in several steps.

    Its density is one parallel pass, its sample one sweep. It starts at N(0, I).

    Args:
        features: dimensions of z.
        depth: steps; every other one takes the dimensions in reversed order.
        width: width of the two hidden layers of each step.
        impl: implementation, see :mod:`fastvae.backend`.

    Reference:
        *Variational Lossy Autoencoder* (Chen, Kingma, Salimans, Duan, Dhariwal, Schulman, Sutskever, Abbeel, 2017);
        *Masked Autoregressive Flow for Density Estimation* (Papamakarios, Pavlakou, Murray, 2017).

    Example:
        >>> prior = FlowPrior(4, depth=2, width=8)
        >>> z = prior.sample(5)
        >>> torch.allclose(prior.log_prob(z), standard_normal_log_prob(z), atol=1e-5)
        True
    """

    def __init__(self, features: int, *, depth: int, width: int, impl: str = "auto") -> None:
        super().__init__()
        self.features = features
        self.flow = MaskedAutoregressiveFlow(features, (width, width), steps=depth, kind="exp", impl=impl)
        for network in self.flow.steps():
            start_as(network.masked_layers()[-1], Start(weight_scale=0.0, bias_scale=0.0))

    def log_prob(self, z: Tensor) -> Tensor:
        """log p(z), ``(*)``, nats, of ``(*, D)``."""
        eps, log_det = self.flow.inverse(z)
        return standard_normal_log_prob(eps) + log_det

    def log_prob_by_dimension(self, z: Tensor) -> Tensor:
        """Each dimension's share of log p(z), ``(*, D)``."""
        eps, log_det = self.flow.inverse(z, log_det_map=True)
        return normal_by_dimension(eps) + log_det

    @torch.no_grad()
    def sample(self, n: int, *, generator: torch.Generator | None = None) -> Tensor:
        """Samples ``(n, D)``."""
        like = next(self.parameters())
        eps = torch.randn(n, self.features, generator=generator, dtype=like.dtype, device=like.device)
        z: Tensor = self.flow(eps)[0]
        return z
