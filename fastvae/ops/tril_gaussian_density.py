"""Full-covariance Gaussian: log-density of foreign points by forward substitution, and divergence from N(0, I)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import backend
from ..backend import Route
from ..precision import compute_dtype
from ..reference import tril_gaussian as reference
from . import _checks, _layout
from ._library import Differentiable, apply, define, extension, needs_grad, with_reference
from ._small import is_left_to_compiler
from .tril_gaussian import check_tril


def _log_prob_fwd_cpu(z: Tensor, mu: Tensor, log_sigma: Tensor, tril: Tensor) -> Any:
    return extension().tril_gaussian_log_prob_fwd(
        *_layout.all_to_compute_dtype((z, mu, log_sigma, tril), z.dtype), z.shape
    )


def _log_prob_bwd_cpu(d_log_q: Tensor, eps: Tensor, log_sigma: Tensor, tril: Tensor) -> Any:
    log_s, t = _layout.all_to_compute_dtype((log_sigma, tril), log_sigma.dtype)
    gradients = extension().tril_gaussian_log_prob_bwd(d_log_q, eps, log_s, t, eps.shape)
    return _layout.all_to(gradients, log_sigma.dtype)


def _kl_fwd_cpu(*parameters: Tensor) -> Any:
    return extension().tril_gaussian_kl_fwd(*_layout.all_to_compute_dtype(parameters, parameters[0].dtype))


def _kl_bwd_cpu(d_kl: Tensor, *parameters: Tensor) -> Any:
    dtype = parameters[0].dtype
    return _layout.all_to(
        extension().tril_gaussian_kl_bwd(d_kl, *_layout.all_to_compute_dtype(parameters, dtype)), dtype
    )


def _log_prob_fwd_triton(
    launcher: Any, z: Tensor, mu: Tensor, log_sigma: Tensor, tril: Tensor
) -> tuple[Tensor, Tensor]:
    log_q, eps = launcher(_layout.stack_samples(z, *mu.shape), mu, log_sigma, tril)
    return log_q.view(z.shape[:-1]), eps.view(z.shape)


def _log_prob_bwd_triton(
    launcher: Any, d_log_q: Tensor, eps: Tensor, log_sigma: Tensor, tril: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    y = _layout.stack_samples(eps, *log_sigma.shape)
    d_z, *d_parameters = launcher(d_log_q.view(y.shape[:-1]), y, log_sigma, tril)
    return d_z.view(eps.shape), *d_parameters


def _log_prob_fwd_fake(z: Tensor, mu: Tensor, log_sigma: Tensor, tril: Tensor) -> tuple[Tensor, Tensor]:
    dtype = compute_dtype(z.dtype)
    return z.new_empty(z.shape[:-1], dtype=dtype), z.new_empty(z.shape, dtype=dtype)


def _log_prob_bwd_fake(
    d_log_q: Tensor, eps: Tensor, log_sigma: Tensor, tril: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    d_z = log_sigma.new_empty(eps.shape)
    return d_z, log_sigma.new_empty(log_sigma.shape), log_sigma.new_empty(log_sigma.shape), tril.new_empty(tril.shape)


LOG_PROB_FWD = define(
    "tril_gaussian_log_prob_fwd(Tensor z, Tensor mu, Tensor log_sigma, Tensor tril) -> (Tensor log_q, Tensor eps)",
    tensors="mu[N,D]r log_sigma[N,D]r z[S,D]c", more=check_tril,
    module="tril_gaussian_density", cpu=_log_prob_fwd_cpu, fake=_log_prob_fwd_fake, adapt=_log_prob_fwd_triton,
)  # fmt: skip
LOG_PROB_BWD = define(
    "tril_gaussian_log_prob_bwd(Tensor d_log_q, Tensor eps, Tensor log_sigma, Tensor tril)"
    " -> (Tensor d_z, Tensor d_mu, Tensor d_log_sigma, Tensor d_tril)",
    tensors="log_sigma[N,D]r eps[S,D]cw d_log_q[S]cw", more=check_tril,
    module="tril_gaussian_density", cpu=_log_prob_bwd_cpu, fake=_log_prob_bwd_fake, adapt=_log_prob_bwd_triton,
)  # fmt: skip
KL_FWD = define(
    "tril_gaussian_kl_fwd(Tensor mu, Tensor log_sigma, Tensor tril) -> Tensor kl",
    tensors="mu[N,D]r log_sigma[N,D]r", more=check_tril,
    module="tril_gaussian_density", cpu=_kl_fwd_cpu,
    fake=lambda mu, *_: mu.new_empty(mu.shape[:-1], dtype=compute_dtype(mu.dtype)),
)  # fmt: skip
KL_BWD = define(
    "tril_gaussian_kl_bwd(Tensor d_kl, Tensor mu, Tensor log_sigma, Tensor tril)"
    " -> (Tensor d_mu, Tensor d_log_sigma, Tensor d_tril)",
    tensors="mu[N,D]r log_sigma[N,D]r d_kl[N]cw", more=check_tril,
    module="tril_gaussian_density", cpu=_kl_bwd_cpu,
    fake=lambda d_kl, *parameters: tuple(p.new_empty(p.shape) for p in parameters),
)  # fmt: skip


def _rebuild_log_prob(ctx: Any) -> Differentiable:
    def log_prob(z: Tensor, mu: Tensor, log_sigma: Tensor, tril: Tensor, *_: None) -> Tensor:
        points = _layout.stack_samples(z, *mu.shape)
        return reference.log_prob(points, mu, log_sigma, tril, tril.dim() == 2).reshape(z.shape[:-1])

    _, log_sigma, tril, z, mu = ctx.saved_tensors
    return log_prob, (z, mu, log_sigma, tril, None)


class _TrilGaussianLogProb(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, mu: Tensor, log_sigma: Tensor, tril: Tensor, route: Route) -> Tensor:
        log_q, eps = LOG_PROB_FWD.on(route)(z, mu, log_sigma, tril)
        ctx.save_for_backward(eps, log_sigma, tril, z, mu)
        ctx.route = route
        return log_q

    @staticmethod
    @with_reference(_rebuild_log_prob)
    def backward(ctx: Any, route: Route, d_log_q: Tensor) -> Any:
        eps, log_sigma, tril, *_ = ctx.saved_tensors
        op = LOG_PROB_BWD.on(route)
        return *op(d_log_q.contiguous(), eps, log_sigma, tril), None


def _rebuild_kl(ctx: Any) -> Differentiable:
    def kl(mu: Tensor, log_sigma: Tensor, tril: Tensor, *_: None) -> Tensor:
        return reference.kl(mu, log_sigma, tril, tril.dim() == 2)

    return kl, (*ctx.saved_tensors, None)


class _TrilGaussianKL(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, mu: Tensor, log_sigma: Tensor, tril: Tensor, route: Route) -> Tensor:
        ctx.save_for_backward(mu, log_sigma, tril)
        ctx.route = route
        return KL_FWD.on(route)(mu, log_sigma, tril)

    @staticmethod
    @with_reference(_rebuild_kl)
    def backward(ctx: Any, route: Route, d_kl: Tensor) -> Any:
        op = KL_BWD.on(route)
        return *op(d_kl.contiguous(), *ctx.saved_tensors), None


def tril_gaussian_log_prob(z: Tensor, mu: Tensor, log_sigma: Tensor, tril: Tensor, *, impl: str = "auto") -> Tensor:
    r"""Log-density of points under a full-covariance Gaussian, by forward substitution with its triangular factor.

    .. math::
        L\epsilon = z - \mu, \qquad
        \log q(z) = -\sum_i \left(\tfrac12 \epsilon_i^2 + \log\sigma_i + \tfrac12 \log 2\pi\right)

    For one's own samples use the ``log_q`` that :func:`tril_gaussian_rsample` returns: it needs no solve.

    Args:
        z: the points, shape ``(*sample_shape, *, D)``; leading dimensions that the parameters lack are samples of
            the same Gaussian, for which nothing is repeated in memory.
        mu: mean, ``(*, D)``.
        log_sigma: natural logarithm of the diagonal of the factor, ``(*, D)``.
        tril: below the diagonal of the factor, packed ``(*, D(D-1)/2)`` or dense ``(*, D, D)``.
        impl: ``"auto"``, ``"triton"``, ``"cpp"`` or ``"reference"``.

    Returns:
        ``(*sample_shape, *)`` in nats, float32 (float64 for float64 inputs).

    Raises:
        TypeError: an argument is no floating-point tensor, or dtypes differ outside autocast.
        ValueError: shapes do not fit or devices differ.
        RuntimeError: ``impl`` cannot run here.

    Note:
        The whitened points, as large as ``z``, are kept for the backward pass. Deterministic. Differentiable in every
        argument any number of times, by the reference from the second time on.

    Reference:
        *Matrix Computations* (Golub, Van Loan, 2013), section 3.1.

    Example:
        >>> mu, log_sigma, tril = torch.zeros(3, 4), torch.zeros(3, 4), torch.ones(3, 6)
        >>> tril_gaussian_log_prob(torch.zeros(5, 1, 4), mu, log_sigma, tril).shape
        torch.Size([5, 3])
    """
    route, (z, mu, log_sigma, tril) = backend.route(
        impl, z, mu, log_sigma, tril, names=("z", "mu", "log_sigma", "tril")
    )
    if not route.alike:
        z, mu, log_sigma, tril = _checks.to_same_kind(z=z, mu=mu, log_sigma=log_sigma, tril=tril)
    mu, log_sigma, tril, packed = _checks.check_triangular(mu, log_sigma, tril, alike=True)
    z, mu, log_sigma, tril = _checks.align_points(z, (mu, log_sigma, tril), (1, 1, 1 if packed else 2))
    if route.impl == "reference":
        return reference.log_prob(z, mu, log_sigma, tril, packed)
    z, d = z.contiguous(), z.shape[-1]
    mu, log_sigma = _layout.to_rows(mu, d), _layout.to_rows(log_sigma, d)
    tril = _layout.to_matrices(tril, d, packed)
    if needs_grad(z, mu, log_sigma, tril):
        return apply(_TrilGaussianLogProb, z, mu, log_sigma, tril, route)
    return LOG_PROB_FWD.on(route)(z, mu, log_sigma, tril)[0]


def tril_gaussian_kl(mu: Tensor, log_sigma: Tensor, tril: Tensor, *, impl: str = "auto") -> Tensor:
    r"""Kullback-Leibler divergence of a full-covariance Gaussian from :math:`N(0, I)`, in closed form.

    .. math::
        \mathrm{KL} = \tfrac12 \sum_{j<i} T_{ij}^2
            + \sum_i \left(\tfrac12 (\sigma_i^2 + \mu_i^2 - 1) - \log\sigma_i\right)

    Args:
        mu: mean, shape ``(*, D)``.
        log_sigma: natural logarithm of the diagonal of the factor, ``(*, D)``.
        tril: below the diagonal of the factor, packed ``(*, D(D-1)/2)`` or dense ``(*, D, D)``.
        impl: ``"auto"``, ``"triton"``, ``"cpp"`` or ``"reference"``.

    Returns:
        ``(*)`` in nats, float32 (float64 for float64 inputs).

    Raises:
        TypeError: an argument is no floating-point tensor, or dtypes differ outside autocast.
        ValueError: shapes do not fit or devices differ.
        RuntimeError: ``impl`` cannot run here.

    Note:
        Deterministic. Differentiable in every argument any number of times, by the reference from the second time on.

    Reference:
        *Pattern Recognition and Machine Learning* (Bishop, 2006), section 1.6.

    Example:
        >>> tril_gaussian_kl(torch.zeros(2, 4), torch.zeros(2, 4), torch.ones(2, 6))
        tensor([3., 3.])
    """
    route, (mu, log_sigma, tril) = backend.route(impl, mu, log_sigma, tril, names=("mu", "log_sigma", "tril"))
    mu, log_sigma, tril, packed = _checks.check_triangular(mu, log_sigma, tril, route.alike)
    if route.impl == "reference" or is_left_to_compiler(impl, route, mu.numel()):
        return reference.kl(mu, log_sigma, tril, packed)
    batch, d = mu.shape[:-1], mu.shape[-1]
    mu, log_sigma = _layout.to_rows(mu, d), _layout.to_rows(log_sigma, d)
    tril = _layout.to_matrices(tril, d, packed)
    if needs_grad(mu, log_sigma, tril):
        return _layout.to_shape(apply(_TrilGaussianKL, mu, log_sigma, tril, route), batch)
    return _layout.to_shape(KL_FWD.on(route)(mu, log_sigma, tril), batch)
