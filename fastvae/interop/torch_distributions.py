"""Flows as transforms of torch.distributions."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributions import Transform, constraints

from ..nn.flows import MaskedAutoregressiveFlow
from ..nn.sequence import without_inverse
from ._peers import check_flow

__all__ = ["FlowTransform", "to_torch_transform"]


class _Call(NamedTuple):
    """The last call of a transform: its two ends, its log-determinant from x to y, and what all of it depended on."""

    x: Callable[[], Tensor | None]
    y: Callable[[], Tensor | None]
    log_det: Tensor
    state: tuple[Any, ...]


class FlowTransform(Transform):
    """What :func:`to_torch_transform` returns."""

    domain = constraints.real_vector
    codomain = constraints.real_vector
    bijective = True

    def __init__(self, flow: nn.Module, context: Tensor | None = None, *, cache_size: int = 0) -> None:
        super().__init__(cache_size=cache_size)
        self.flow: Any = check_flow(flow)
        self.context = context
        self._last: _Call | None = None

    # The base class returns the values that it remembers even if the parameters have changed since.
    def __call__(self, x: Tensor) -> Tensor:
        last = self._find_last(x=x) if self._cache_size else None
        return self._call(x) if last is None else last

    def _inv_call(self, y: Tensor) -> Tensor:
        last = self._find_last(y=y) if self._cache_size else None
        return self._inverse(y) if last is None else last

    def _call(self, x: Tensor) -> Tensor:
        return self.call_and_ladj(x)[0]

    def _inverse(self, y: Tensor) -> Tensor:
        missing = without_inverse(self.flow)
        if missing is not None:
            raise NotImplementedError(f"the transform has no inverse: {missing} has none")
        x, log_det = self.flow.inverse(y, self.context)
        self._remember(x, y, -log_det)
        return x

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """``y`` and log |det dy/dx|, computed together, without the remembered call."""
        y, log_det = self.flow(x, self.context)
        self._remember(x, y, log_det)
        return y, log_det

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        last = self._last
        if last is not None and last.x() is x and last.y() is y and last.state == self._state(x, y):
            if not self._cache_size:
                self._last = None  # used once: a second backward pass through it would find the graph freed
            return last.log_det
        if isinstance(self.flow, MaskedAutoregressiveFlow):
            return -self.flow.inverse(y, self.context)[1]  # its fast direction
        return self.flow(x, self.context)[1]

    def _remember(self, x: Tensor, y: Tensor, log_det: Tensor) -> None:
        state = self._state(x, y)
        if self._cache_size:
            self._last = _Call(lambda: x, lambda: y, log_det, state)
        else:
            self._last = _Call(weakref.ref(x), weakref.ref(y), log_det, state)

    def _find_last(self, x: Tensor | None = None, y: Tensor | None = None) -> Tensor | None:
        """The other end of the last call, if that call had this end and nothing has changed since."""
        if self._last is None:
            return None
        last_x, last_y = self._last.x(), self._last.y()
        if last_x is None or last_y is None or (x is not last_x if y is None else y is not last_y):
            return None
        return (last_y if y is None else last_x) if self._last.state == self._state(last_x, last_y) else None

    def _state(self, x: Tensor, y: Tensor) -> tuple[Any, ...]:
        tensors = [x, y, *self.flow.parameters(), *self.flow.buffers()]
        if self.context is not None:
            tensors.append(self.context)
        return torch.is_grad_enabled(), self.flow.training, *((id(t), t._version) for t in tensors)

    def with_cache(self, cache_size: int = 1) -> FlowTransform:
        if self._cache_size == cache_size:
            return self
        return type(self)(self.flow, self.context, cache_size=cache_size)

    def forward_shape(self, shape: tuple[int, ...]) -> torch.Size:
        features = getattr(self.flow, "features", None)
        if not shape or features not in (None, shape[-1]):
            raise ValueError(f"the transform takes shape (*, {features or 'D'}), got {tuple(shape)}")
        if self.context is None:
            return torch.Size(shape)
        return torch.Size((*torch.broadcast_shapes(shape[:-1], self.context.shape[:-1]), shape[-1]))

    def inverse_shape(self, shape: tuple[int, ...]) -> torch.Size:
        return self.forward_shape(shape)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_last": None}

    def __repr__(self) -> str:
        return f"{type(self).__name__}({type(self.flow).__name__})"


def to_torch_transform(flow: nn.Module, context: Tensor | None = None, *, cache_size: int = 0) -> FlowTransform:
    r"""A flow as a :class:`torch.distributions.Transform`, from base noise to sample.

    Its call is the flow's ``forward``, its ``inv`` the flow's ``inverse``; the flow's docstring says which is fast.
    Behind a base distribution of event shape (D,) it makes a :class:`torch.distributions.TransformedDistribution`.

    Args:
        flow: a module with ``forward(z, context=None) -> (z, log_det)`` and, for ``inv``, ``inverse`` alike.
        context: the context of every call, ``(*batch, context_features)``.
        cache_size: 1: the last pair of values is kept, so that the density of one's own sample needs no inverse. It is
            forgotten when a parameter, the context or a value is changed in place, or gradients are switched on or off.

    Returns:
        A transform with ``event_dim`` 1; batches of the values and of the context broadcast. For the
        log-determinant of the two values that it has just mapped, which ``log_prob`` needs, it computes nothing again.
        ``call_and_ladj(x)`` gives value and log-determinant together.

    Raises:
        TypeError: ``flow`` is no module.
        NotImplementedError: from ``inv``, of a flow that has no inverse.

    Example:
        >>> from torch.distributions import Independent, Normal, TransformedDistribution
        >>> from fastvae.nn import InverseAutoregressiveFlow
        >>> base = Independent(Normal(torch.zeros(4), torch.ones(4)), 1)
        >>> q = TransformedDistribution(base, [to_torch_transform(InverseAutoregressiveFlow(4, (32,)))])
        >>> q.log_prob(q.rsample((3,))).shape
        torch.Size([3])
    """
    return FlowTransform(flow, context, cache_size=cache_size)
