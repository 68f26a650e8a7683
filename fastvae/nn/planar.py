"""Planar flow."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from .amortised import AmortisedFlow, check_sizes, log_of_positive

__all__ = ["PlanarFlow"]

ACTIVATIONS = ("tanh", "leaky_relu")

# Where softplus is 1: there the constraint moves nothing.
UNCONSTRAINED = 0.5413248546129181


class PlanarFlow(AmortisedFlow):
    r"""Planar flow: ``forward``, base noise to sample, is fast. So is ``inverse``, which only ``"leaky_relu"`` has.

    .. math::
        z' = z + \hat u\, h(w^\top z + b), \qquad
        \hat u = u + \left(\operatorname{softplus}(w^\top u) - 1 - w^\top u\right) \frac{w}{\lVert w \rVert^2}

    with :math:`\log|\det| = \log(1 + h'(w^\top z + b)\, w^\top \hat u)`. By construction
    :math:`w^\top \hat u > -1`, and :math:`0 \le h' \le 1`: the determinant is positive and the map invertible. The flow
    starts at, or with a context near, the identity.

    A leaky ReLU is :math:`h(t) = s(t)\, t`, with a slope s that depends on the sign of t. It takes
    :math:`t = w^\top z + b` to :math:`t' = w^\top z' + b = (1 + s(t)\, w^\top \hat u)\, t`. The factor is positive, so
    t' has the sign of t, and z' shows the slope. Hence :math:`t = t' / (1 + s(t')\, w^\top \hat u)` and
    :math:`z = z' - \hat u\, s(t')\, t`. With tanh the flow has no ``inverse``.

    Args:
        features: number D of features.
        context_features: width of the context. w, u and b are a linear map of it; with 0 they are learned themselves.
        activation: h, ``"tanh"`` or ``"leaky_relu"``.
        negative_slope: slope of the leaky ReLU below zero, from 0 to 1.

    Shape:
        ``z`` ``(*, D)`` and ``context`` ``(*, context_features)`` to ``(*, D)``, dtype of ``z``, and ``log_det``
        ``(*)``, float32 (float64 for float64 inputs); batches broadcast. With ``log_det_map=True`` it is ``(*, D)``:
        the diagonal of the logarithm of the Jacobian, whose trace is log |det|.

    Raises:
        ValueError: an unknown activation, a slope out of range, shapes that do not fit, or a context missing or
            unexpected.

    Reference:
        *Variational Inference with Normalizing Flows* (Rezende, Mohamed, 2015).

    Example:
        >>> flow = PlanarFlow(4, context_features=3)
        >>> z, log_det = flow(torch.randn(6, 4), torch.randn(6, 3))
        >>> z.shape, log_det.shape
        (torch.Size([6, 4]), torch.Size([6]))
        >>> hasattr(flow, "inverse"), hasattr(PlanarFlow(4, activation="leaky_relu"), "inverse")
        (False, True)
    """

    def __init__(
        self,
        features: int,
        context_features: int = 0,
        *,
        activation: str = "tanh",
        negative_slope: float = 0.2,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        features, context_features = check_sizes(features, context_features)
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}, got {activation!r}")
        if not 0.0 <= negative_slope <= 1.0:
            raise ValueError(f"negative_slope must be from 0 to 1, got {negative_slope}")
        super().__init__(features, context_features, 2 * features + 1, device, dtype)
        self.activation, self.negative_slope = activation, negative_slope
        self._draw()

    def _start(self, **options: Any) -> Tensor:
        w = torch.randn(self.features, **options) / self.features**0.5
        u = UNCONSTRAINED * w / w.square().sum()
        return torch.cat([w, u, w.new_zeros(1)])

    def forward(self, z: Tensor, context: Tensor | None = None, log_det_map: bool = False) -> tuple[Tensor, Tensor]:
        """Base noise to sample (fast): the sample and log |det| of the map."""
        x, w, u_hat, w_u_hat, b = self._vectors(z, context)
        t = (w * x).sum(-1, keepdim=True) + b
        if self.activation == "tanh":
            h = torch.tanh(t)
            slope = 1.0 - h.square()
        else:
            slope = self._slope(t)
            h = slope * t
        out, log_det = torch.addcmul(x, u_hat, h).to(z.dtype), log_of_positive(1.0 + slope * w_u_hat)
        return out, _shares(log_det, slope, w, u_hat, w_u_hat) if log_det_map else log_det.squeeze(-1)

    @property
    def inverse(self) -> Callable[..., tuple[Tensor, Tensor]]:
        """``inverse(z, context=None)``, sample to base noise (fast): the noise and log |det| of the inverse map.

        Raises:
            AttributeError: the activation is tanh.
        """
        # FlowSequence, and other callers that need an inverse, ask for the attribute.
        if self.activation == "tanh":
            raise AttributeError("inverse")
        return self._inverse

    def _inverse(self, z: Tensor, context: Tensor | None = None, log_det_map: bool = False) -> tuple[Tensor, Tensor]:
        x, w, u_hat, w_u_hat, b = self._vectors(z, context)
        t = (w * x).sum(-1, keepdim=True) + b
        slope = self._slope(t)
        # The same determinant as in forward, kept from zero in the same way.
        determinant = (1.0 + slope * w_u_hat).clamp(min=torch.finfo(x.dtype).tiny)
        out = torch.addcmul(x, u_hat, slope * t / determinant, value=-1)
        log_det = -determinant.log()
        return out.to(z.dtype), _shares(log_det, slope, w, u_hat, w_u_hat, -1.0) if log_det_map else log_det.squeeze(-1)

    def _slope(self, t: Tensor) -> Tensor:
        # torch.where would make float32 of Python numbers.
        return torch.where(t < 0, torch.full_like(t, self.negative_slope), torch.ones_like(t))

    def _vectors(self, z: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """``z`` in the dtype to compute in, w, the bounded u, the product of the two, b."""
        x, parameters = self._prepare(z, context)
        w, u, b = parameters.split([self.features, self.features, 1], -1)
        squared = w.square().sum(-1, keepdim=True)
        w_u = (w * u).sum(-1, keepdim=True)
        bounded = functional.softplus(w_u) - 1.0
        # Where w vanishes the map is a translation, and nothing needs to be bounded.
        u_hat = u + (bounded - w_u) * w / squared.clamp(min=torch.finfo(x.dtype).tiny)
        return x, w, u_hat, torch.where(squared > 0, bounded, w_u), b

    def extra_repr(self) -> str:
        slope = f", negative_slope={self.negative_slope}" if self.activation == "leaky_relu" else ""
        return f"{super().extra_repr()}, activation={self.activation}{slope}"


def _shares(log_det: Tensor, slope: Tensor, w: Tensor, u_hat: Tensor, w_u_hat: Tensor, sign: float = 1.0) -> Tensor:
    r"""The diagonal of the logarithm of :math:`(I + s \hat u w^\top)^{\pm 1}`; ``log_det`` ``(*, 1)`` is its trace.

    .. math::
        \pm \frac{\log(1 + t)}{t}\, s\, \hat u_i w_i, \qquad t = s\, w^\top \hat u
    """
    t = slope * w_u_hat
    # The quotient, and its derivative even more, lose their digits to rounding where t is small.
    is_small = t.abs() < 1e-2
    series = torch.zeros_like(t)
    for power in range(8, 0, -1):
        series = 1.0 / power - t * series
    ratio = torch.where(is_small, sign * series, log_det / torch.where(is_small, 1.0, t))
    return ratio * slope * w * u_hat
