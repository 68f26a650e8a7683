"""What the Gaussian posteriors share, and the constraints of their parameters."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution, constraints

from ..precision import compute_dtype

__all__ = ["VECTORS", "Gaussian", "TriangularConstraints"]

_HALF_LOG_2PI_E = 0.5 * (1.0 + math.log(2.0 * math.pi))


class _StrictLowerTriangle(constraints.Constraint):
    """Real below the diagonal; nothing reads the diagonal and what is above it."""

    def __init__(self, packed: bool) -> None:
        self.packed = packed
        self.event_dim = 1 if packed else 2

    def check(self, value: Tensor) -> Tensor:
        read = value if self.packed else value.tril(-1)
        return (read == read).flatten(-self.event_dim).all(-1)


VECTORS: dict[str, constraints.Constraint] = {"mu": constraints.real_vector, "log_sigma": constraints.real_vector}


class TriangularConstraints:
    """``arg_constraints`` of :class:`TriangularGaussian`: a dict on the class, and on its instances.

    An instance knows its layout. The class does not, so it has torch's placeholder for a constraint that depends on
    other values.
    """

    def __init__(self) -> None:
        self.of_class = {**VECTORS, "tril": constraints.dependent(is_discrete=False)}
        self.of_packed = {**VECTORS, "tril": _StrictLowerTriangle(packed=True)}
        self.of_dense = {**VECTORS, "tril": _StrictLowerTriangle(packed=False)}

    def __get__(self, instance: Any, owner: type) -> dict[str, constraints.Constraint]:
        if instance is None:
            return self.of_class
        return self.of_packed if instance._packed else self.of_dense


class Gaussian(Distribution):
    """What both posteriors share.

    Each writes its own methods that sample, and ``log_prob``: torch.compile keeps a limited number of programs for one
    function, and both would compete for them.
    """

    arg_constraints: dict[str, constraints.Constraint]
    support = constraints.real_vector
    has_rsample = True

    mu: Tensor
    log_sigma: Tensor
    impl: str

    def _finish(self, impl: str, validate_args: bool | None) -> None:
        self.impl = impl
        # Validation reads values back from the device: only on demand, unlike torch.distributions.
        super().__init__(self.mu.shape[:-1], self.mu.shape[-1:], validate_args=bool(validate_args))

    def rsample_with_log_prob(
        self,
        sample_shape: Sequence[int] = (),
        *,
        eps: Tensor | None = None,
        generator: torch.Generator | None = None,
        row_offset: int = 0,
    ) -> tuple[Tensor, Tensor]:
        """Draws a reparameterised sample and its log-density in one pass.

        Args:
            sample_shape: shape of the samples drawn for every member of the batch; parameters are not
                repeated.
            eps: the noise, ``(*sample_shape, *batch_shape, D)``, instead of drawing it.
            generator: the torch generator that the noise comes from; the device's default if None.
            row_offset: number of the first row within a joint batch, see
                :func:`fastvae.functional.diag_gaussian_rsample`.

        Returns:
            ``z``, ``(*sample_shape, *batch_shape, D)``, dtype of ``mu``, and ``log_q``,
            ``(*sample_shape, *batch_shape)``, float32 (float64 for float64 parameters).
        """
        raise NotImplementedError

    def rsample_with_kl(
        self,
        sample_shape: Sequence[int] = (),
        *,
        kl: str = "sum",
        eps: Tensor | None = None,
        generator: torch.Generator | None = None,
        row_offset: int = 0,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Draws a reparameterised sample with its log-density and the divergence from N(0, I), in one pass.

        Args:
            sample_shape: as of :meth:`rsample_with_log_prob`, as are ``eps``, ``generator`` and ``row_offset``.
            kl: ``"sum"`` for the divergence of every member of the batch, ``"dimensions"`` for its parts, which
                :func:`fastvae.objectives.free_bits` takes; see
                :func:`fastvae.functional.tril_gaussian_rsample_with_kl`.

        Returns:
            ``z`` and ``log_q``, those of :meth:`rsample_with_log_prob` for the same noise, and the divergence in nats,
            ``batch_shape`` or ``(*batch_shape, D)``, float32 (float64 for float64 parameters).

        Raises:
            ValueError: ``kl`` is neither name.
        """
        raise NotImplementedError

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draws a reparameterised sample, ``(*sample_shape, *batch_shape, D)``."""
        return self.rsample_with_log_prob(sample_shape)[0]

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draws a sample without gradient, ``(*sample_shape, *batch_shape, D)``."""
        with torch.no_grad():
            return self.rsample(sample_shape)

    def _expand_into(self, new: Any, batch_shape: Sequence[int]) -> None:
        """Makes ``new`` this Gaussian with a larger batch shape."""
        new.mu = self.mu.expand(*batch_shape, -1)
        new.log_sigma = self.log_sigma.expand(*batch_shape, -1)
        new._finish(self.impl, False)
        new._validate_args = self._validate_args

    def entropy(self) -> Tensor:
        r"""Differential entropy :math:`\sum_i \log\sigma_i + \frac D2 \log 2\pi e`, nats, ``batch_shape``."""
        log_det = self.log_sigma.sum(-1, dtype=compute_dtype(self.log_sigma.dtype))
        return log_det + _HALF_LOG_2PI_E * self.event_shape[0]

    @property
    def loc(self) -> Tensor:
        """``mu``, under the name that ``torch.distributions`` gives it."""
        return self.mu

    @property
    def mean(self) -> Tensor:
        return self.mu

    @property
    def mode(self) -> Tensor:
        return self.mu
