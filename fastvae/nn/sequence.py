"""Chains of flows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..precision import compute_dtype

__all__ = ["FlowSequence"]


class FlowSequence(nn.Sequential):
    r"""A chain of flows: ``forward`` maps base noise to sample through all of them, first to last.

    Which direction is fast depends on the flows: ``forward`` and ``inverse`` are as fast as theirs. Indexing, slicing,
    iteration, ``append`` and ``len`` are those of :class:`torch.nn.Sequential`.

    Args:
        flows: modules with ``forward(z, context=None) -> (z, log_det)`` and, for ``inverse``, the same under that name.
            The context goes to each one but those with ``context_features`` 0. For shares of the log-determinant
            they also take ``log_det_map``.

    Shape:
        ``z`` ``(*, D)`` and ``context`` to ``(*, D)`` and ``log_det`` ``(*)``, the sum of all. With
        ``log_det_map=True`` it is ``(*, D)``: every feature's share, at its place in the output. A share of an earlier
        flow moves with its feature through a :class:`Permutation`, and keeps its place in flows that mix features.

    Raises:
        ValueError: a context that no flow takes.
        NotImplementedError: ``inverse`` of a chain with a flow that has none; it is named.

    Example:
        >>> from fastvae.nn import HouseholderFlow, InverseAutoregressiveFlow
        >>> chain = FlowSequence(InverseAutoregressiveFlow(4, (32,)), HouseholderFlow(4, 2))
        >>> z, log_det = chain(torch.randn(6, 4))
        >>> z.shape, log_det.shape, type(chain[1]).__name__
        (torch.Size([6, 4]), torch.Size([6]), 'HouseholderFlow')
    """

    def forward(self, z: Tensor, context: Tensor | None = None, log_det_map: bool = False) -> tuple[Tensor, Tensor]:
        """Base noise to sample: the sample and log |det| of the map."""
        self._check_context(context)
        if log_det_map:
            return self._map_shares(z, context)
        log_det = _no_log_det(z)
        for flow in self:
            z, term = flow(z, context if takes_context(flow) else None)
            log_det = log_det + term
        return z, log_det

    def inverse(self, z: Tensor, context: Tensor | None = None, log_det_map: bool = False) -> tuple[Tensor, Tensor]:
        """Sample to base noise: the noise and log |det| of the inverse map."""
        self._check_context(context)
        missing = without_inverse(self)
        if missing is not None:
            raise NotImplementedError(f"the sequence has no inverse: {missing} has none")
        if log_det_map:
            return self._map_shares(z, context, inverse=True)
        log_det = _no_log_det(z)
        flows: list[Any] = list(self)
        for flow in reversed(flows):
            z, term = flow.inverse(z, context if takes_context(flow) else None)
            log_det = log_det + term
        return z, log_det

    def carry(self, shares: Tensor, *, inverse: bool = False) -> Tensor:
        """Shares ``(*, D)`` of a log-density of the input's features, at the places where these features go.

        Only flows that move features, such as :class:`Permutation`, move shares. Their sum stays what it is.

        Args:
            shares: a number for each feature.
            inverse: whether the way is that of :meth:`inverse`.
        """
        flows: list[Any] = list(self)
        for flow in reversed(flows) if inverse else flows:
            shares = carry_shares(flow, shares, inverse=inverse)
        return shares

    def _map_shares(self, z: Tensor, context: Tensor | None, *, inverse: bool = False) -> tuple[Tensor, Tensor]:
        """The map with every feature's share of its log-determinant, at that feature's place in the output."""
        flows: list[Any] = list(self)
        shares = torch.zeros(z.shape, dtype=compute_dtype(z.dtype), device=z.device)
        for flow in reversed(flows) if inverse else flows:
            run = flow.inverse if inverse else flow
            z, term = run(z, context if takes_context(flow) else None, log_det_map=True)
            shares = carry_shares(flow, shares, inverse=inverse) + term
        return z, shares

    def _check_context(self, context: Tensor | None) -> None:
        if context is not None and not takes_context(self):
            raise ValueError("context must be None: none of the flows takes one")


def carry_shares(flow: Any, shares: Tensor, *, inverse: bool = False) -> Tensor:
    """``shares`` of the features of a flow's input, where these features are in its output."""
    carry = getattr(flow, "carry", None)
    return shares if carry is None else carry(shares, inverse=inverse)


def takes_context(flow: Any) -> bool:
    """Whether ``flow`` takes a context. It does unless it says otherwise."""
    if isinstance(flow, FlowSequence):
        return any(takes_context(part) for part in flow)
    return getattr(flow, "context_features", None) != 0


def without_inverse(flow: Any) -> str | None:
    """The part of ``flow`` without an inverse, such as ``"flow 1 (PlanarFlow)"``; None if all have one."""
    if not isinstance(flow, FlowSequence):
        return None if hasattr(flow, "inverse") else type(flow).__name__
    for index, part in enumerate(flow):
        missing = without_inverse(part)
        if missing is not None:
            return f"flow {index} ({missing})"
    return None


def _no_log_det(z: Tensor) -> Tensor:
    return torch.zeros(z.shape[:-1], dtype=compute_dtype(z.dtype), device=z.device)
