r"""Inverse of an autoregressive affine flow in one sweep, in plain PyTorch.

Once feature i is known, the hidden units of degree i become known. So the sweep uses every weight once. The usual
inverse runs the whole network once for each of D features.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from ..structure import MadeStructure
from .affine_flow import affine_flow
from .made import MadeParameters, factors_of
from .masked_linear import ACTIVATIONS


class _Growing:
    """The units known so far, by ascending degree: slices of one buffer or, where writing is not allowed, a list."""

    def __init__(self, like: Tensor, width: int, writable: bool) -> None:
        self._parts = [like.new_empty(*like.shape[:-1], 0)]
        self._buffer = like.new_empty(*like.shape[:-1], width) if writable else None
        self._count = 0

    def append(self, part: Tensor) -> None:
        if self._buffer is None:
            self._parts.append(part)
        else:
            self._buffer[..., self._count : self._count + part.shape[-1]] = part
        self._count += part.shape[-1]

    def join(self) -> Tensor:
        return torch.cat(self._parts, -1) if self._buffer is None else self._buffer[..., : self._count]


def sweep(
    like: Tensor,
    context_term: Tensor | None,
    parameters: MadeParameters,
    structure: MadeStructure,
    find: Callable[[int, Tensor], Tensor],
) -> Tensor:
    """All features ``(*, D)``, each found as soon as those before it are known.

    Args:
        like: a tensor of the batch, device and dtype of the features, ``(*, any)``.
        context_term: as :func:`fastvae.reference.made.masked_network` takes it.
        parameters: weights, biases and row factors of the layers.
        structure: sizes and degrees.
        find: gives a feature ``(*, 1)`` from its number and its parameters ``(*, P)``.
    """
    parameters = factors_of(parameters, structure)
    # Units by ascending degree: the known ones are always the first.
    orders = structure.sorted_units(like.device)
    weights = [
        (weight if scale is None else weight * scale.unsqueeze(-1))[orders[i + 1]][:, orders[i]]
        for i, (weight, scale) in enumerate(zip(parameters.weights, parameters.weight_scales, strict=True))
    ]
    biases = [None if b is None else b[orders[i + 1]] for i, b in enumerate(parameters.biases)]
    if context_term is not None:
        context_term = context_term[..., orders[1]]
    counts = structure.counts
    act = ACTIVATIONS[structure.activation]
    last = len(structure.hidden_degrees)
    # Autograd follows no writes in place, and vmap cannot write a mapped tensor into one that is not. A trace is made
    # without gradients, but runs with them.
    writable = not (
        torch.is_grad_enabled()
        or torch.compiler.is_compiling()
        or torch._C._are_functorch_transforms_active()
        or torch._C._get_tracing_state() is not None
    )
    growing = [_Growing(like, len(d), writable) for d in structure.degrees[:-1]]  # of each layer's inputs
    # Before the activation, with residual only.
    streams = [_Growing(like, len(d), writable) for d in structure.degrees[:-1]]

    def rows(layer: int, begin: int, end: int) -> Tensor:
        inputs = growing[layer].join()
        bias = biases[layer]
        return functional.linear(
            inputs, weights[layer][begin:end, : inputs.shape[-1]], None if bias is None else bias[begin:end]
        )

    def advance(degree: int) -> None:
        for layer in range(last):
            begin = counts[layer + 1][degree - 1] if degree else 0
            end = counts[layer + 1][degree]
            h = rows(layer, begin, end)
            if layer == 0 and context_term is not None:
                h = h + context_term[..., begin:end]
            if structure.residual and layer % 2 == 0:
                if layer:
                    h = h + streams[layer - 1].join()[..., begin:end]
                streams[layer + 1].append(h)
            growing[layer + 1].append(h if structure.residual and layer == last - 1 else act(h))

    values = {}
    advance(0)
    for place, feature in enumerate(structure.features_in_order):
        begin = counts[-1][place - 1] if place else 0
        values[feature] = find(feature, rows(last, begin, counts[-1][place]))
        if place + 1 < structure.features:
            growing[0].append(values[feature])
            advance(place + 1)
    return torch.cat([values[feature] for feature in range(structure.features)], -1)


def autoregressive_inverse(
    z: Tensor,
    context_term: Tensor | None,
    parameters: MadeParameters,
    structure: MadeStructure,
    kind: str,
    log_det_map: bool = False,
) -> tuple[Tensor, Tensor]:
    """The x that the flow step maps to ``z`` ``(*, D)``, and the log-determinant of the inverse map, ``(*)``.

    With ``log_det_map`` every feature's share of it, ``(*, D)``.
    """
    terms = {}

    def solve(feature: int, params: Tensor) -> Tensor:
        scale_logit = params[..., 1:2] if kind != "location_only" else None
        value, term = affine_flow(z[..., feature : feature + 1], params[..., :1], scale_logit, kind, inverse=True)
        terms[feature] = term
        return value

    x = sweep(z, context_term, parameters, structure, solve)
    if log_det_map:
        return x, torch.stack([terms[feature] for feature in range(structure.features)], -1)
    log_det, *others = terms.values()
    for term in others:
        log_det = log_det + term
    return x, log_det
