"""Gaussian posteriors as ``torch.distributions``, over the ops of :mod:`fastvae.functional`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import functional as F
from ..ops import _checks
from ..precision import compute_dtype, keep_full_precision
from ..reference.tril_gaussian import strictly_lower
from ..structure.integers import integer
from ._gaussian import VECTORS, Gaussian, TriangularConstraints

__all__ = ["DiagonalGaussian", "StandardNormal", "TriangularGaussian"]


class DiagonalGaussian(Gaussian):
    r"""Gaussian with independent components.

    .. math::
        q(z) = \prod_i N(z_i;\ \mu_i, \sigma_i^2)

    Args:
        mu: mean, ``(*, D)``; float16, bfloat16, float32 or float64.
        log_sigma: natural logarithm of the standard deviation, ``(*, D)``; batches broadcast.
        validate_args: whether to check values, of parameters here and of arguments later, as
            torch.distributions does. It reads them back from the device; by default only shapes, dtypes and
            devices are checked.
        impl: ``"auto"``, ``"triton"``, ``"cpp"`` or ``"reference"``, see :mod:`fastvae.backend`.

    Raises:
        TypeError: a parameter is no floating-point tensor, or dtypes differ outside autocast.
        ValueError: shapes do not fit or devices differ.

    Note:
        ``torch.distributions.kl_divergence`` accepts a DiagonalGaussian on either side. On the other side it accepts
        a DiagonalGaussian, a :class:`TriangularGaussian`, ``Independent(Normal(...), 1)`` or a
        ``MultivariateNormal``; batches broadcast. It does not read a :class:`StandardNormal` on the right. The result
        has the dtype of the left side, at least float32. torch.compile cannot trace the dispatch; there, call
        :func:`fastvae.functional.diag_gaussian_kl`.

    Reference:
        *Auto-Encoding Variational Bayes* (Kingma, Welling, 2013).

    Example:
        >>> q = DiagonalGaussian(torch.zeros(4, 8), torch.zeros(4, 8))
        >>> z, log_q = q.rsample_with_log_prob((3,))
        >>> z.shape, log_q.shape
        (torch.Size([3, 4, 8]), torch.Size([3, 4]))
        >>> torch.distributions.kl_divergence(q, StandardNormal(8))
        tensor([0., 0., 0., 0.])
    """

    arg_constraints = VECTORS

    def __init__(self, mu: Tensor, log_sigma: Tensor, validate_args: bool | None = None, *, impl: str = "auto") -> None:
        self.mu, self.log_sigma = _checks.check_gaussian(mu, log_sigma)
        self._finish(impl, validate_args)

    def rsample_with_log_prob(
        self,
        sample_shape: Sequence[int] = (),
        *,
        eps: Tensor | None = None,
        generator: torch.Generator | None = None,
        row_offset: int = 0,
    ) -> tuple[Tensor, Tensor]:
        return F.diag_gaussian_rsample(
            self.mu,
            self.log_sigma,
            sample_shape,
            eps=eps,
            generator=generator,
            row_offset=row_offset,
            impl=self.impl,
        )

    rsample_with_log_prob.__doc__ = Gaussian.rsample_with_log_prob.__doc__

    def rsample_with_kl(
        self,
        sample_shape: Sequence[int] = (),
        *,
        kl: str = "sum",
        eps: Tensor | None = None,
        generator: torch.Generator | None = None,
        row_offset: int = 0,
    ) -> tuple[Tensor, Tensor, Tensor]:
        return F.diag_gaussian_rsample_with_kl(
            self.mu,
            self.log_sigma,
            sample_shape,
            kl=kl,
            eps=eps,
            generator=generator,
            row_offset=row_offset,
            impl=self.impl,
        )

    rsample_with_kl.__doc__ = Gaussian.rsample_with_kl.__doc__

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-density of ``value``, ``(*sample_shape, *batch_shape, D)``, nats; float32 or float64."""
        if self._validate_args:
            self._validate_sample(value)
        return F.diag_gaussian_log_prob(value, self.mu, self.log_sigma, impl=self.impl)

    @property
    def stddev(self) -> Tensor:
        return self.log_sigma.exp()

    @property
    def variance(self) -> Tensor:
        return (2.0 * self.log_sigma).exp()

    @property
    def scale_tril(self) -> Tensor:
        """:math:`\\operatorname{diag}(\\sigma)`, ``(*batch_shape, D, D)``."""
        return torch.diag_embed(self.stddev)

    @property
    def covariance_matrix(self) -> Tensor:
        """:math:`\\operatorname{diag}(\\sigma^2)`, ``(*batch_shape, D, D)``."""
        return torch.diag_embed(self.variance)

    @property
    def precision_matrix(self) -> Tensor:
        """Inverse of the covariance matrix, ``(*batch_shape, D, D)``."""
        return torch.diag_embed((-2.0 * self.log_sigma).exp())

    def expand(self, batch_shape: Sequence[int], _instance: DiagonalGaussian | None = None) -> DiagonalGaussian:
        """The same Gaussian with a larger batch shape; nothing is copied."""
        new = self._get_checked_instance(DiagonalGaussian, _instance)
        self._expand_into(new, batch_shape)
        return new


