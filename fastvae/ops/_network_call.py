"""A masked network's tensors on their way through an autograd function and back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import backend
from ..backend import Route
from ..reference.made import MadeParameters
from ..reference.masked_linear import row_factors
from ..structure import MadeStructure
from . import _layout
from ._library import Differentiable, extension, keep_none
from .masked_linear import NORM

Tensors = Sequence[Tensor]
OptionalTensors = Sequence[Tensor | None]
_CPU = torch.device("cpu")


class NetworkCall(NamedTuple):
    """The arguments of an autograd function besides the tensors that may have gradients.

    Those tensors are the weights and then, as far as they exist, context term, biases and row factors: every argument
    of an autograd function costs a microsecond, also None.
    """

    layers: int
    present: tuple[bool, ...]  # context term, biases, row factors
    degrees: Tensors
    fields: list[int]
    normalized: bool
    route: Route
    log_det_map: bool
    # The reference's arguments, for derivatives beyond the kernels'; None under a compiler, which takes neither.
    structure: MadeStructure | None
    kind: str | None
    # The structure as ops take it.
    description: str

    @property
    def tensor_count(self) -> int:
        """How many tensors the call has."""
        return self.layers + sum(self.present)

    @property
    def derived_count(self) -> int:
        """How many tensors :meth:`with_factors` gives the backward pass behind the weights."""
        return (2 if self.normalized else 1) * sum(self.present[self.layers + 1 :])

    def unflat(self, tensors: Tensors) -> tuple[Tensor | None, Tensors, OptionalTensors, OptionalTensors]:
        """Context term, weights, biases and row factors."""
        return split_layers(tensors, self.present)

    def with_factors(self, tensors: Tensors) -> tuple[Tensors, Tensors]:
        """The tensors with gains turned into factors, and those that the backward pass needs.

        The latter are the weights, the factors and, where these come from gains, the norms that divide the gains.
        """
        count = self.layers
        weights, has_scale = tensors[:count], self.present[count + 1 :]
        if True not in has_scale:
            return tensors, weights
        scaled = [i for i, there in enumerate(has_scale) if there]
        others, scales = tensors[: -len(scaled)], tensors[-len(scaled) :]
        if not self.normalized:
            return tensors, (*weights, *scales)
        norms = [NORM.on(self.route)(weights[i], self.degrees[i], self.degrees[i + 1]) for i in scaled]
        factors = [row_factors(gain, norm) for gain, norm in zip(scales, norms, strict=True)]
        return (*others, *factors), (*weights, *factors, *norms)

    def keep_all(self, used: Tensors, kept: Tensors, point: Tensor) -> Tensors:
        """What the backward pass needs on a GPU, of what :meth:`with_factors` returned and the network's input.

        These are the tensors with gains turned into factors, the norms that divide gains, and the input.
        """
        return (*used, *kept[self.layers + sum(self.present[self.layers + 1 :]) :], point)


def split_layers(
    tensors: Tensors, present: Sequence[bool]
) -> tuple[Tensor | None, Tensors, OptionalTensors, OptionalTensors]:
    """Context term, weights, biases and row factors out of the tensors of a call, of which some are ``present``."""
    layers = len(present) // 2
    rest = iter(tensors[layers:])
    context_term, *optional = [next(rest) if there else None for there in present]
    return context_term, tensors[:layers], optional[:layers], optional[layers:]


def recognise(
    x: Tensor,
    context_term: Tensor | None,
    parameters: MadeParameters,
    structure: MadeStructure,
    kind: str | None,
    fields: list[int],
    log_det_map: bool,
    impl: str,
) -> tuple[NetworkCall, Tensors] | None:
    """The call of the C++ kernels where all tensors are as these take them; None where checks are needed.

    ``check_network`` and ``prepare`` give the same call. For a small network they take as long as the kernels.
    """
    if not backend.runs_cpp(impl):
        return None
    weights, biases, scales, degrees, normalized = parameters
    if degrees is None:
        degrees = structure.degree_tensors(_CPU)
    found = extension().network_tensors(x, context_term, weights, biases, scales, degrees, fields)
    if found is None:
        return None
    tensors, present = found
    own = structure, kind, structure.description
    return NetworkCall(len(weights), present, degrees, fields, normalized, backend.CPP, log_det_map, *own), tensors


def prepare(
    x: Tensor,
    context_term: Tensor | None,
    parameters: MadeParameters,
    structure: MadeStructure,
    kind: str | None,
    fields: list[int],
    log_det_map: bool,
    route: Route,
) -> tuple[Tensor, NetworkCall, Tensors]:
    """Rows of samples, and the network's tensors with contiguous rows."""
    weights, biases, scales, degrees, normalized = parameters
    assert degrees is not None
    if context_term is not None:
        context_term = context_term.reshape(-1, context_term.shape[-1])
    optional = (context_term, *biases, *scales)
    tensors = [_layout.to_rows(w, w.shape[1]) for w in weights]
    tensors += [t.contiguous() for t in optional if t is not None]
    present = tuple([t is not None for t in optional])
    of_reference, own_kind = (None, None) if torch.compiler.is_compiling() else (structure, kind)
    own = of_reference, own_kind, structure.description
    call = NetworkCall(len(weights), present, degrees, fields, normalized, route, log_det_map, *own)
    return _layout.to_rows(x, x.shape[-1]), call, tensors


def keep_needed(gradients: OptionalTensors, needs: Sequence[bool]) -> OptionalTensors:
    """The gradients that are needed; None for the others."""
    return gradients if all(needs) else [g if need else None for g, need in zip(gradients, needs, strict=True)]


def save_network(ctx: Any, call: NetworkCall, saved: Tensor | None, kept: Tensors, x: Tensor, tensors: Tensors) -> None:
    """Keeps what the kernels' backward pass reads, and the further inputs that the reference reads."""
    ctx.save_for_backward(saved, *kept, x, *tensors[call.layers :])
    ctx.call, ctx.route, ctx.kept = call, call.route, len(kept)
    keep_none(ctx)


def read_saved(ctx: Any) -> tuple[Tensor, Tensors]:
    """What the kernels' backward pass reads."""
    saved, *others = ctx.saved_tensors
    return saved, others[: ctx.kept]


def rebuild_network(ctx: Any, reference: Callable[..., Any]) -> Differentiable:
    """``reference`` as a function of the tensors of the call that ``ctx`` keeps."""
    call, (_, *others) = ctx.call, ctx.saved_tensors
    x, tensors = others[ctx.kept], (*others[: call.layers], *others[ctx.kept + 1 :])

    def run(_: None, x: Tensor, *tensors: Tensor) -> Any:
        return call_reference(reference, call, x, tensors)

    return run, (None, x, *tensors)


def call_reference(reference: Callable[..., Any], call: NetworkCall, x: Tensor, tensors: Tensors) -> Any:
    """``reference`` on the input and the tensors of a call."""
    context_term, weights, biases, scales = call.unflat(tensors)
    parameters = MadeParameters(weights, biases, scales, call.degrees, call.normalized)
    return reference(x, context_term, parameters, call.structure, call.kind, call.log_det_map)
