"""Random steps of autoregressive flows, as the kernels' launchers take them."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from fastvae.kernels.autoregressive_inverse import autoregressive_inverse_fwd
from fastvae.reference.autoregressive_inverse import autoregressive_inverse
from fastvae.reference.made import MadeParameters, autoregressive_flow
from fastvae.structure import MadeStructure, spread_degrees
from tests.support.implementations import GPU

DEVICE = "cuda" if GPU else "cpu"


@dataclass
class Flow:
    """A step with its inputs: context term and parameters."""

    structure: MadeStructure
    context_term: Tensor | None
    parameters: MadeParameters
    kind: str

    def to(self, dtype: torch.dtype) -> Flow:
        def cast(tensors):
            return [None if t is None else t.to(DEVICE, dtype) for t in tensors]

        (context_term,) = cast([self.context_term])
        return Flow(self.structure, context_term, MadeParameters(*map(cast, self.parameters[:3])), self.kind)

    def arguments(self):
        return self.context_term, *self.parameters[:3], self.structure, self.kind

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return autoregressive_flow(x, self.context_term, self.parameters, self.structure, self.kind)

    def inverse(self, z: Tensor, log_det_map: bool = False) -> tuple[Tensor, Tensor]:
        return autoregressive_inverse(z, self.context_term, self.parameters, self.structure, self.kind, log_det_map)


def flow_of(
    n: int = 3,
    features: int = 5,
    hidden: tuple[int, ...] = (12, 12),
    *,
    residual: bool = False,
    kind: str = "gated",
    activation: str = "elu",
    layout: str = "blocked",
    context: bool = True,
    bias: bool = True,
    scaled: bool = False,
    shuffled: bool = True,
    params: int | None = None,
) -> Flow:
    """A random step, whose weights are small enough for a well conditioned inverse.

    `shuffled`: a random order, and hidden units whose degrees are not sorted.
    """
    degrees = [list(spread_degrees(width, features, context)) for width in hidden]
    order = list(range(features))
    if shuffled:
        order = torch.randperm(features).tolist()
        shuffles = [torch.randperm(width).tolist() for width in hidden]
        if residual:
            shuffles = shuffles[:1] * len(hidden)
        degrees = [[d[i] for i in shuffle] for d, shuffle in zip(degrees, shuffles, strict=True)]
    params = params or (1 if kind == "location_only" else 2)
    structure = MadeStructure(features, tuple(map(tuple, degrees)), tuple(order), params, activation, residual, layout)
    widths = [len(layer) for layer in structure.degrees]
    pairs = list(pairwise(widths))
    parameters = MadeParameters(
        [0.5 * torch.randn(outputs, inputs) / inputs**0.5 for inputs, outputs in pairs],
        [0.3 * torch.randn(outputs) if bias else None for _, outputs in pairs],
        [0.5 + torch.rand(outputs) if scaled else None for _, outputs in pairs],
    )
    return Flow(structure, torch.randn(n, widths[1]) if context else None, parameters, kind).to(torch.float32)


def inverse_results(flow: Flow, z: Tensor, d_x: Tensor, d_log_det: Tensor) -> list[Tensor]:
    """x, log_det and the gradient to z of the reference, in the dtype of z; shares where d_log_det is of shares."""
    z = z.detach().clone().requires_grad_()
    x, log_det = flow.inverse(z, log_det_map=d_log_det.dim() == 2)
    value = (x * d_x.to(x)).sum() + (log_det * d_log_det.to(log_det)).sum()
    return [x.detach(), log_det.detach(), *torch.autograd.grad(value, z)]


def check_rows_that_lie_apart() -> None:
    """The inverse reads points and contexts that are parts of wider matrices."""
    flow = flow_of()
    z, context = torch.randn(3, 9).to(DEVICE)[:, 2:7], torch.randn(3, 14).to(DEVICE)[:, 1:13]
    arguments = flow.arguments()[1:]
    for actual, expected in zip(
        autoregressive_inverse_fwd(z, context, *arguments),
        autoregressive_inverse_fwd(z.contiguous(), context.contiguous(), *arguments),
        strict=True,
    ):
        assert torch.equal(actual, expected)


def check_masked_weights_of_any_value() -> None:
    """The inverse reads no weight that is masked."""
    flow, z = flow_of(), torch.randn(3, 5).to(DEVICE)
    expected = autoregressive_inverse_fwd(z, *flow.arguments())
    degrees = flow.structure.degree_tensors(DEVICE)
    for weight, inputs, outputs in zip(flow.parameters.weights, degrees[:-1], degrees[1:], strict=True):
        weight.masked_fill_(inputs > outputs.unsqueeze(-1), float("nan"))
    for actual, value in zip(autoregressive_inverse_fwd(z, *flow.arguments()), expected, strict=True):
        assert torch.equal(actual, value)
