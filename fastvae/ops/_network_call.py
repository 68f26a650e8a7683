"""A masked network's tensors on their way through an autograd function and back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor

from .. import backend
from ..reference.made import MadeParameters
from ..reference.masked_linear import row_factors
from ..structure import MadeStructure
from . import _checks
from ._library import extension
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

    def unflat(self, tensors: Tensors) -> tuple[Tensor | None, Tensors, OptionalTensors, OptionalTensors]:
        """Context term, weights, biases and row factors."""
        rest = iter(tensors[self.layers :])
        context_term, *optional = [next(rest) if there else None for there in self.present]
        return context_term, tensors[: self.layers], optional[: self.layers], optional[self.layers :]

    def with_factors(self, tensors: Tensors) -> tuple[Tensors, Tensors]:
        """The tensors with gains turned into factors, and what the backward pass needs of them.

        That is the weights, then the factors and, where they come from gains, the norms that those are divided by.
        """
        count = self.layers
        weights = tensors[:count]
        scaled = [i for i, there in enumerate(self.present[count + 1 :]) if there]
        if not scaled:
            return tensors, weights
        others, scales = tensors[: -len(scaled)], tensors[-len(scaled) :]
        if not self.normalized:
            return tensors, (*weights, *scales)
        norms = [NORM.on("cpp", weights[i])(weights[i], self.degrees[i], self.degrees[i + 1]) for i in scaled]
        factors = [row_factors(gain, norm) for gain, norm in zip(scales, norms, strict=True)]
        return (*others, *factors), (*weights, *factors, *norms)


def ready(
    x: Tensor,
    context_term: Tensor | None,
    parameters: MadeParameters,
    structure: MadeStructure,
    fields: list[int],
    impl: str,
) -> tuple[NetworkCall, Tensors] | None:
    """The C++ kernels' call where all is as they take it, recognised at once; None where there is more to be checked.

    ``check_network`` and ``prepared`` would come to the same, but for a small network they take as long as the kernels.
    """
    if impl not in ("auto", "cpp") or not backend.runs_plainly():
        return None
    weights, biases, scales, degrees, normalized = parameters
    if degrees is None:
        degrees = structure.degree_tensors("cpu")
    found = extension().network_tensors(x, context_term, weights, biases, scales, degrees, fields)
    if found is None:
        return None
    tensors, present = found
    return NetworkCall(len(weights), present, degrees, fields, normalized), tensors


def prepared(
    x: Tensor, context_term: Tensor | None, parameters: MadeParameters, fields: list[int]
) -> tuple[Tensor, NetworkCall, Tensors]:
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


def only_needed(gradients: OptionalTensors, needs: Sequence[bool]) -> OptionalTensors:
    """The tensors' gradients, None for those that nobody needs."""
    return gradients if all(needs) else [g if need else None for g, need in zip(gradients, needs, strict=True)]


def save_network(ctx: Any, call: NetworkCall, saved: Tensor, kept: Tensors) -> None:
    ctx.save_for_backward(saved, *kept)
    ctx.call = call
