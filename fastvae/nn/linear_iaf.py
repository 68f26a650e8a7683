"""Linear inverse autoregressive flow."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..precision import keep_full_precision
from ..reference.tril_gaussian import strictly_lower
from .amortised import AmortisedFlow, check_sizes, matvec, no_log_det

__all__ = ["LinearInverseAutoregressiveFlow"]


class LinearInverseAutoregressiveFlow(AmortisedFlow):
    r"""Linear inverse autoregressive flow: ``forward`` is one product, ``inverse`` one triangular solve.

    .. math::
        z = L(c)\, y, \qquad L = I + \operatorname{strictly\,lower}(W c + \theta_0), \qquad \log|\det| = 0

    Behind a diagonal Gaussian it makes a Gaussian of full covariance. It starts at the identity.

    Args:
        features: number D of features.
        context_features: width of the context. The D(D-1)/2 entries of the triangle, row-major, are a linear map of
            it; with 0 they are learned themselves.

    Shape:
        ``z`` ``(*, D)`` and ``context`` ``(*, context_features)`` to ``(*, D)``, dtype of ``z``, and ``log_det``
        ``(*)``, with ``log_det_map=True`` ``(*, D)``, zeros, float32 (float64 for float64 inputs); batches broadcast.

    Raises:
        ValueError: shapes that do not fit, or a context missing or unexpected.

    Reference:
        *Improving Variational Inference with Inverse Autoregressive Flow* (Kingma, Salimans, Jozefowicz, Chen,
        Sutskever, Welling, 2016), appendix A.

    Example:
        >>> flow = LinearInverseAutoregressiveFlow(4, context_features=3)
        >>> y, context = torch.randn(6, 4), torch.randn(6, 3)
        >>> z, log_det = flow(y, context)
        >>> torch.allclose(flow.inverse(z, context)[0], y), log_det.shape
        (True, torch.Size([6]))
    """

    context_scale = 0.0

    def __init__(self, features: int, context_features: int = 0, *, device: Any = None, dtype: Any = None) -> None:
        features, context_features = check_sizes(features, context_features)
        super().__init__(features, context_features, features * (features - 1) // 2, device, dtype)
        self._draw()

    def _start(self, **options: Any) -> Tensor:
        return torch.zeros(len(self.bias), **options)

    def forward(self, z: Tensor, context: Tensor | None = None, log_det_map: bool = False) -> tuple[Tensor, Tensor]:
        """Base noise to sample (fast, a product): the sample and log |det| of the map, zero."""
        y, packed = self._prepare(z, context)
        lower = strictly_lower(packed, self.features, packed=True)
        with keep_full_precision(y.device.type):
            out = y + matvec(lower, y)
        return out.to(z.dtype), no_log_det(y, log_det_map)

    def inverse(self, z: Tensor, context: Tensor | None = None, log_det_map: bool = False) -> tuple[Tensor, Tensor]:
        """Sample to base noise (a triangular solve): the noise and log |det| of the inverse map, zero."""
        x, packed = self._prepare(z, context)
        lower = strictly_lower(packed, self.features, packed=True)
        out = torch.linalg.solve_triangular(lower, x.unsqueeze(-1), upper=False, unitriangular=True).squeeze(-1)
        return out.to(z.dtype), no_log_det(x, log_det_map)
