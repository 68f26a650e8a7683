r"""Kullback-Leibler divergences between the Gaussians of fastvae and those of ``torch.distributions``.

.. math::
    \mathrm{KL}(p\,\|\,q) = \tfrac12 \left(\|L_q^{-1} L_p\|_F^2 + \|L_q^{-1}(\mu_p - \mu_q)\|^2 - D\right)
    + \sum_i \log (L_q)_{ii} - \sum_i \log (L_p)_{ii}

Forward substitution with :math:`L_q` gives both norms. It needs no inverse and no Cholesky factorisation. The
diagonal of :math:`L_q^{-1} L_p` is :math:`\sigma_p / \sigma_q`. The code subtracts the logarithm of each ratio, and
its share of D, from the square of that ratio. So equal Gaussians lose no digits to cancellation.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution, Independent, MultivariateNormal, Normal, register_kl

from .. import functional as F
from ..precision import compute_dtype, keep_full_precision
from ..reference.tril_gaussian import strictly_lower
from .gaussians import DiagonalGaussian, StandardNormal, TriangularGaussian

__all__: list[str] = []


def _kl_diagonal_diagonal(p: DiagonalGaussian, q: DiagonalGaussian) -> Tensor:
    _check_shapes(p, q)
    return F.diag_gaussian_kl(p.mu, p.log_sigma, q.mu, q.log_sigma, impl=p.impl)


def _kl_diagonal_standard(p: DiagonalGaussian, q: StandardNormal) -> Tensor:
    _check_shapes(p, q)
    return _over(F.diag_gaussian_kl(p.mu, p.log_sigma, impl=p.impl), q)


def _kl_triangular_standard(p: TriangularGaussian, q: StandardNormal) -> Tensor:
    _check_shapes(p, q)
    return _over(F.tril_gaussian_kl(p.mu, p.log_sigma, p.tril, impl=p.impl), q)


def _kl_foreign_standard(p: Distribution, q: StandardNormal) -> Tensor:
    _check_known(p, q)
    _check_shapes(p, q)
    dtype = compute_dtype(p.mean.dtype)
    mu, log_sigma = _vectors(p, dtype)
    if not _has_factor(p):
        return _over(F.diag_gaussian_kl(mu, log_sigma, impl=q.impl), q)
    # The factor gets every dimension of the batch: with three features it could be a batch of packed triangles.
    dense = _scale_tril(p, dtype).expand(*mu.shape, mu.shape[-1])
    return _over(F.tril_gaussian_kl(mu, log_sigma, dense, impl=q.impl), q)


def _kl(p: Distribution, q: Distribution) -> Tensor:
    """The divergence of any two Gaussians, in the dtype of p, at least float32."""
    _check_known(p, q)
    _check_shapes(p, q)
    dtype = compute_dtype(p.mean.dtype)
    (mu_p, log_sigma_p), (mu_q, log_sigma_q) = _vectors(p, dtype), _vectors(q, dtype)
    if not _has_factor(p) and not _has_factor(q):
        impl = p.impl if hasattr(p, "impl") else getattr(q, "impl", "auto")
        return F.diag_gaussian_kl(mu_p, log_sigma_p, mu_q, log_sigma_q, impl=impl)
    with keep_full_precision(mu_p.device.type):
        difference, log_ratio = mu_p - mu_q, log_sigma_p - log_sigma_q
        if _has_factor(q):
            factor = _scale_tril(q, dtype)
            mixed = _solve(factor, _scale_tril(p, dtype)).tril(-1)
            whitened = _solve(factor, difference.unsqueeze(-1)).squeeze(-1)
        else:
            precision = (-log_sigma_q).exp()
            mixed, whitened = _lower(p, dtype) * precision.unsqueeze(-1), difference * precision
        diagonal = whitened.square() + (2.0 * log_ratio).expm1() - 2.0 * log_ratio
        return 0.5 * (mixed.square().sum((-2, -1)) + diagonal.sum(-1))


def _has_factor(gaussian: Distribution) -> bool:
    return isinstance(gaussian, MultivariateNormal) or hasattr(gaussian, "tril")


def _vectors(gaussian: Any, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The mean, and the logarithm of the factor's diagonal."""
    if isinstance(gaussian, Independent):
        normal = gaussian.base_dist
        return normal.loc.to(dtype), normal.scale.to(dtype).log()
    if isinstance(gaussian, MultivariateNormal):
        return gaussian.loc.to(dtype), _scale_tril(gaussian, dtype).diagonal(dim1=-2, dim2=-1).log()
    return gaussian.mu.to(dtype), gaussian.log_sigma.to(dtype)


