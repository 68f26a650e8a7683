"""The importance-weighted bound with a gradient of the posterior whose signal does not vanish for many samples."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from . import _checks
from .bounds import iwae_bound

__all__ = ["dreg_bound"]


def dreg_bound(log_w: Tensor, paths: Sequence[Tensor], dim: int = 0, *, beta: float = 1.0) -> Tensor:
    r"""Importance-weighted bound whose gradient of the posterior is doubly reparameterised.

    The value is that of :func:`iwae_bound`. The gradient of the posterior's parameters :math:`\phi` is

    .. math::
        \sum_k \tilde w_k (1 - \beta + \beta \tilde w_k)\,
        \frac{\partial \log w_k}{\partial z_k} \frac{\partial z_k}{\partial \phi}, \qquad
        \tilde w = \operatorname{softmax}(\log w)

    It has the expectation of the usual gradient and, with ``beta`` 1, is zero at the exact posterior. The gradient of
    the model's parameters is the usual one.

    Args:
        log_w: log-weights :math:`\log p(x, z_k) - \log q(z_k \mid x)`, nats, the K samples along ``dim``. They
            depend on the posterior's parameters through ``paths`` alone: q has detached parameters. With ``beta``,
            :math:`\log p(x \mid z_k) + \beta (\log p(z_k) - \log q(z_k \mid x))`.
        paths: the samples, each of the shape of ``log_w`` and one dimension more, the last. The backward pass of
            whatever depends on them multiplies their gradients by :math:`1 - \beta + \beta \tilde w`: they serve this
            bound alone.
        dim: the dimension of the samples of ``log_w``.
        beta: weight of the divergence in ``log_w``, such as that of a warm-up.

    Returns:
        The bound, nats, the shape of ``log_w`` without ``dim``; float32 (float64 for float64 log-weights).

    Raises:
        TypeError: ``log_w`` or a path is no floating-point tensor, or ``beta`` no number.
        ValueError: ``log_w`` has no dimension ``dim`` or no sample along it, or a path has another shape, or
            ``beta`` is not finite.

    Note:
        In a hierarchy a path is a part of a sample: the gradient that z2 passes to z1 must not be weighted twice. See
        :class:`fastvae.recipes.systems.iwae.model.IWAE`.

    Reference:
        *Doubly Reparameterized Gradient Estimators for Monte Carlo Objectives* (Tucker, Lawson, Gu, Maddison, 2018).

    Example:
        >>> import torch
        >>> from fastvae.distributions import DiagonalGaussian
        >>> from fastvae.objectives import standard_normal_log_prob
        >>> mu, log_sigma = torch.zeros(2, requires_grad=True), torch.zeros(2, requires_grad=True)
        >>> z = DiagonalGaussian(mu, log_sigma).rsample((50,))
        >>> log_q = DiagonalGaussian(mu.detach(), log_sigma.detach()).log_prob(z)
        >>> dreg_bound(standard_normal_log_prob(z) - log_q, [z]).backward()
        >>> mu.grad
        tensor([0., 0.])
    """
    bound = iwae_bound(log_w, dim)
    _checks.check_finite(beta=beta)
    _checks.check_floating(**{f"paths[{i}]": path for i, path in enumerate(paths)})
    for i, path in enumerate(paths):
        if path.shape[:-1] != log_w.shape:
            raise ValueError(
                f"paths[{i}] must have the shape of log_w, {tuple(log_w.shape)}, and one dimension more, "
                f"got {tuple(path.shape)}"
            )
    weights = 1.0 - beta + beta * log_w.detach().to(bound.dtype).softmax(dim).unsqueeze(-1)
    for path in paths:
        if path.requires_grad:
            path.register_hook(lambda gradient: gradient * weights.to(gradient.dtype))
    return bound
