"""Bounds of models with a discrete class, by enumeration of the classes."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..precision import compute_dtype
from . import _checks

__all__ = ["class_bound"]


def class_bound(
    log_likelihood: Tensor, kl: Tensor, class_logits: Tensor, log_prior: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    r"""Evidence lower bound of data without a label, and those with each label.

    .. math::
        \mathcal{L}_y = \log p(x \mid y) - \mathrm{kl}_y + \log p(y), \qquad
        \mathcal{U} = \sum_y q(y \mid x) \left(\mathcal{L}_y - \log q(y \mid x)\right), \qquad
        q(y \mid x) = \operatorname{softmax}(\text{class logits})

    Args:
        log_likelihood: log-likelihood of the data given each class and one sample of its latent variables, nats,
            ``(*sample_shape, *, C)``; of binary data see :func:`fastvae.functional.linear_bernoulli_log_prob`,
            which takes data ``(N, 1, P)`` for classes without a copy for each.
        kl: KL divergence from prior to posterior of these variables, or an estimate of it, nats: the shape of
            ``log_likelihood`` or its trailing dimensions.
        class_logits: logits of q(y given x), ``(*, C)``: likewise.
        log_prior: log p(y), nats, ``(C,)`` or more trailing dimensions; None for a uniform prior.

    Returns:
        The bound of log p(x), ``(*sample_shape, *)``, and the bounds of log p(x, y), ``(*sample_shape, *, C)``; float32
        (float64 where an argument is float64).

    Raises:
        TypeError: an argument is no floating-point tensor.
        ValueError: ``log_likelihood`` has no class, or a shape is not that of its trailing dimensions.

    Note:
        A class of probability 0 adds nothing to the bound, whatever its term is.

    Reference:
        *Semi-Supervised Learning with Deep Generative Models* (Kingma, Rezende, Mohamed, Welling, 2014).

    Example:
        >>> log_likelihood, class_logits = torch.tensor([[-80.0, -90.0]]), torch.tensor([[0.0, -1e9]])
        >>> class_bound(log_likelihood, torch.zeros(1, 2), class_logits)
        (tensor([-80.6931]), tensor([[-80.6931, -90.6931]]))
    """
    terms = {"log_likelihood": log_likelihood, "kl": kl, "class_logits": class_logits}
    if log_prior is not None:
        terms["log_prior"] = log_prior
    _checks.check_floating(**terms)
    if log_likelihood.dim() == 0 or log_likelihood.shape[-1] == 0:
        raise ValueError(f"log_likelihood must have shape (*, C) with C >= 1, got {tuple(log_likelihood.shape)}")
    for name, t in list(terms.items())[1:]:
        if t.dim() == 0 or t.dim() > log_likelihood.dim() or t.shape != log_likelihood.shape[-t.dim() :]:
            raise ValueError(
                f"{name} must have the shape of log_likelihood, {tuple(log_likelihood.shape)}, or its trailing "
                f"dimensions, got {tuple(t.shape)}"
            )
    log_likelihood, kl, class_logits = (t.to(compute_dtype(t.dtype)) for t in (log_likelihood, kl, class_logits))
    prior = -math.log(log_likelihood.shape[-1]) if log_prior is None else log_prior.to(compute_dtype(log_prior.dtype))
    labelled = log_likelihood - kl + prior
    log_q = torch.log_softmax(class_logits, -1)
    q = log_q.exp()
    # The gradient of what `where` leaves out is 0 times what it selects: 0 * inf is not selected either.
    possible = q > 0
    summands = q * torch.where(possible, labelled - torch.where(possible, log_q, 0.0), 0.0)
    return summands.sum(-1), labelled