def _scale_tril(gaussian: Any, dtype: torch.dtype) -> Tensor:
    """The triangular factor of any Gaussian."""
    if isinstance(gaussian, MultivariateNormal):
        # The public property repeats one factor for every mean of a batch, and every repetition would be a solve.
        return gaussian._unbroadcasted_scale_tril.to(dtype)
    if _has_factor(gaussian):
        return gaussian._scale_tril_in(dtype)
    return torch.diag_embed(_vectors(gaussian, dtype)[1].exp())


def _lower(gaussian: Any, dtype: torch.dtype) -> Tensor:
    """The entries below the diagonal of a Gaussian's factor, zero elsewhere."""
    if isinstance(gaussian, MultivariateNormal):
        return _scale_tril(gaussian, dtype).tril(-1)
    return strictly_lower(gaussian.tril.to(dtype), gaussian.event_shape[0], gaussian._packed)


def _check_known(p: Distribution, q: Distribution) -> None:
    for gaussian in (p, q):
        if not isinstance(gaussian, Independent):
            continue
        if not isinstance(gaussian.base_dist, Normal) or len(gaussian.event_shape) != 1:
            raise NotImplementedError(
                f"kl_divergence of {_words(p)} to {_words(q)} is not known; of the distributions Independent(...), "
                "it knows Independent(Normal(...), 1)"
            )


def _words(gaussian: Distribution) -> str:
    return str(gaussian) if isinstance(gaussian, Independent) else f"a {type(gaussian).__name__}"


def _check_shapes(p: Distribution, q: Distribution) -> None:
    if p.event_shape != q.event_shape:
        raise ValueError(
            f"kl_divergence needs Gaussians of one event shape, got {tuple(p.event_shape)} and {tuple(q.event_shape)}"
        )
    if p.batch_shape == q.batch_shape:
        return
    try:
        torch.broadcast_shapes(p.batch_shape, q.batch_shape)
    except RuntimeError:
        raise ValueError(
            "kl_divergence needs Gaussians whose batch shapes broadcast, got "
            f"{tuple(p.batch_shape)} and {tuple(q.batch_shape)}"
        ) from None


def _over(kl: Tensor, q: Distribution) -> Tensor:
    """The divergence from a posterior for every member of the prior's batch."""
    if not q.batch_shape or q.batch_shape == kl.shape:
        return kl
    return kl.expand(torch.broadcast_shapes(kl.shape, q.batch_shape))


def _solve(factor: Tensor, right: Tensor) -> Tensor:
    """Forward substitution; a batch of right-hand sides of one factor is one solve with more columns."""
    if factor.dim() > 2:
        return torch.linalg.solve_triangular(factor, right, upper=False)
    rows = right.movedim(-2, 0)
    solved = torch.linalg.solve_triangular(factor, rows.reshape(len(factor), -1), upper=False)
    return solved.reshape(rows.shape).movedim(0, -2)


def _register() -> None:
    """Makes ``torch.distributions.kl_divergence`` know the Gaussians."""
    for own in (DiagonalGaussian, TriangularGaussian):
        for other in (DiagonalGaussian, TriangularGaussian, Independent, MultivariateNormal):
            register_kl(own, other)(_kl)
            register_kl(other, own)(_kl)
    register_kl(DiagonalGaussian, DiagonalGaussian)(_kl_diagonal_diagonal)
    register_kl(DiagonalGaussian, StandardNormal)(_kl_diagonal_standard)
    register_kl(TriangularGaussian, StandardNormal)(_kl_triangular_standard)
    for other in (Independent, MultivariateNormal):
        register_kl(other, StandardNormal)(_kl_foreign_standard)


_register()
