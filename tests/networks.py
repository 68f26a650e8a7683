"""Masked networks of every form as plain tensors: what the tests of masked layers and autoregressive flows share."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import fastvae.functional as F
from fastvae.ops.autoregressive_flow import autoregressive_flow, masked_network
from fastvae.ops.autoregressive_inverse import autoregressive_inverse
from fastvae.ops.masked_linear import masked_norm
from fastvae.reference import made as made_reference
from fastvae.reference.affine_flow import affine_flow
from fastvae.reference.made import MadeParameters
from fastvae.reference.masked_linear import mask_of
from fastvae.structure import MadeStructure, hidden_degrees_of
from tests.support import Problem, check_against_oracle, device_of, run_with_gradients

KERNELS = ("cpp",)  # beside the reference; Triton's whole-network kernels have tests of their own

# Degrees of inputs and of outputs of a single layer, and why.
DEGREES: dict[str, Callable[[int, int], tuple[Tensor, Tensor]]] = {
    "staircase": lambda i, o: (spread(i, 6), spread(o, 6)),  # as in a network: ascending, repeated
    "unsorted": lambda i, o: (spread(i, 6)[torch.randperm(i)], spread(o, 6)[torch.randperm(o)]),
    "distinct": lambda i, o: (torch.randperm(i), torch.randperm(o)),
    "reversed": lambda i, o: (spread(i, 6).flip(0), spread(o, 6).flip(0)),
    "lonely rows": lambda i, o: (spread(i, 6) + 2, spread(o, 6)),  # outputs that no input reaches
    "all connected": lambda i, o: (torch.zeros(i, dtype=torch.int64), torch.full((o,), 3)),
    "none connected": lambda i, o: (torch.full((i,), 5), torch.zeros(o, dtype=torch.int64)),
    "below zero": lambda i, o: (spread(i, 6) - 4, spread(o, 6) - 4),
}


def spread(width: int, degrees: int) -> Tensor:
    return torch.arange(width) * degrees // width


def layer_inputs(
    batch: Sequence[int], in_features: int, out_features: int, *, bias: bool = True, weight_scale: bool = False
) -> list[Tensor]:
    """x, weight and, where wanted, bias and weight scale."""
    inputs = [torch.randn(*batch, in_features), torch.randn(out_features, in_features) / math.sqrt(in_features)]
    if bias:
        inputs.append(0.5 * torch.randn(out_features))
    if weight_scale:
        inputs.append(0.5 + torch.rand(out_features))
    return [t.requires_grad_() for t in inputs]


def layer_problem(
    inputs: list[Tensor],
    degrees: tuple[Tensor, Tensor],
    *,
    bias: bool = True,
    weight_scale: bool = False,
    activation: str | None = None,
) -> Problem:
    """``masked_linear`` as a function of the tensors of :func:`layer_inputs`."""

    def call(impl: str, p: list[Tensor]) -> tuple[Tensor, ...]:
        x, weight, *rest = p
        b = rest.pop(0) if bias else None
        scale = rest.pop(0) if weight_scale else None
        ins, outs = (d.to(x.device) for d in degrees)
        options: dict[str, Any] = {"activation": activation, "weight_scale": scale, "impl": impl}
        return (F.masked_linear(x, weight, b, in_degrees=ins, out_degrees=outs, **options),)

    return Problem(call, inputs)


def norm_problem(weight: Tensor, degrees: tuple[Tensor, Tensor]) -> Problem:
    def call(impl: str, p: list[Tensor]) -> tuple[Tensor, ...]:
        ins, outs = (d.to(p[0].device) for d in degrees)
        return (masked_norm(p[0], in_degrees=ins, out_degrees=outs, impl=impl),)

    return Problem(call, [weight])


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
        z, *rest = tensors
        term = rest.pop(0) if self.context else None
        layers = len(self.structure.degrees) - 1
        absent: list[Tensor | None] = [None] * layers
        weights, rest = rest[:layers], rest[layers:]
        biases, rest = (rest[:layers], rest[layers:]) if self.bias else (absent, rest)
        return z, term, MadeParameters(weights, biases, rest if self.weight_scale else absent)

    def first_weight(self) -> int:
        """The place of the first layer's weight among the tensors."""
        return 2 if self.context else 1

    def problem(self, entry: str, tensors: list[Tensor], kind: str = "gated") -> Problem:
        """``"made"``, ``"flow"`` or ``"inverse"`` as a function of :meth:`tensors`."""

        def call(impl: str, p: list[Tensor]) -> tuple[Tensor, ...]:
            z, term, parameters = self.unpack(p)
            if entry == "made":
                return (masked_network(z, term, parameters, self.structure, impl=impl),)
            function = autoregressive_flow if entry == "flow" else autoregressive_inverse
            outputs = function(z, term, parameters, self.structure, kind=kind, impl=impl)
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


