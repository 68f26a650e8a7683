"""Layers that map features to a Gaussian posterior."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from ..distributions import DiagonalGaussian, TriangularGaussian
from ..ops._checks import check_log_sigma_bounds
from ..ops.linear_tril_gaussian import linear_tril_gaussian_rsample_with_kl
from ..reference.bounds import bound
from ..structure.integers import integers
from ._hooks import has_hooks, has_hooks_on_all
from ._refusals import check_linear
from ._start import Start, start_as, start_of

__all__ = ["DiagonalGaussianHead", "TriangularGaussianHead", "bound_log_sigma"]


def bound_log_sigma(log_sigma: Tensor, bounds: tuple[float, float] | None = (-7.0, 7.0)) -> Tensor:
    r"""Clamps a predicted log-sigma, without cutting off the gradient that leads back.

    Between the bounds it is the identity. Beyond a bound the value is the bound. There a gradient passes unchanged if
    its descent step leads back, and is zero if it leads further away. A unit that once overshot would have no gradient
    behind a plain clamp, and one that underflows behind a sigmoid or tanh.

    Args:
        log_sigma: natural logarithm of a standard deviation, any shape, floating point.
        bounds: the smallest and the largest value, nats; None for no bound.

    Returns:
        The bounded log-sigma, of the shape and dtype of ``log_sigma``. NaN stays NaN.

    Raises:
        ValueError: ``bounds`` is not an increasing pair of numbers.

    Note:
        The descent is on the quantity that ``backward`` is called for. Under forward-mode differentiation it
        is not available. ``torch.jit.trace`` records it, but torch can save the traced module only if tracing
        ran under ``torch.no_grad()``.

    Reference:
        The same rule serves as a lower bound in *Variational image compression with a scale hyperprior*
        (Ballé, Minnen, Singh, Hwang, Johnston, 2018).

    Example:
        >>> s = torch.tensor([-9.0, 0.5, 9.0], requires_grad=True)
        >>> bounded = bound_log_sigma(s)
        >>> bounded.sum().backward()
        >>> bounded.tolist(), s.grad.tolist()
        ([-7.0, 0.5, 7.0], [0.0, 1.0, 1.0])
    """
    if bounds is None:
        return log_sigma
    return bound(log_sigma, *check_log_sigma_bounds(bounds))


class _Parameters(nn.Linear):
    """A linear layer that knows how its owner wants it to start."""

    def reset_parameters(self) -> None:
        super().reset_parameters()
        start_of(self).apply(self)

    def _get_name(self) -> str:
        return "Linear"


class _GaussianHead(nn.Module):
    """One linear layer for all parameters of a posterior: ``mu``, ``log_sigma`` and what a subclass adds."""

    _kind_of_layer = nn.Linear

    def __init__(
        self,
        in_features: int,
        latent_features: int,
        extra_parameters: int,
        log_sigma_bounds: tuple[float, float] | None,
        impl: str,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__()
        in_features, latent_features = integers(1, in_features=in_features, latent_features=latent_features)
        extra_parameters = int(extra_parameters)
        self.in_features = in_features
        self.latent_features = latent_features
        self.log_sigma_bounds = None if log_sigma_bounds is None else check_log_sigma_bounds(log_sigma_bounds)
        self.impl = impl
        self._sizes = [latent_features, latent_features, extra_parameters]
        self.linear = self._kind_of_layer(in_features, sum(self._sizes), device=device, dtype=dtype)

    def reset_parameters(self) -> None:
        """Draws the initial weights again."""
        self.linear.reset_parameters()

    def _check(self, features: Tensor) -> None:
        if not isinstance(features, Tensor):
            raise TypeError(f"features must be a tensor, got {type(features).__name__}")
        if features.dim() == 0 or features.shape[-1] != self.in_features:
            raise ValueError(f"features must have shape (*, {self.in_features}), got {tuple(features.shape)}")
        check_linear("features", features, self.linear)

    def _split(self, features: Tensor) -> list[Tensor]:
        self._check(features)
        mu, log_sigma, extra = self.linear(features).split(self._sizes, -1)
        return [mu, bound_log_sigma(log_sigma, self.log_sigma_bounds), extra]

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, latent_features={self.latent_features}, "
            f"log_sigma_bounds={self.log_sigma_bounds}, impl={self.impl!r}"
        )


class DiagonalGaussianHead(_GaussianHead):
    r"""Maps features to a diagonal Gaussian posterior by one linear layer.

    .. math::
        (\mu, \log\sigma) = W h + b, \qquad q(z \mid x) = \prod_i N(z_i;\ \mu_i, \sigma_i^2)

    Args:
        in_features: the size of the features h.
        latent_features: the dimension D of z.
        log_sigma_bounds: smallest and largest log-sigma, nats, see :func:`bound_log_sigma`; None for no
            bound.
        impl: implementation of the posterior's ops, see :mod:`fastvae.backend`.
        device: device of the weights.
        dtype: dtype of the weights.

    Shape:
        features ``(*, in_features)`` to a :class:`~fastvae.distributions.DiagonalGaussian` of batch shape
        ``(*)`` and event shape ``(D,)``.

    Raises:
        ValueError: a size is below 1, the bounds are not increasing, or features of another size come in.

    Note:
        ``linear.weight`` has the rows of mu, then those of log-sigma. ``mu`` is a view of the layer's output.

    Reference:
        *Auto-Encoding Variational Bayes* (Kingma, Welling, 2013).

    Example:
        >>> posterior = DiagonalGaussianHead(16, 8)(torch.randn(4, 16))
        >>> z, log_q = posterior.rsample_with_log_prob()
        >>> z.shape, log_q.shape
        (torch.Size([4, 8]), torch.Size([4]))
    """

    def __init__(
        self,
        in_features: int,
        latent_features: int,
        *,
        log_sigma_bounds: tuple[float, float] | None = (-7.0, 7.0),
        impl: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_features, latent_features, 0, log_sigma_bounds, impl, device, dtype)

    def posterior_parameters(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """``mu`` and the bounded ``log_sigma``, ``(*, D)``."""
        mu, log_sigma, _ = self._split(features)
        return mu, log_sigma

    def forward(self, features: Tensor) -> DiagonalGaussian:
        return DiagonalGaussian(*self.posterior_parameters(features), impl=self.impl)


class TriangularGaussianHead(_GaussianHead):
    r"""Maps features to a Gaussian posterior of full covariance by one linear layer.

    .. math::
        (\mu, \log\sigma, t) = W h + b, \qquad q(z \mid x) = N(z;\ \mu, L L^\top), \qquad
        L = \operatorname{strictly\,lower}(t) + \operatorname{diag}(\sigma)

    Args:
        in_features: the size of the features h.
        latent_features: the dimension D of z.
        log_sigma_bounds: smallest and largest log-sigma, nats, see :func:`bound_log_sigma`; None for no
            bound.
        tril_init_scale: factor on the initial weights and biases that predict the entries below the diagonal.
            With 0, the default, training starts at the diagonal posterior; these weights have a gradient all
            the same.
        impl: implementation of the posterior's ops, see :mod:`fastvae.backend`.
        device: device of the weights.
        dtype: dtype of the weights.

    Shape:
        features ``(*, in_features)`` to a :class:`~fastvae.distributions.TriangularGaussian` of batch shape
        ``(*)`` and event shape ``(D,)``.

    Raises:
        ValueError: a size is below 1, the bounds are not increasing, ``tril_init_scale`` is negative or not
            finite, or features of another size come in.

    Note:
        ``linear.weight`` has the rows of mu, of log-sigma, then of the D(D-1)/2 entries below the diagonal,
        packed row by row. ``mu`` and ``tril`` are views of the layer's output: no D × D matrix is built.

    Reference:
        *An Introduction to Variational Autoencoders* (Kingma, Welling, 2019), section 2.5.

    Example:
        >>> posterior = TriangularGaussianHead(16, 8)(torch.randn(4, 16))
        >>> z, log_q = posterior.rsample_with_log_prob()
        >>> z.shape, log_q.shape, posterior.tril.shape
        (torch.Size([4, 8]), torch.Size([4]), torch.Size([4, 28]))
    """

    _kind_of_layer = _Parameters

    def __init__(
        self,
        in_features: int,
        latent_features: int,
        *,
        log_sigma_bounds: tuple[float, float] | None = (-7.0, 7.0),
        tril_init_scale: float = 0.0,
        impl: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if not 0.0 <= tril_init_scale < math.inf:
            raise ValueError(f"tril_init_scale must be >= 0 and finite, got {tril_init_scale}")
        packed = latent_features * (latent_features - 1) // 2
        super().__init__(in_features, latent_features, packed, log_sigma_bounds, impl, device, dtype)
        self.tril_init_scale = tril_init_scale
        scale = tril_init_scale
        start_as(self.linear, Start(weight_scale=scale, bias_scale=scale, first=2 * self.latent_features))

    def posterior_parameters(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``mu`` and the bounded ``log_sigma``, ``(*, D)``, and the packed ``tril``, ``(*, D(D-1)/2)``."""
        mu, log_sigma, tril = self._split(features)
        return mu, log_sigma, tril

    def forward(self, features: Tensor) -> TriangularGaussian:
        return TriangularGaussian(*self.posterior_parameters(features), impl=self.impl)

    def rsample_with_kl(
        self, features: Tensor, *, tril_scale: float = 1.0, kl: str = "sum", **noise: Any
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One sample of each posterior with its log-density and divergence from N(0, I).

        The result is that of ``head(features).rsample_with_kl()`` but for rounding. The entries below the diagonal,
        the largest output of the layer, are used as they are made.

        Args:
            features: ``(*, in_features)``.
            tril_scale: factor on the entries below the diagonal.
            kl: ``"sum"`` or ``"dimensions"``, see :func:`fastvae.functional.tril_gaussian_rsample_with_kl`.
            noise: ``eps``, ``generator`` or ``row_offset`` of
                :func:`fastvae.functional.linear_tril_gaussian_rsample_with_kl`.

        Returns:
            ``z``, ``(*, D)``; ``log_q``, ``(*)``; and the divergence, ``(*)`` or ``(*, D)``.
        """
        linear = self.linear
        if not self._is_plain():
            mu, log_sigma, tril = self.posterior_parameters(features)
            return TriangularGaussian(mu, log_sigma, tril_scale * tril, impl=self.impl).rsample_with_kl(kl=kl, **noise)
        self._check(features)
        return linear_tril_gaussian_rsample_with_kl(
            features,
            linear.weight,
            linear.bias,
            tril_scale=tril_scale,
            log_sigma_bounds=self.log_sigma_bounds,
            kl=kl,
            impl=self.impl,
            **noise,
        )

    def _is_plain(self) -> bool:
        """Whether nobody changes what the layer computes or what the class makes of it."""
        linear, own = self.linear, type(self)
        return (
            type(linear) is _Parameters
            and "forward" not in linear.__dict__
            and own.posterior_parameters is TriangularGaussianHead.posterior_parameters
            and own._split is _GaussianHead._split
            and not (has_hooks(linear) or has_hooks_on_all())
        )

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, tril_init_scale={self.tril_init_scale}"