class StandardNormal(DiagonalGaussian):
    r"""The prior :math:`N(0, I)`, which ``kl_divergence`` recognises by its type, without reading a value.

    Args:
        features: the number D of components.
        batch_shape: shape of the batch; a KL divergence broadcasts.
        dtype: dtype of the samples; torch's default if None.
        device: device of the samples; torch's default if None. A KL divergence is taken on the posterior's.
        validate_args: whether to check values given to :meth:`log_prob`.
        impl: ``"auto"``, ``"triton"``, ``"cpp"`` or ``"reference"``, see :mod:`fastvae.backend`.

    Raises:
        ValueError: ``features`` is below 1.

    Example:
        >>> StandardNormal(2).log_prob(torch.zeros(3, 2))
        tensor([-1.8379, -1.8379, -1.8379])
    """

    def __init__(
        self,
        features: int,
        batch_shape: Sequence[int] = (),
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        validate_args: bool | None = None,
        impl: str = "auto",
    ) -> None:
        features = integer("features", features, 1)
        zero = torch.zeros(features, dtype=dtype, device=device).expand(*batch_shape, features)
        super().__init__(zero, zero, validate_args, impl=impl)

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> DiagonalGaussian:
        new = self._get_checked_instance(StandardNormal, _instance)
        return super().expand(batch_shape, new)


