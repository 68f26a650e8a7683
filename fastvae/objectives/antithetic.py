"""Gradients of Bernoulli units from antithetic pairs: ARM and DisARM."""

from __future__ import annotations

import torch
from torch import Tensor

from . import _checks

__all__ = ["antithetic_gradient"]


def antithetic_gradient(
    logits: Tensor, signal: Tensor, *, b: Tensor | None = None, uniforms: Tensor | None = None
) -> Tensor:
    r"""A zero whose gradient is the estimate of ARM, from ``uniforms``, or of DisARM, from ``b``.

    .. math::
        \text{ARM:}\quad (f(b) - f(\tilde b)) (u - \tfrac12) \qquad
        \text{DisARM:}\quad \tfrac12 (f(b) - f(\tilde b)) (b - \tilde b)\, \sigma(|l|), \qquad
        b = 1[u > \sigma(-l)],\ \tilde b = 1[1 - u > \sigma(-l)]

    DisARM is the mean of ARM over the uniform numbers that give the same pair. Add the result to the mean signal of the
    pair, as that of :func:`score_function`. A unit whose pair agrees gets no gradient from DisARM.

    Args:
        logits: l, ``(*, D)``, with its gradient.
        signal: f of the pair, ``(2, *sample_shape, *)``; taken as a constant.
        b: the pair, ``(2, *sample_shape, *, D)``, as :func:`fastvae.functional.bernoulli_sample` returns it with
            ``antithetic=True``.
        uniforms: u, ``(*sample_shape, *, D)``, as passed to that function.

    Returns:
        Zeros, ``(*sample_shape, *)``, in the dtype that PyTorch promotes to.

    Raises:
        TypeError: a term is no floating-point tensor.
        ValueError: shapes do not fit, or not exactly one of ``b`` and ``uniforms`` is given.

    Reference:
        *ARM: Augment-REINFORCE-Merge Gradient for Stochastic Binary Networks* (Yin, Zhou, 2019);
        *DisARM: An Antithetic Gradient Estimator for Binary Latent Variables* (Dong, Mnih, Tucker, 2020).

    Example:
        >>> from fastvae.functional import bernoulli_sample
        >>> logits = torch.zeros(5, 3, requires_grad=True)
        >>> b, _ = bernoulli_sample(logits, antithetic=True)
        >>> f = b.sum(-1)
        >>> (f.mean(0) + antithetic_gradient(logits, f, b=b)).sum().backward()
        >>> logits.grad.shape
        torch.Size([5, 3])
    """
    if (b is None) == (uniforms is None):
        raise ValueError(f"either b or uniforms must be given, got {'both' if b is not None else 'neither'}")
    _checks.check_floating(logits=logits, signal=signal)
    if logits.dim() == 0:
        raise ValueError("logits must have shape (*, D), got ()")
    name, drawn = ("b", b) if b is not None else ("uniforms", uniforms)
    assert drawn is not None
    _checks.check_floating(**{name: drawn})
    points = tuple(signal.shape[1:])
    if signal.shape[:1] != (2,) or points[len(points) - logits.dim() + 1 :] != tuple(logits.shape[:-1]):
        wanted = (2, *logits.shape[:-1])
        raise ValueError(f"signal must have shape (2, *sample_shape, *) such as {wanted}, got {tuple(signal.shape)}")
    expected = (*points, logits.shape[-1]) if b is None else (2, *points, logits.shape[-1])
    if tuple(drawn.shape) != expected:
        raise ValueError(f"{name} must have shape {expected}, got {tuple(drawn.shape)}")
    difference = (signal[0] - signal[1]).detach().unsqueeze(-1)
    if b is None:
        gradient = difference * (drawn.detach() - 0.5)
    else:
        gradient = 0.5 * difference * (drawn[0] - drawn[1]).detach() * torch.sigmoid(logits.detach().abs())
    return (gradient * (logits - logits.detach())).sum(-1)
