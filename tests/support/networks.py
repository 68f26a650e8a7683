"""Masked networks of every form as plain tensors, and their entry points as problems for the oracle."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastvae.ops.autoregressive_flow import autoregressive_flow, masked_network
from fastvae.ops.autoregressive_inverse import autoregressive_inverse
from fastvae.reference import made as made_reference
from fastvae.reference.affine_flow import affine_flow
from fastvae.reference.made import MadeParameters
from fastvae.reference.masked_linear import mask_of
from fastvae.structure import MadeStructure, hidden_degrees_of
from tests.support.oracle import Problem

KERNELS = ("cpp",)  # beside the reference; Triton's whole-network kernels have tests of their own


@dataclass(frozen=True)
class Network:
    """The form of a network: its structure, and which tensors it has besides weights."""

    structure: MadeStructure
    context: bool = False
    bias: bool = True
    weight_scale: bool = False

    @property
    def masks(self) -> list[Tensor]:
        degrees = self.structure.degree_tensors()
        return [mask_of(i, o) for i, o in itertools.pairwise(degrees)]

    def tensors(self, batch: Sequence[int], context_batch: Sequence[int] | None = None) -> list[Tensor]:
        """z, the context's term, weights, biases, weight scales, as leaves.

        Small in the last layer, so that the flow is well conditioned and rounding, not chaos, is compared.
        """
        widths = [len(degrees) for degrees in self.structure.degrees]
        made = [torch.randn(*batch, widths[0])]
        if self.context:
            made.append(torch.randn(*(batch if context_batch is None else context_batch), widths[1]))
        last = len(widths) - 2
        for i, (fan_in, fan_out) in enumerate(itertools.pairwise(widths)):
            made.append(torch.randn(fan_out, fan_in) * (0.3 if i == last else 1.0) / math.sqrt(fan_in))
        if self.bias:
            made += [0.3 * torch.randn(width) for width in widths[1:]]
        if self.weight_scale:
            made += [0.5 + torch.rand(width) for width in widths[1:]]
        return [t.requires_grad_() for t in made]

    def unpack(self, tensors: Sequence[Tensor]) -> tuple[Tensor, Tensor | None, MadeParameters]:
        z, rest = tensors[0], tensors[self.first_weight() :]
        term = tensors[1] if self.context else None
        layers = len(self.structure.degrees) - 1
        absent: list[Tensor | None] = [None] * layers
        weights, rest = rest[:layers], rest[layers:]
        biases, rest = (rest[:layers], rest[layers:]) if self.bias else (absent, rest)
        return z, term, MadeParameters(weights, biases, rest if self.weight_scale else absent)

    def first_weight(self) -> int:
        """The place of the first layer's weight among the tensors."""
        return 2 if self.context else 1

    def problem(self, entry: str, tensors: list[Tensor], kind: str = "gated", *, log_det_map: bool = False) -> Problem:
        """``"made"``, ``"flow"`` or ``"inverse"`` as a function of :meth:`tensors`."""

        def call(impl: str, p: list[Tensor]) -> tuple[Tensor, ...]:
            z, term, parameters = self.unpack(p)
            if entry == "made":
                return (masked_network(z, term, parameters, self.structure, impl=impl),)
            function = autoregressive_flow if entry == "flow" else autoregressive_inverse
            outputs = function(z, term, parameters, self.structure, kind=kind, log_det_map=log_det_map, impl=impl)
            # The log-determinant of location_only is a constant.
            return outputs[:1] if kind == "location_only" else outputs

        return Problem(call, tensors)


def network(
    features: int,
    hidden_features: Sequence[int] = (16, 24),
    *,
    context: bool = False,
    bias: bool = True,
    weight_scale: bool = False,
    order: Sequence[int] | None = None,
    params: int = 2,
    hidden_degrees: Sequence[Sequence[int]] | None = None,
    **structure: Any,
) -> Network:
    if hidden_degrees is None:
        hidden_degrees = hidden_degrees_of(hidden_features, features, context)
    places = tuple(range(features) if order is None else order)
    made = MadeStructure(features, tuple(map(tuple, hidden_degrees)), places, params, **structure)
    return Network(made, context, bias, weight_scale)


def shuffle_degrees(width: int, features: int) -> list[int]:
    """Degrees 0, ..., features - 1 in no order, some of them absent."""
    generator = torch.Generator().manual_seed(width)
    return torch.randint(0, features, (width,), generator=generator).tolist()


NETWORKS: dict[str, Network] = {
    "plain": network(5),
    "one hidden layer": network(6, (20,)),
    "widths of no vector": network(7, (13, 30, 9)),
    "around a vector": network(9, (63, 65)),
    "aligned": network(8, (64, 32)),
    "many features": network(33, (40, 48)),
    "one feature": network(1, (7,)),
    "one feature, context": network(1, (5, 6), context=True),
    "two features": network(2, (3, 4)),
    "degrees without units": network(11, (4, 6)),
    "shuffled degrees": network(6, hidden_degrees=[shuffle_degrees(19, 6), shuffle_degrees(23, 6)]),
    "units that see nothing": network(4, hidden_degrees=[[0] * 6, [0, 1, 2, 3] * 2]),
    "units that reach nothing": network(4, hidden_degrees=[[1, 4, 2, 9, 3, 4], [3, 4, 1, 7, 2]]),
    "context": network(5, (18, 21), context=True),
    "residual": network(6, (20, 20, 20), residual=True),
    "residual without blocks": network(6, (20,), residual=True),
    "residual, two blocks, context": network(5, (17,) * 5, residual=True, context=True),
    "residual, shuffled degrees": network(5, hidden_degrees=[shuffle_degrees(15, 5)] * 3, residual=True),
    "reversed": network(6, order=range(5, -1, -1)),
    "shuffled order": network(7, (21, 19), order=[3, 0, 6, 2, 5, 1, 4]),
    "interleaved": network(5, layout="interleaved"),
    "interleaved, shuffled order": network(6, order=[2, 5, 0, 1, 4, 3], layout="interleaved"),
    "no bias": network(5, bias=False),
    "weight scale": network(6, weight_scale=True),
    "everything": network(
        6,
        (22, 22, 22),
        context=True,
        weight_scale=True,
        residual=True,
        layout="interleaved",
        order=[4, 1, 0, 5, 3, 2],
        activation="silu",
    ),
}


# Batches, and why.
BATCHES = [
    (0,),  # no rows
    (1,),  # one row
    (63,),  # one short of a block of rows
    (64,),
    (65,),  # one more
    (2, 3),  # two batch dimensions
    (),  # no batch dimension
]


def params_of(kind):
    return 1 if kind == "location_only" else 2


def repeated_passes(form: Network, kind: str, tensors: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """The inverse as every library has it: the whole network once for each feature."""
    z, term, parameters = form.unpack(tensors)
    x, log_det = torch.zeros_like(z), z.new_zeros(z.shape[:-1])
    for _ in range(form.structure.features):
        params = form.structure.split(made_reference.masked_network(x, term, parameters, form.structure))
        scale_logit = None if kind == "location_only" else params[..., 1, :]
        x, log_det = affine_flow(z, params[..., 0, :], scale_logit, kind, inverse=True)
    return x, log_det
