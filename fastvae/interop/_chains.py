"""Chains of another library's transforms as flows: steps are joined, permutations become part of their networks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..nn.fixed import AffineTransform, Permutation
from ..nn.flows import InverseAutoregressiveFlow, MaskedAutoregressiveFlow
from ..nn.made import MADE
from ..nn.sequence import FlowSequence
from ._networks import flow_of

__all__ = [
    "Affine",
    "ConvertedFlow",
    "Part",
    "Reordering",
    "Step",
    "cannot_express",
    "chain_of",
    "inside",
    "name_layer",
]

ConvertedFlow = InverseAutoregressiveFlow | MaskedAutoregressiveFlow | Permutation | AffineTransform | FlowSequence


class Step(NamedTuple):
    """An autoregressive step; ``inverted``: base noise to sample is its inverse, as in a masked autoregressive flow."""

    network: MADE
    kind: str
    inverted: bool
    training: bool


class Reordering(NamedTuple):
    """Feature i of the result is feature ``permutation[i]``."""

    permutation: Tensor

    def inverse(self) -> Reordering:
        return Reordering(self.permutation.argsort())


class Affine(NamedTuple):
    """loc + scale z, with one element for all features or one for each."""

    loc: Tensor
    scale: Tensor
    learnable: bool

    def inverse(self) -> Affine:
        return Affine(-self.loc / self.scale, 1.0 / self.scale, self.learnable)

    @classmethod
    def of(cls, loc: Any, scale: Any) -> Affine:
        """An affine map of tensors or numbers; it is learnable if one is a parameter."""
        learnable = isinstance(loc, nn.Parameter) or isinstance(scale, nn.Parameter)
        like = next((t for t in (scale, loc) if isinstance(t, Tensor)), torch.empty(0))
        loc, scale = (torch.as_tensor(t, dtype=like.dtype, device=like.device).detach() for t in (loc, scale))
        loc, scale = torch.broadcast_tensors(loc, scale)
        return cls(loc, scale, learnable)


Part = Step | Reordering | Affine


def chain_of(parts: Sequence[Part]) -> ConvertedFlow:
    """A flow of ``parts``, in the order in which base noise passes them.

    Consecutive steps are one flow. Features keep the numbers that they have in the noise: where the other library
    permutes them, the inputs and outputs of the following networks are renumbered. A :class:`Permutation` at the end
    does the rest.

    Raises:
        ValueError: the parts differ in the number of features.
    """
    features = _features_of(parts)
    places = list(range(features))
    flows: list[nn.Module] = []
    steps: list[Step] = []
    device = None

    def close() -> None:
        if steps:
            first = steps[0]
            networks = [step.network for step in (reversed(steps) if first.inverted else steps)]
            flow_class = MaskedAutoregressiveFlow if first.inverted else InverseAutoregressiveFlow
            flows.append(flow_of(flow_class, networks, first.kind, first.training))  # type: ignore[type-var]
            steps.clear()

    for part in parts:
        if isinstance(part, Reordering):
            places = [places[i] for i in part.permutation.tolist()]
            device = part.permutation.device
        elif isinstance(part, Affine):
            close()
            back = torch.tensor(places, device=part.loc.device).argsort()
            loc, scale = (t.reshape(-1).expand(features)[back] for t in (part.loc, part.scale))
            flows.append(AffineTransform(loc, scale, learnable=part.learnable))
        else:
            step = part._replace(network=_renumber(part.network, places))
            if steps and _joint(steps[0]) != _joint(step):
                close()
            steps.append(step)
    close()
    if places != sorted(places):
        flows.append(Permutation(places, device=device))
    if len(flows) == 1:
        return flows[0]  # type: ignore[return-value]
    return FlowSequence(*flows).train(all(part.training for part in parts if isinstance(part, Step)))


def _joint(step: Step) -> tuple[Any, ...]:
    """The properties that all steps of one flow share."""
    return step.kind, step.inverted, step.training, step.network.context_features


def _features_of(parts: Sequence[Part]) -> int:
    sizes = set()
    for part in parts:
        if isinstance(part, Step):
            sizes.add(part.network.features)
        elif isinstance(part, Reordering):
            sizes.add(len(part.permutation))
        elif part.loc.numel() > 1:
            sizes.add(part.loc.numel())
    if len(sizes) > 1:
        raise ValueError(f"all transforms must have the same number of features, got {sorted(sizes)}")
    return sizes.pop() if sizes else 1


@torch.no_grad()
def _renumber(network: MADE, places: Sequence[int]) -> MADE:
    """``network`` with its feature i renamed ``places[i]``, and the same hidden units."""
    if list(places) == sorted(places):
        return network
    structure, layers = network.structure, network.masked_layers()
    back = sorted(range(len(places)), key=lambda i: places[i])
    like = layers[0].weight
    renumbered = MADE(
        structure.features,
        [len(degrees) for degrees in structure.hidden_degrees],
        params_per_feature=structure.params_per_feature,
        context_features=network.context_features,
        order=[structure.order[i] for i in back],
        hidden_degrees=structure.hidden_degrees,
        activation=structure.activation,
        residual=structure.residual,
        device=like.device,
        dtype=like.dtype,
    )
    if network.context_layer is not None:
        renumbered.add_module("context_layer", network.context_layer)
    columns = torch.tensor(back, device=like.device)
    count = structure.params_per_feature
    rows = torch.cat([columns + parameter * structure.features for parameter in range(count)])
    for index, (own, layer) in enumerate(zip(renumbered.masked_layers(), layers, strict=True)):
        weight: Tensor = layer.weight
        bias: Tensor = layer.bias
        if index == 0:
            weight = weight[:, columns]
        if index == len(layers) - 1:
            weight, bias = weight[rows], bias[rows]
        own.weight.copy_(weight)
        own.bias.copy_(bias)
    return renumbered


def inside(path: str, index: int) -> str:
    """The path of a transform in the composition at ``path``: ``"2"``, or ``"2.0"`` deeper down."""
    return f"{path}.{index}" if path else str(index)


@contextmanager
def name_layer(path: str) -> Iterator[None]:
    """Puts the place of a part of a composition in front of its errors."""
    try:
        yield
    except (TypeError, ValueError) as error:
        if not path:
            raise
        raise type(error)(f"transform {path}: {error}") from None


def cannot_express(transform: Any, path: str, known: str) -> Exception:
    """The error about a transform, or about a part of a composition, of another type than ``known``."""
    name = type(transform).__name__
    if not path:
        return TypeError(f"transform must be {known}, got {name}")
    return ValueError(f"transform {path} ({name}) cannot be expressed, only {known}")
