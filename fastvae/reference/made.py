"""Masked autoregressive network, and the affine flow step on top of it, in plain PyTorch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from ..structure import MadeStructure
from .affine_flow import affine_flow
from .masked_linear import ACTIVATIONS, masked_linear, masked_norm, row_factors


class MadeParameters(NamedTuple):
    """The parameters of all layers, the last one included.

    Each layer has weights ``(out, in)``, biases ``(out,)`` and factors ``(out,)`` of the weight's rows. With
    ``normalized`` the factors are gains, to be divided by the norms of the rows. ``degrees``, if given, are those of
    the structure, as tensors on the device.
    """

    weights: Sequence[Tensor]
    biases: Sequence[Tensor | None]
    weight_scales: Sequence[Tensor | None]
    degrees: Sequence[Tensor] | None = None
    normalized: bool = False

    def with_factors(self, factors: Sequence[Tensor | None]) -> MadeParameters:
        """The same layers with ``factors`` of their rows, which no norm divides."""
        return self._replace(weight_scales=factors, normalized=False)


def factors_of(parameters: MadeParameters, structure: MadeStructure) -> MadeParameters:
    """``parameters`` with gains turned into factors."""
    if not parameters.normalized:
        return parameters
    degrees = parameters.degrees or structure.degree_tensors(parameters.weights[0].device)
    return parameters.with_factors(
        [
            None if gain is None else row_factors(gain, masked_norm(weight, degrees[i], degrees[i + 1]))
            for i, (weight, gain) in enumerate(zip(parameters.weights, parameters.weight_scales, strict=True))
        ]
    )


def masked_network(
    x: Tensor, context_term: Tensor | None, parameters: MadeParameters, structure: MadeStructure
) -> Tensor:
    """Parameters ``(*, P * D)`` of the features ``x`` ``(*, D)``.

    ``context_term`` ``(*, hidden width)`` is added to the first layer before its activation.
    """
    parameters = factors_of(parameters, structure)
    degrees = parameters.degrees or structure.degree_tensors(x.device)
    act = ACTIVATIONS[structure.activation]

    def layer(index: int, h: Tensor) -> Tensor:
        weight, bias, scale = parameters.weights[index], parameters.biases[index], parameters.weight_scales[index]
        return masked_linear(h, weight, bias, degrees[index], degrees[index + 1], weight_scale=scale)

    h = layer(0, x)
    if context_term is not None:
        h = h + context_term
    last = len(structure.hidden_degrees)
    if structure.residual:
        for index in range(1, last, 2):
            h = h + layer(index + 1, act(layer(index, act(h))))
        return layer(last, h)
    h = act(h)
    for index in range(1, last):
        h = act(layer(index, h))
    return layer(last, h)


def autoregressive_flow(
    z: Tensor,
    context_term: Tensor | None,
    parameters: MadeParameters,
    structure: MadeStructure,
    kind: str,
    log_det_map: bool = False,
) -> tuple[Tensor, Tensor]:
    """``z'`` and ``log_det`` of one affine step, or its shares. A network of z gives its shift and scale logit."""
    params = structure.split(masked_network(z, context_term, parameters, structure))
    scale_logit = params[..., 1, :] if kind != "location_only" else None
    return affine_flow(z, params[..., 0, :], scale_logit, kind, log_det_map=log_det_map)
