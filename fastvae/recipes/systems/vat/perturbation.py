"""The direction in which a small step changes a prediction most."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["adversarial_direction", "prediction_divergence", "prediction_entropy"]


def prediction_divergence(log_p: Tensor, logits: Tensor) -> Tensor:
    r"""KL(p || q) of class probabilities, ``(N,)``, nats.

    .. math:: D_{KL}(p \,\|\, q) = \sum_y p_y (\log p_y - \log q_y)

    Args:
        log_p: log-probabilities, ``(N, classes)``.
        logits: of q, ``(N, classes)``.
    """
    return (log_p.exp() * (log_p - logits.log_softmax(-1))).sum(-1)


def prediction_entropy(logits: Tensor) -> Tensor:
    """-sum_y p_y log p_y of class probabilities, ``(N,)``, nats, from logits ``(N, classes)``."""
    log_p = logits.log_softmax(-1)
    return -(log_p.exp() * log_p).sum(-1)


def adversarial_direction(
    predict: Callable[[Tensor], Tensor], x: Tensor, log_p: Tensor, noise: Tensor, *, step: float = 1e-2, turns: int = 1
) -> Tensor:
    r"""The unit vector of every input along which its prediction changes most: ``(N, D)``.

    It is the first eigenvector of the Hessian :math:`H` of :math:`D_{KL}(p(x) \,\|\, p(x + r))` to r at 0. A turn of
    the power iteration takes :math:`d` to :math:`Hd / \lVert Hd \rVert`, where

    .. math:: H d \approx \frac1\xi \nabla_r D_{KL}(p(x) \,\|\, p(x + r)) \Big|_{r = \xi d}.

    Args:
        predict: logits ``(N, classes)`` of inputs.
        x: inputs, ``(N, D)``.
        log_p: log-probabilities at ``x``, ``(N, classes)``; no gradient goes through them.
        noise: where the iteration begins, ``(N, D)``, of any length but 0.
        step: the length :math:`\xi` of the step at which the gradient is taken.
        turns: of the power iteration.

    Returns:
        The directions, without gradient. A row whose gradient is 0 keeps its direction.

    Reference:
        *Virtual Adversarial Training: A Regularization Method for Supervised and Semi-Supervised Learning* (Miyato,
        Maeda, Koyama, Ishii, 2018).

    Example:
        >>> weight = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
        >>> predict = lambda x: x @ weight.T
        >>> x = torch.zeros(1, 2)
        >>> adversarial_direction(predict, x, predict(x).log_softmax(-1), torch.tensor([[0.6, 0.8]]))
        tensor([[1., 0.]])
    """
    x, log_p = x.detach(), log_p.detach()
    direction = normalize(noise.detach(), noise.detach())
    for _ in range(turns):
        with torch.enable_grad():
            r = (step * direction).requires_grad_()
            (gradient,) = torch.autograd.grad(prediction_divergence(log_p, predict(x + r)).sum(), r)
        direction = normalize(gradient, direction)
    return direction


def normalize(vectors: Tensor, otherwise: Tensor) -> Tensor:
    """Rows of length 1; a row of length 0 is that of ``otherwise``."""
    # The largest entry first: squares of small gradients underflow.
    largest = vectors.abs().amax(-1, keepdim=True)
    scaled = vectors / torch.where(largest > 0, largest, 1.0)
    found = scaled / scaled.norm(dim=-1, keepdim=True).clamp_min(0.5)
    return torch.where(largest > 0, found, otherwise)