def shuffled(width: int, features: int) -> list[int]:
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
    "shuffled degrees": network(6, hidden_degrees=[shuffled(19, 6), shuffled(23, 6)]),
    "units that see nothing": network(4, hidden_degrees=[[0] * 6, [0, 1, 2, 3] * 2]),
    "units that reach nothing": network(4, hidden_degrees=[[1, 4, 2, 9, 3, 4], [3, 4, 1, 7, 2]]),
    "context": network(5, (18, 21), context=True),
    "residual": network(6, (20, 20, 20), residual=True),
    "residual without blocks": network(6, (20,), residual=True),
    "residual, two blocks, context": network(5, (17,) * 5, residual=True, context=True),
    "residual, shuffled degrees": network(5, hidden_degrees=[shuffled(15, 5)] * 3, residual=True),
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


def check(draw: Callable[[], Problem], impl: str, dtype: torch.dtype) -> None:
    """The rule of :func:`check_against_oracle` for a random problem.

    Gradients that are sums over rows have few elements, and now and then eager happens to round all of them well: what
    fails on one draw is judged by the mean errors over eight others.
    """
    try:
        check_against_oracle(draw(), impl, dtype)
    except AssertionError:
        drawn = [_errors(draw(), impl, dtype) for _ in range(8)]
        for i, results in enumerate(zip(*drawn, strict=True)):
            error, eager, rounding = (sum(column) / len(drawn) for column in zip(*results, strict=True))
            allowed = 2.0 * (eager + rounding) * (2.0 if dtype == torch.float64 else 1.0)
            assert error <= allowed, f"result {i}: mean error {error:.3e}, allowed {allowed:.3e}"


def _errors(problem: Problem, impl: str, dtype: torch.dtype) -> list[tuple[float, float, float]]:
    """Of every output and gradient: errors of ``impl`` and of eager, and one rounding."""
    rounded = problem.to(dtype, "cpu")
    upstream = [torch.randn_like(o) for o in rounded.outputs("reference")]
    oracle = run_with_gradients(rounded.to(torch.float64, "cpu"), "reference", upstream)
    # As there, eager in float32 stands for eager in float64, whose error cannot be known.
    lower = torch.float32 if dtype == torch.float64 else dtype
    eager = run_with_gradients(rounded.to(lower, "cpu"), "reference", upstream)
    ratio = torch.finfo(dtype).eps / torch.finfo(lower).eps
    actual = run_with_gradients(rounded.to(dtype, device_of(impl)), impl, upstream)
    errors = []
    for a, e, o in zip(actual, eager, oracle, strict=True):
        assert a.shape == o.shape
        largest, eps = (o.abs().max().item() if o.numel() else 0.0), torch.finfo(a.dtype).eps
        errors.append((_distance(a, o), ratio * _distance(e, o), eps * largest))
    return errors


def _distance(a: Tensor, b: Tensor) -> float:
    return (a.double().cpu() - b).abs().max().item() if b.numel() else 0.0


