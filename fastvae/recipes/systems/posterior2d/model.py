"""Distributions on the plane: Gaussians, and one that a flow carries on."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ....distributions import DiagonalGaussian, TriangularGaussian
from ....nn import InverseAutoregressiveFlow
from .config import FITS, FOUR_POINTS, Posterior2dConfig
from .four_points import FourPoints

__all__ = ["Posterior2d", "Posteriors2d"]


class Posterior2d(nn.Module):
    """A distribution on the plane: a Gaussian with learned parameters, carried on by a flow if it is ``"iaf"``.

    Args:
        kind: ``"diagonal"``, ``"triangular"`` or ``"iaf"``.
        depth: steps of the flow.
        width: width of its hidden layers.
        impl: implementation of every op, see :mod:`fastvae.backend`.

    Raises:
        ValueError: ``kind`` is another word.

    Example:
        >>> z, log_q = Posterior2d("iaf", depth=2, width=8).rsample_with_log_prob(10)
        >>> z.shape, log_q.shape
        (torch.Size([10, 2]), torch.Size([10]))
    """

    def __init__(self, kind: str, *, depth: int = 5, width: int = 48, impl: str = "auto") -> None:
        super().__init__()
        if kind not in FITS:
            raise ValueError(f"kind must be one of {', '.join(FITS)}, got {kind!r}")
        self.impl = impl
        self.mu, self.log_sigma = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2))
        self.tril = nn.Parameter(torch.zeros(1)) if kind == "triangular" else None
        self.flow = (
            InverseAutoregressiveFlow(2, (width, width), steps=depth, kind="softplus", activation="tanh", impl=impl)
            if kind == "iaf"
            else None
        )

    def rsample_with_log_prob(self, count: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """``count`` samples ``(count, 2)`` and their log-densities ``(count,)``."""
        base: DiagonalGaussian | TriangularGaussian
        if self.tril is None:
            base = DiagonalGaussian(self.mu, self.log_sigma, impl=self.impl)
        else:
            base = TriangularGaussian(self.mu, self.log_sigma, self.tril, impl=self.impl)
        z, log_q = base.rsample_with_log_prob((count,), generator=generator)
        if self.flow is None:
            return z, log_q
        z, log_det = self.flow(z)
        return z, log_q - log_det


class Posteriors2d(nn.ModuleDict):
    """A posterior of each kind for each density, or a VAE in its place: ``posteriors[density][kind]``.

    Args:
        config: the densities, sizes and implementation.
    """

    def __init__(self, config: Posterior2dConfig) -> None:
        super().__init__()
        self.config = config
        for name, kinds in config.problems.items():
            make = FourPoints if name == FOUR_POINTS else Posterior2d
            how: dict[str, Any] = {"depth": config.depth, "width": config.width, "impl": config.impl}
            self[name] = nn.ModuleDict({kind: make(kind, **how) for kind in kinds})