class TriangularGaussian(Gaussian):
    r"""Gaussian with full covariance :math:`L L^\top`, given by its triangular factor.

    .. math::
        q(z) = N(z;\ \mu, L L^\top), \qquad
        L = \operatorname{strictly\,lower}(\text{tril}) + \operatorname{diag}(\sigma)

    Args:
        mu: mean, ``(*, D)``; float16, bfloat16, float32 or float64.
        log_sigma: natural logarithm of the diagonal of L, ``(*, D)``; batches broadcast.
        tril: the entries below the diagonal of L: packed row by row, ``(*, D(D-1)/2)``, or dense,
            ``(*, D, D)``. Nothing else of a dense ``tril`` is read.
        validate_args: whether to check values, of parameters here and of arguments later, as
            torch.distributions does. It reads them back from the device; by default only shapes, dtypes and
            devices are checked.
        impl: ``"auto"``, ``"triton"``, ``"cpp"`` or ``"reference"``, see :mod:`fastvae.backend`.

    Raises:
        TypeError: a parameter is no floating-point tensor, or dtypes differ outside autocast.
        ValueError: shapes do not fit or devices differ.

    Note:
        Sampling and one's own log-density need neither a D × D temporary nor a triangular solve. Only
        :attr:`scale_tril`, :attr:`covariance_matrix`, :attr:`precision_matrix` and, for a packed ``tril``,
        :attr:`variance` build the dense factor. ``torch.distributions.kl_divergence`` accepts a TriangularGaussian on
        either side. On the other side it accepts a TriangularGaussian, a :class:`DiagonalGaussian`,
        ``Independent(Normal(...), 1)`` or a ``MultivariateNormal``; batches broadcast. It is fastest if the right side
        is a :class:`StandardNormal`. If the right side has a triangular factor, it solves with that factor.

    Reference:
        *An Introduction to Variational Autoencoders* (Kingma, Welling, 2019), section 2.5.

    Example:
        >>> q = TriangularGaussian(torch.zeros(4, 8), torch.zeros(4, 8), torch.zeros(4, 28))
        >>> z, log_q = q.rsample_with_log_prob((3,))
        >>> z.shape, log_q.shape, q.covariance_matrix.shape
        (torch.Size([3, 4, 8]), torch.Size([3, 4]), torch.Size([4, 8, 8]))
    """

    arg_constraints = TriangularConstraints()

    tril: Tensor

    def __init__(
        self,
        mu: Tensor,
        log_sigma: Tensor,
        tril: Tensor,
        validate_args: bool | None = None,
        *,
        impl: str = "auto",
    ) -> None:
        self.mu, self.log_sigma, self.tril, self._packed = _checks.check_triangular(mu, log_sigma, tril)
        self._finish(impl, validate_args)

    def rsample_with_log_prob(
        self,
        sample_shape: Sequence[int] = (),
        *,
        eps: Tensor | None = None,
        generator: torch.Generator | None = None,
        row_offset: int = 0,
    ) -> tuple[Tensor, Tensor]:
        return F.tril_gaussian_rsample(
            self.mu,
            self.log_sigma,
            self.tril,
            sample_shape,
            eps=eps,
            generator=generator,
            row_offset=row_offset,
            impl=self.impl,
        )

    rsample_with_log_prob.__doc__ = Gaussian.rsample_with_log_prob.__doc__

    def rsample_with_kl(
        self,
        sample_shape: Sequence[int] = (),
        *,
        kl: str = "sum",
        eps: Tensor | None = None,
        generator: torch.Generator | None = None,
        row_offset: int = 0,
    ) -> tuple[Tensor, Tensor, Tensor]:
        return F.tril_gaussian_rsample_with_kl(
            self.mu,
            self.log_sigma,
            self.tril,
            sample_shape,
            kl=kl,
            eps=eps,
            generator=generator,
            row_offset=row_offset,
            impl=self.impl,
        )

    rsample_with_kl.__doc__ = Gaussian.rsample_with_kl.__doc__

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-density of ``value``, ``(*sample_shape, *batch_shape, D)``, nats; float32 or float64."""
        if self._validate_args:
            self._validate_sample(value)
        return F.tril_gaussian_log_prob(value, self.mu, self.log_sigma, self.tril, impl=self.impl)

    @property
    def scale_tril(self) -> Tensor:
        """The factor L, ``(*batch_shape, D, D)``."""
        return self._scale_tril_in(self.mu.dtype)

    def _scale_tril_in(self, dtype: torch.dtype) -> Tensor:
        """The factor L, ``(*batch_shape, D, D)``, computed in ``dtype``."""
        lower = strictly_lower(self.tril.to(dtype), self.event_shape[0], self._packed)
        return lower.diagonal_scatter(self.log_sigma.to(dtype).exp(), dim1=-2, dim2=-1)

    @property
    def covariance_matrix(self) -> Tensor:
        """:math:`L L^\\top`, ``(*batch_shape, D, D)``."""
        scale_tril = self.scale_tril
        with keep_full_precision(scale_tril.device.type):
            return scale_tril @ scale_tril.mT

    @property
    def precision_matrix(self) -> Tensor:
        """Inverse of the covariance matrix, ``(*batch_shape, D, D)``, dtype of ``mu``.

        It comes from the factor, not from the covariance matrix, and in float32 at least.
        """
        factor = self._scale_tril_in(compute_dtype(self.mu.dtype))
        with keep_full_precision(factor.device.type):
            return torch.cholesky_inverse(factor).to(self.mu.dtype)

    @property
    def variance(self) -> Tensor:
        lower = strictly_lower(self.tril, self.event_shape[0], self._packed)
        return lower.square().sum(-1) + (2.0 * self.log_sigma).exp()

    def expand(self, batch_shape: Sequence[int], _instance: TriangularGaussian | None = None) -> TriangularGaussian:
        """The same Gaussian with a larger batch shape; nothing is copied."""
        new = self._get_checked_instance(TriangularGaussian, _instance)
        matrix = self.tril.shape[-1:] if self._packed else self.tril.shape[-2:]
        new.tril, new._packed = self.tril.expand(*batch_shape, *matrix), self._packed
        self._expand_into(new, batch_shape)
        return new