def repeated_passes(form: Network, kind: str, tensors: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """The inverse as every library has it: the whole network once for each feature."""
    z, term, parameters = form.unpack(tensors)
    x, log_det = torch.zeros_like(z), z.new_zeros(z.shape[:-1])
    for _ in range(form.structure.features):
        params = form.structure.split(made_reference.masked_network(x, term, parameters, form.structure))
        scale_logit = None if kind == "location_only" else params[..., 1, :]
        x, log_det = affine_flow(z, params[..., 0, :], scale_logit, kind, inverse=True)
    return x, log_det


def jacobian(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """d out / d x of a function of a vector, ``(out, in)``, by backward passes: kernels know no forward mode."""
    return torch.autograd.functional.jacobian(function, x)


def small_form() -> Network:
    return network(4, (6, 8), context=True)


def right_arguments() -> dict[str, Any]:
    """What every function of a network takes, by name; z is called x where it is the network's input alone."""
    form = small_form()
    z, term, parameters = form.unpack([t.detach() for t in form.tensors((2,))])
    return {"z": z, "context_term": term, "parameters": parameters, "structure": form.structure}


def _changed(field: str, change: Callable[[Tensor], Tensor]) -> dict[str, Any]:
    """Parameters with one tensor of the second layer replaced."""
    parameters = right_arguments()["parameters"]
    tensors = list(getattr(parameters, field))
    tensors[1] = change(torch.zeros(8) if tensors[1] is None else tensors[1])
    return {"parameters": parameters._replace(**{field: tensors})}


def _shortened(field: str) -> dict[str, Any]:
    parameters = right_arguments()["parameters"]
    return {"parameters": parameters._replace(**{field: list(getattr(parameters, field))[:-1]})}


# Arguments that replace right ones, the error, and how its message may name the argument.
WRONG_NETWORK: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"z": torch.zeros(2, 3)}, ValueError, "x|z"),
    ({"z": torch.tensor(0.0)}, ValueError, "x|z"),
    ({"z": torch.zeros(2, 4).long()}, TypeError, "x|z"),
    ({"z": [0.0]}, TypeError, "x|z"),
    ({"context_term": torch.zeros(2, 5)}, ValueError, "context_term|context"),
    ({"context_term": torch.zeros(3, 6)}, ValueError, "context_term|context"),
    ({"context_term": torch.zeros(2, 6).double()}, TypeError, "context_term|context"),
    ({"context_term": torch.zeros(2, 6, device="meta")}, ValueError, "context_term|context"),
    (_shortened("weights"), ValueError, "weights?"),
    (_changed("weights", lambda w: w[:, :3]), ValueError, "weights?"),
    (_changed("weights", lambda w: w.T), ValueError, "weights?"),
    (_changed("weights", Tensor.half), TypeError, "weights?"),
    (_changed("weights", lambda w: w.to("meta")), ValueError, "weights?"),
    (_shortened("biases"), ValueError, "bias(es)?"),
    (_changed("biases", lambda b: b[:3]), ValueError, "bias(es)?"),
    (_changed("biases", Tensor.double), TypeError, "bias(es)?"),
    (_shortened("weight_scales"), ValueError, "weight_scales?"),
    (_changed("weight_scales", lambda s: s[:3]), ValueError, "weight_scales?"),
    (_changed("weight_scales", Tensor.double), TypeError, "weight_scales?"),
    ({"impl": "cuda"}, ValueError, "impl"),
]
WRONG_STEP = [
    *WRONG_NETWORK,
    ({"kind": "affine"}, ValueError, "kind"),
    # A network of one parameter per feature has no scale; one of two has a superfluous one for location_only.
    ({"structure": network(4, (6, 8), params=1).structure}, ValueError, "params_per_feature|kind|weights?"),
    ({"kind": "location_only"}, ValueError, "params_per_feature|kind"),
]
