"""Diagonal Gaussian: log-density of foreign points, and Kullback-Leibler divergences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import backend
from ..backend import Route
from ..precision import compute_dtype
from ..reference import diag_gaussian as reference
from . import _checks, _layout
from ._library import Differentiable, apply, define, extension, needs_grad, with_reference
from ._small import is_left_to_compiler


def _density_like(t: Tensor, shape: tuple[int, ...]) -> Tensor:
    return t.new_empty(shape, dtype=compute_dtype(t.dtype))


def _log_prob_fwd_cpu(z: Tensor, mu: Tensor, log_sigma: Tensor) -> Tensor:
    tensors = _layout.all_to_compute_dtype((z, mu, log_sigma), z.dtype)
    log_q: Tensor = extension().diag_gaussian_log_prob_fwd(*tensors, z.shape[:-1])
    return log_q


def _log_prob_bwd_cpu(d_log_q: Tensor, z: Tensor, mu: Tensor, log_sigma: Tensor) -> tuple[Tensor, ...]:
    tensors = _layout.all_to_compute_dtype((z, mu, log_sigma), z.dtype)
    return _layout.all_to(extension().diag_gaussian_log_prob_bwd(d_log_q, *tensors, z.shape), z.dtype)


def _log_prob_fwd_triton(launcher: Any, z: Tensor, mu: Tensor, log_sigma: Tensor) -> Tensor:
    return launcher(_layout.stack_samples(z, *mu.shape), mu, log_sigma).view(z.shape[:-1])


def _log_prob_bwd_triton(
    launcher: Any, d_log_q: Tensor, z: Tensor, mu: Tensor, log_sigma: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    points = _layout.stack_samples(z, *mu.shape)
    d_z, d_mu, d_log_sigma = launcher(d_log_q.view(points.shape[:-1]), points, mu, log_sigma)
    return d_z.view(z.shape), d_mu, d_log_sigma


def _kl_fwd_cpu(*parameters: Tensor) -> Tensor:
    kl: Tensor = extension().diag_gaussian_kl_fwd(*_layout.all_to_compute_dtype(parameters, parameters[0].dtype))
    return kl


def _kl_bwd_cpu(d_kl: Tensor, *parameters: Tensor) -> tuple[Tensor, ...]:
    dtype = parameters[0].dtype
    return _layout.all_to(
        extension().diag_gaussian_kl_bwd(d_kl, *_layout.all_to_compute_dtype(parameters, dtype)), dtype
    )


def _kl_prior_fwd_cpu(*parameters: Tensor) -> Tensor:
    kl: Tensor = extension().diag_gaussian_kl_prior_fwd(*_layout.all_to_compute_dtype(parameters, parameters[0].dtype))
    return kl


def _kl_prior_bwd_cpu(d_kl: Tensor, *parameters: Tensor) -> tuple[Tensor, ...]:
    dtype = parameters[0].dtype
    gradients = extension().diag_gaussian_kl_prior_bwd(d_kl, *_layout.all_to_compute_dtype(parameters, dtype))
    return _layout.all_to(gradients, dtype)


def _contiguous_like(*tensors: Tensor) -> tuple[Tensor, ...]:
    return tuple(t.new_empty(t.shape) for t in tensors)


LOG_PROB_FWD = define(
    "diag_gaussian_log_prob_fwd(Tensor z, Tensor mu, Tensor log_sigma) -> Tensor log_q",
    tensors="mu[N,D]r log_sigma[N,D]r z[S,D]c",
    module="diag_gaussian_density", cpu=_log_prob_fwd_cpu, adapt=_log_prob_fwd_triton,
    fake=lambda z, mu, log_sigma: _density_like(mu, z.shape[:-1]),
)  # fmt: skip
LOG_PROB_BWD = define(
    "diag_gaussian_log_prob_bwd(Tensor d_log_q, Tensor z, Tensor mu, Tensor log_sigma)"
    " -> (Tensor d_z, Tensor d_mu, Tensor d_log_sigma)",
    tensors="mu[N,D]r log_sigma[N,D]r z[S,D]c d_log_q[S]cw",
    module="diag_gaussian_density", cpu=_log_prob_bwd_cpu, adapt=_log_prob_bwd_triton,
    fake=lambda d_log_q, z, mu, log_sigma: _contiguous_like(z, mu, log_sigma),
)  # fmt: skip
KL_FWD = define(
    "diag_gaussian_kl_fwd(Tensor mu, Tensor log_sigma) -> Tensor kl",
    tensors="mu[N,D]r log_sigma[N,D]r",
    module="diag_gaussian_density", cpu=_kl_fwd_cpu,
    fake=lambda mu, log_sigma: _density_like(mu, mu.shape[:-1]),
)  # fmt: skip
KL_BWD = define(
    "diag_gaussian_kl_bwd(Tensor d_kl, Tensor mu, Tensor log_sigma) -> (Tensor d_mu, Tensor d_log_sigma)",
    tensors="mu[N,D]r log_sigma[N,D]r d_kl[N]cw",
    module="diag_gaussian_density", cpu=_kl_bwd_cpu,
    fake=lambda d_kl, mu, log_sigma: _contiguous_like(mu, log_sigma),
)  # fmt: skip
KL_PRIOR_FWD = define(
    "diag_gaussian_kl_prior_fwd(Tensor mu, Tensor log_sigma, Tensor prior_mu, Tensor prior_log_sigma) -> Tensor kl",
    tensors="mu[N,D]r log_sigma[N,D]r prior_mu[N,D]r prior_log_sigma[N,D]r",
    module="diag_gaussian_density", cpu=_kl_prior_fwd_cpu,
    fake=lambda mu, *_: _density_like(mu, mu.shape[:-1]),
)  # fmt: skip
KL_PRIOR_BWD = define(
    "diag_gaussian_kl_prior_bwd(Tensor d_kl, Tensor mu, Tensor log_sigma, Tensor prior_mu, Tensor prior_log_sigma)"
    " -> (Tensor d_mu, Tensor d_log_sigma, Tensor d_prior_mu, Tensor d_prior_log_sigma)",
    tensors="mu[N,D]r log_sigma[N,D]r prior_mu[N,D]r prior_log_sigma[N,D]r d_kl[N]cw",
    module="diag_gaussian_density", cpu=_kl_prior_bwd_cpu,
    fake=lambda d_kl, *parameters: _contiguous_like(*parameters),
)  # fmt: skip


def _rebuild_log_prob(ctx: Any) -> Differentiable:
    def log_prob(z: Tensor, mu: Tensor, log_sigma: Tensor, *_: None) -> Tensor:
        return reference.log_prob(_layout.stack_samples(z, *mu.shape), mu, log_sigma).reshape(z.shape[:-1])

    return log_prob, (*ctx.saved_tensors, None)


class _DiagGaussianLogProb(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, mu: Tensor, log_sigma: Tensor, route: Route) -> Tensor:
        ctx.save_for_backward(z, mu, log_sigma)
        ctx.route = route
        return LOG_PROB_FWD.on(route)(z, mu, log_sigma)

    @staticmethod
    @with_reference(_rebuild_log_prob)
    def backward(ctx: Any, route: Route, d_log_q: Tensor) -> Any:
        op = LOG_PROB_BWD.on(route)
        return *op(d_log_q.contiguous(), *ctx.saved_tensors), None


def _rebuild_kl(ctx: Any) -> Differentiable:
    def kl(_: None, mu: Tensor, log_sigma: Tensor, *prior: Tensor) -> Tensor:
        return reference.kl(mu, log_sigma, *(prior or (None, None)))

    return kl, (None, *ctx.saved_tensors)


class _DiagGaussianKL(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, route: Route, *parameters: Tensor) -> Tensor:
        ctx.save_for_backward(*parameters)
        ctx.route = route
        return (KL_FWD if len(parameters) == 2 else KL_PRIOR_FWD).on(route)(*parameters)

    @staticmethod
    @with_reference(_rebuild_kl)
    def backward(ctx: Any, route: Route, d_kl: Tensor) -> Any:
        # Read once: recomputation under activation checkpointing hands every saved tensor out a single time.
        parameters = ctx.saved_tensors
        op = KL_BWD if len(parameters) == 2 else KL_PRIOR_BWD
        return None, *op.on(route)(d_kl.contiguous(), *parameters)


def diag_gaussian_log_prob(z: Tensor, mu: Tensor, log_sigma: Tensor, *, impl: str = "auto") -> Tensor:
    r"""Log-density of points under a diagonal Gaussian, summed over the features.

    .. math::
        \log q(z) = -\sum_i \left(\frac{(z_i - \mu_i)^2}{2\sigma_i^2} + \log\sigma_i + \tfrac12 \log 2\pi\right)

    Args:
        z: the points, shape ``(*sample_shape, *, D)``; leading dimensions that the parameters lack are samples of
            the same Gaussian, for which nothing is repeated in memory.
        mu: mean, ``(*, D)``.
        log_sigma: natural logarithm of the standard deviation, ``(*, D)``.
        impl: ``"auto"``, ``"triton"``, ``"cpp"`` or ``"reference"``.

    Returns:
        ``(*sample_shape, *)`` in nats, float32 (float64 for float64 inputs).

    Raises:
        TypeError: an argument is no floating-point tensor, or dtypes differ outside autocast.
        ValueError: shapes do not fit or devices differ.
        RuntimeError: ``impl`` cannot run here.

    Note:
        Deterministic. Differentiable in every argument any number of times, by the reference from the second time on.

    Reference:
        *Auto-Encoding Variational Bayes* (Kingma, Welling, 2013).

    Example:
        >>> diag_gaussian_log_prob(torch.zeros(5, 1, 2), torch.zeros(3, 2), torch.zeros(3, 2)).shape
        torch.Size([5, 3])
    """
    route, (z, mu, log_sigma) = backend.route(impl, z, mu, log_sigma, names=("z", "mu", "log_sigma"))
    if is_left_to_compiler(impl, route, z.numel()):
        route = Route("reference")
    if not route.rows:
        if not route.alike:
            z, mu, log_sigma = _checks.to_same_kind(z=z, mu=mu, log_sigma=log_sigma)
        mu, log_sigma = _checks.check_gaussian(mu, log_sigma, alike=True)
        z, mu, log_sigma = _checks.align_points(z, (mu, log_sigma), (1, 1))
        if route.impl == "reference":
            return reference.log_prob(z, mu, log_sigma)
        mu, log_sigma = _layout.to_rows(mu, mu.shape[-1]), _layout.to_rows(log_sigma, mu.shape[-1])
    z = z.contiguous()
    if needs_grad(z, mu, log_sigma):
        return apply(_DiagGaussianLogProb, z, mu, log_sigma, route)
    return LOG_PROB_FWD.on(route)(z, mu, log_sigma)


def diag_gaussian_kl(
    mu: Tensor,
    log_sigma: Tensor,
    prior_mu: Tensor | None = None,
    prior_log_sigma: Tensor | None = None,
    *,
    impl: str = "auto",
) -> Tensor:
    r"""Kullback-Leibler divergence of a diagonal Gaussian from :math:`N(0, I)` or from another diagonal Gaussian.

    .. math::
        \mathrm{KL}(q \,\|\, p) = \sum_i \left(\log\frac{\sigma^p_i}{\sigma_i}
            + \frac{\sigma_i^2 + (\mu_i - \mu^p_i)^2}{2 (\sigma^p_i)^2} - \tfrac12\right)

    Args:
        mu: mean of q, shape ``(*, D)``.
        log_sigma: natural logarithm of the standard deviation of q, ``(*, D)``.
        prior_mu: mean of p, ``(*, D)``; None, together with ``prior_log_sigma``, for :math:`N(0, I)`.
        prior_log_sigma: natural logarithm of the standard deviation of p, ``(*, D)``.
        impl: ``"auto"``, ``"triton"``, ``"cpp"`` or ``"reference"``.

    Returns:
        ``(*)`` in nats, float32 (float64 for float64 inputs).

    Raises:
        TypeError: an argument is no floating-point tensor, or dtypes differ outside autocast.
        ValueError: shapes do not fit, devices differ, or only one of the prior's parameters is given.
        RuntimeError: ``impl`` cannot run here.

    Note:
        Deterministic. Differentiable in every argument any number of times, by the reference from the second time on.

    Reference:
        *Auto-Encoding Variational Bayes* (Kingma, Welling, 2013), appendix B.

    Example:
        >>> diag_gaussian_kl(torch.ones(3, 2), torch.zeros(3, 2))
        tensor([1., 1., 1.])
    """
    if (prior_mu is None) != (prior_log_sigma is None):
        missing = "prior_mu" if prior_mu is None else "prior_log_sigma"
        raise ValueError(f"prior_mu and prior_log_sigma must be given together; {missing} is None")
    names = ("mu", "log_sigma") if prior_mu is None else ("mu", "log_sigma", "prior_mu", "prior_log_sigma")
    given = (mu, log_sigma) if prior_mu is None else (mu, log_sigma, prior_mu, prior_log_sigma)
    route, parameters = backend.route(impl, *given, names=names)
    if is_left_to_compiler(impl, route, mu.numel()):
        route = Route("reference")
    if route.rows:
        return _kl(route, parameters)
    if not route.alike:
        parameters = _checks.to_same_kind(**dict(zip(names, parameters, strict=True)))
    named = dict(zip(names, parameters, strict=True))
    _checks.check_features(**named)
    parameters = _checks.broadcast_batch([1] * len(named), **named)
    if route.impl == "reference":
        return reference.kl(*parameters, *[None] * (4 - len(parameters)))
    batch, d = parameters[0].shape[:-1], parameters[0].shape[-1]
    return _layout.to_shape(_kl(route, [_layout.to_rows(p, d) for p in parameters]), batch)


def _kl(route: Route, parameters: Sequence[Tensor]) -> Tensor:
    if needs_grad(*parameters):
        return apply(_DiagGaussianKL, route, *parameters)
    return (KL_FWD if len(parameters) == 2 else KL_PRIOR_FWD).on(route)(*parameters)
