r"""Log-likelihood of binary data under a decoder of dense layers, in plain PyTorch.

.. math::
    h_0 = z, \qquad h_i = \operatorname{act}(W_i h_{i-1} + b_i), \qquad l = W_n h_{n-1} + b_n, \qquad
    \log p(x \mid z) = \sum_j x_j l_j - \operatorname{softplus}(l_j)
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as TF
from torch import Tensor

from .latent_gradient import activate
from .linear_bernoulli import linear_bernoulli_log_prob


def hidden_layers(z: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor | None], activation: str) -> Tensor:
    """The inputs of the last layer."""
    hidden = z
    for weight, bias in zip(weights[:-1], biases[:-1], strict=True):
        hidden = activate(activation, TF.linear(hidden, weight, bias))
    return hidden


def mlp_bernoulli_log_prob(
    z: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    x: Tensor,
    inner: int,
    activation: str,
) -> Tensor:
    """``z`` (M, D), ``x`` (N, P): row m of ``z`` belongs to row m // inner % N of ``x``. Returns (M,)."""
    hidden = hidden_layers(z, weights, biases, activation)
    return linear_bernoulli_log_prob(hidden, weights[-1], biases[-1], x, inner)
