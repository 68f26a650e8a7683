"""The parameters of a full-covariance Gaussian that a linear layer predicts, in plain PyTorch."""

from __future__ import annotations

import torch.nn.functional as TF
from torch import Tensor

from .bounds import bound

Bounds = tuple[float, float] | None


def parameters(
    h: Tensor, weight: Tensor, bias: Tensor | None, latents: int, tril_scale: float, bounds: Bounds
) -> tuple[Tensor, Tensor, Tensor]:
    """``mu`` and the bounded ``log_sigma``, ``(*, D)``, and the packed factor, ``(*, D(D-1)/2)``, of ``h``, ``(*, H)``.

    ``weight`` and ``bias`` have the rows of mu, of log-sigma, then of the entries below the diagonal.
    """
    packed = weight.shape[0] - 2 * latents
    mu, log_sigma, tril = TF.linear(h, weight, bias).split([latents, latents, packed], -1)
    if bounds is not None:
        log_sigma = bound(log_sigma, *bounds)
    return mu, log_sigma, tril if tril_scale == 1.0 else tril_scale * tril
