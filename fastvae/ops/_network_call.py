"""A masked network's tensors on their way through an autograd function and back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor

from ..reference.made import MadeParameters
from ..reference.masked_linear import row_factors
from . import _checks
from .masked_linear import NORM

Tensors = Sequence[Tensor]
OptionalTensors = Sequence[Tensor | None]


class NetworkCall(NamedTuple):
    """What an autograd function is told besides the tensors that may have gradients.

    Those are the weights and then, as far as they exist, context term, biases and row factors: every argument of
    autograd's costs a microsecond, one that is None as well.
    """

    layers: int
    present: tuple[bool, ...]  # context term, biases, row factors
    degrees: Tensors
    fields: list[int]
    normalized: bool

    @property
    def with_biases(self) -> tuple[bool, ...]:
        return self.present[1 : self.layers + 1]

    def unflat(self, tensors: Tensors) -> tuple[Tensor | None, Tensors, OptionalTensors, OptionalTensors]:
        """Context term, weights, biases and row factors."""
        rest = iter(tensors[self.layers :])
        context_term, *optional = [next(rest) if there else None for there in self.present]
        return context_term, tensors[: self.layers], optional[: self.layers], optional[self.layers :]

    def wanted(self, needs: Sequence[bool]) -> tuple[bool, bool]:
        """Of the context term, of the layers: whether ``needs``, one for each tensor, asks for a gradient."""
        if not self.present[0]:
            return False, any(needs)
        return needs[self.layers], any(needs[: self.layers]) or any(needs[self.layers + 1 :])

    def gradients(
        self, needs: Sequence[bool], d_context_term: Tensor | None, d_w: Tensors, d_b: Tensors, d_s: Tensors
    ) -> OptionalTensors:
        """In the order of the tensors, None where not needed. Lists are empty where no layer's gradient is wanted."""
        if not d_w:
            return [d_context_term if need else None for need in needs]
        context = (d_context_term,) if self.present[0] else ()
        ordered = (*d_w, *context, *d_b, *d_s)
        return ordered if all(needs) else [g if need else None for g, need in zip(ordered, needs, strict=True)]


def prepared(
    x: Tensor, context_term: Tensor | None, parameters: MadeParameters, fields: list[int]
) -> tuple[Tensor, NetworkCall, list[Tensor]]:
    """Rows of samples, and the network's tensors with contiguous rows."""
    weights, biases, scales, degrees, normalized = parameters
    assert degrees is not None
    if context_term is not None:
        context_term = context_term.reshape(-1, context_term.shape[-1])
    optional = (context_term, *biases, *scales)
    tensors = [_checks.rows(w, w.shape[1]) for w in weights]
    tensors += [t.contiguous() for t in optional if t is not None]
    call = NetworkCall(len(weights), tuple([t is not None for t in optional]), degrees, fields, normalized)
    return _checks.rows(x, x.shape[-1]), call, tensors


def factors(weights: Tensors, scales: OptionalTensors, call: NetworkCall) -> tuple[OptionalTensors, OptionalTensors]:
    """The rows' factors and, where ``scales`` are gains, the norms that they are divided by."""
    if not call.normalized:
        return scales, [None] * call.layers
    norms = [
        None if gain is None else NORM.on("cpp", w)(w, call.degrees[i], call.degrees[i + 1])
        for i, (w, gain) in enumerate(zip(weights, scales, strict=True))
    ]
    return [
        None if gain is None or norm is None else row_factors(gain, norm)
        for gain, norm in zip(scales, norms, strict=True)
    ], norms


def save_network(
    ctx: Any, call: NetworkCall, saved: Tensor, weights: Tensors, scales: OptionalTensors, norms: OptionalTensors
) -> None:
    has_scales = any(call.present[call.layers + 1 :])
    ctx.save_for_backward(saved, *weights, *((*scales, *norms) if has_scales else ()))
    ctx.call = call


def saved_network(ctx: Any) -> tuple[Tensor, Tensors, OptionalTensors, OptionalTensors]:
    """What ``save_network`` was given: activations, weights, row factors and norms."""
    saved, *rest = ctx.saved_tensors
    count = ctx.call.layers
    nothing = [None] * count
    return saved, rest[:count], rest[count : 2 * count] or nothing, rest[2 * count :] or nothing
