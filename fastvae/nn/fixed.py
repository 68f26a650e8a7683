"""Fixed flows: a permutation of the features, and an affine map of each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from ..precision import compute_dtype
from ._refusals import check_floating

__all__ = ["AffineTransform", "Permutation"]


class _FixedFlow(nn.Module):
    """A flow that takes no context."""

    context_features = 0

    def __init__(self, features: int) -> None:
        super().__init__()
        self.features = features

    def _check(self, z: Tensor, context: Tensor | None) -> None:
        if z.dim() == 0 or z.shape[-1] != self.features:
            raise ValueError(f"z must have shape (*, {self.features}), got {tuple(z.shape)}")
        if context is not None:
            raise ValueError(f"context must be None: {type(self).__name__} takes none")

    def extra_repr(self) -> str:
        return f"features={self.features}"


class Permutation(_FixedFlow):
    r"""A fixed permutation of the features: ``forward`` and ``inverse`` are equally fast.

    .. math::
        z'_i = z_{\pi(i)}, \qquad \log|\det| = 0

    Between autoregressive flows an ``order`` of their networks does the same and moves no memory.

    Args:
        permutation: :math:`\pi`, a permutation of 0, ..., D - 1.

    Shape:
        ``z`` ``(*, D)`` to ``(*, D)``, dtype of ``z``, and ``log_det`` ``(*)``, with ``log_det_map=True`` ``(*, D)``,
        zeros, float32 (float64 for float64 inputs). ``context`` must be None.

    Raises:
        ValueError: ``permutation`` is not one, ``z`` has another width, or there is a context.

    Example:
        >>> z, log_det = Permutation([2, 0, 1])(torch.tensor([10.0, 11.0, 12.0]))
        >>> z.tolist(), log_det.item()
        ([12.0, 10.0, 11.0], 0.0)
    """

    permutation: Tensor
    inverse_permutation: Tensor

    def __init__(self, permutation: Sequence[int] | Tensor, *, device: Any = None) -> None:
        given = permutation.reshape(-1).tolist() if isinstance(permutation, Tensor) else permutation
        places = [int(place) for place in given]
        if not places or sorted(places) != list(range(len(places))):
            raise ValueError(f"permutation must be one of 0, ..., D - 1, got {places}")
        super().__init__(len(places))
        # As numbers, which neither a move to the meta device nor to_empty loses.
        self._given = tuple(places)
        order = torch.tensor(places, device=device)
        self.register_buffer("permutation", order)
        self.register_buffer("inverse_permutation", order.argsort())

    def reset_parameters(self) -> None:
        """Sets the permutation to that of the construction."""
        order = torch.tensor(self._given, device=self.permutation.device)
        self.permutation.copy_(order)
        self.inverse_permutation.copy_(order.argsort())

    def forward(self, z: Tensor, context: Tensor | None = None, log_det_map: bool = False) -> tuple[Tensor, Tensor]:
        """Base noise to sample (fast): the sample and log |det| of the map, zero."""
        return self._select(z, context, self.permutation, log_det_map)

    def inverse(self, z: Tensor, context: Tensor | None = None, log_det_map: bool = False) -> tuple[Tensor, Tensor]:
        """Sample to base noise (fast): the noise and log |det| of the inverse map, zero."""
        return self._select(z, context, self.inverse_permutation, log_det_map)

    def carry(self, shares: Tensor, *, inverse: bool = False) -> Tensor:
        """Shares ``(*, D)`` of a log-density that belong to the features of z, at the places of these features in z'.

        Args:
            shares: a number for each feature.
            inverse: whether they belong to z', and go to the places in z.
        """
        return shares.index_select(-1, self.inverse_permutation if inverse else self.permutation)

    def _select(self, z: Tensor, context: Tensor | None, order: Tensor, log_det_map: bool) -> tuple[Tensor, Tensor]:
        self._check(z, context)
        shape = z.shape if log_det_map else z.shape[:-1]
        return z.index_select(-1, order), z.new_zeros(shape, dtype=compute_dtype(z.dtype))


class AffineTransform(_FixedFlow):
    r"""An affine map of each feature, as z-scores have it: ``forward`` and ``inverse`` are equally fast.

    .. math::
        z'_i = \mathrm{loc}_i + \mathrm{scale}_i z_i, \qquad \log|\det| = \sum_i \log|\mathrm{scale}_i|

    With the mean and the standard deviation of the data, ``forward`` maps standardised values to data.

    Args:
        loc: the shift, ``(D,)``.
        scale: the factors, ``(D,)``; none is zero.
        learnable: whether ``loc`` and ``scale`` are parameters; otherwise they are buffers.

    Shape:
        ``z`` ``(*, D)`` to ``(*, D)``, dtype of ``z``, and ``log_det`` ``(*)``, with ``log_det_map=True`` every
        feature's share ``(*, D)``, float32 (float64 for float64 inputs). ``context`` must be None.

    Raises:
        TypeError: ``loc`` or ``scale`` is no floating-point tensor.
        ValueError: shapes do not fit, a factor is zero, or there is a context.

    Example:
        >>> flow = AffineTransform(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0]))
        >>> x, log_det = flow(torch.ones(5, 2))
        >>> x[0].tolist(), log_det.shape, torch.equal(flow.inverse(x)[0], torch.ones(5, 2))
        ([4.0, 6.0], torch.Size([5]), True)
    """

    loc: Tensor
    scale: Tensor

    def __init__(self, loc: Tensor, scale: Tensor, *, learnable: bool = False) -> None:
        for name, t in (("loc", loc), ("scale", scale)):
            if not isinstance(t, Tensor) or not t.is_floating_point():
                raise TypeError(
                    f"{name} must be a floating-point tensor, got "
                    f"{t.dtype if isinstance(t, Tensor) else type(t).__name__}"
                )
        if loc.dim() != 1 or loc.shape != scale.shape:
            raise ValueError(
                f"loc and scale must have shape (D,), got loc {tuple(loc.shape)} and scale {tuple(scale.shape)}"
            )
        known = not (loc.is_meta or scale.is_meta or isinstance(loc, FakeTensor) or isinstance(scale, FakeTensor))
        if known and bool((scale == 0).any()):
            raise ValueError(f"scale must not be zero, got {scale.tolist()}")
        super().__init__(len(loc))
        # As numbers, which neither a move to the meta device nor to_empty loses.
        self._given = (loc.tolist(), scale.tolist()) if known else None
        for name, t in (("loc", loc), ("scale", scale)):
            own = t.detach().clone()
            if learnable:
                self.register_parameter(name, nn.Parameter(own))
            else:
                self.register_buffer(name, own)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Sets ``loc`` and ``scale`` to their values at construction.

        Raises:
            RuntimeError: the construction was on the meta device, where they had no numbers.
        """
        if self._given is None:
            raise RuntimeError("loc and scale have no numbers to start from: they were made on the meta device")
        for own, given in zip((self.loc, self.scale), self._given, strict=True):
            own.copy_(torch.tensor(given, dtype=torch.float64))

    def forward(self, z: Tensor, context: Tensor | None = None, log_det_map: bool = False) -> tuple[Tensor, Tensor]:
        """Base noise to sample (fast): the sample and log |det| of the map."""
        x, loc, scale = self._prepare(z, context)
        return torch.addcmul(loc, scale, x).to(z.dtype), self._log_det(x, scale, log_det_map)

    def inverse(self, z: Tensor, context: Tensor | None = None, log_det_map: bool = False) -> tuple[Tensor, Tensor]:
        """Sample to base noise (fast): the noise and log |det| of the inverse map."""
        x, loc, scale = self._prepare(z, context)
        return ((x - loc) / scale).to(z.dtype), -self._log_det(x, scale, log_det_map)

    def _prepare(self, z: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        self._check(z, context)
        check_floating("z", z)
        dtype = compute_dtype(z.dtype)
        return z.to(dtype), self.loc.to(dtype), self.scale.to(dtype)

    @staticmethod
    def _log_det(x: Tensor, scale: Tensor, log_det_map: bool) -> Tensor:
        log_scale = scale.abs().log()
        return log_scale.expand(x.shape) if log_det_map else log_scale.sum().expand(x.shape[:-1])
