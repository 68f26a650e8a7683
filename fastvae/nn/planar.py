"""Planar flow."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from .amortised import AmortisedFlow, check_sizes, log_of_positive

__all__ = ["PlanarFlow"]

# Where softplus is 1: there the constraint moves nothing.
UNCONSTRAINED = 0.5413248546129181


class PlanarFlow(AmortisedFlow):
    r"""Planar flow: ``forward``, base noise to sample, is fast; there is no inverse in closed form.

    .. math::
        z' = z + \hat u \tanh(w^\top z + b), \qquad
        \hat u = u + \left(\operatorname{softplus}(w^\top u) - 1 - w^\top u\right) \frac{w}{\lVert w \rVert^2}

    with :math:`\log|\det| = \log(1 + (1 - \tanh^2)\, w^\top \hat u)`; since :math:`w^\top \hat u > -1` the map is
    invertible. It starts at, or with a context near, the identity.

    Args:
        features: number D of features.
        context_features: width of the context that w, u and b are a linear map of; 0: they are learned themselves.

    Shape:
        ``z`` ``(*, D)`` and ``context`` ``(*, context_features)`` to ``(*, D)``, dtype of ``z``, and ``log_det``
        ``(*)``, float32 (float64 for float64 inputs); batches broadcast.

    Raises:
        ValueError: shapes that do not fit, or a context missing or unexpected.

    Reference:
        *Variational Inference with Normalizing Flows* (Rezende, Mohamed, 2015).

    Example:
        >>> flow = PlanarFlow(4, context_features=3)
        >>> z, log_det = flow(torch.randn(6, 4), torch.randn(6, 3))
        >>> z.shape, log_det.shape
        (torch.Size([6, 4]), torch.Size([6]))
    """

    def __init__(self, features: int, context_features: int = 0, *, device: Any = None, dtype: Any = None) -> None:
        check_sizes(features, context_features)
        w = torch.randn(features, device=device, dtype=dtype) / features**0.5
        u = UNCONSTRAINED * w / w.square().sum()
        super().__init__(features, context_features, torch.cat([w, u, w.new_zeros(1)]))

    def forward(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Base noise to sample (fast): the sample and log |det| of the map."""
        x, parameters = self._prepare(z, context)
        w, u, b = parameters.split([self.features, self.features, 1], -1)
        squared = w.square().sum(-1, keepdim=True)
        w_u = (w * u).sum(-1, keepdim=True)
        bounded = functional.softplus(w_u) - 1.0
        # Where w vanishes the map is a translation, and nothing needs to be bounded.
        u_hat = u + (bounded - w_u) * w / squared.clamp(min=torch.finfo(x.dtype).tiny)
        h = torch.tanh((w * x).sum(-1, keepdim=True) + b)
        slope = (1.0 - h.square()) * torch.where(squared > 0, bounded, w_u)
        return torch.addcmul(x, u_hat, h).to(z.dtype), log_of_positive(1.0 + slope).squeeze(-1)
