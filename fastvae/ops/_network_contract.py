"""Checks of calls of the ops on whole networks: lists of tensors must agree with each other, and with degrees."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ..reference.affine_flow import KINDS
from ..structure import ACTIVATION_NAMES, read_structure
from ._contracts import Call, check_log_det_gradient
from ._layers import KIND_IDS
from ._network import NetworkFields, count_saved_on, structure_fields

__all__ = ["check_forward", "check_gradient"]

# The kind with no scale has one parameter for each feature.
_ONE_PARAMETER = KIND_IDS["location_only"]


def check_forward(call: Call) -> None:
    """Checks the step, the network alone, and the inverse. Their tensors are weights, context term, biases, factors."""
    widths = _structure(call)
    tensors, count = list(call["tensors"]), len(widths) - 1
    context, present = call["present"][0], call["present"][1:]
    call.require(len(tensors) == count + sum(call["present"]), "tensors", "be as many as are present", len(tensors))
    call.require(call.sizes["D"] == widths[0], "z", f"have {widths[0]} features", call.sizes["D"])
    _weights(call, "tensors", tensors[:count], widths)
    rest = tensors[count:]
    if context:
        call.tensor("tensors", rest.pop(0), ("N", str(widths[1])), "c")
    _vectors(call, "tensors", rest, [width for width, there in zip([*widths[1:]] * 2, present, strict=True) if there])


def check_gradient(call: Call) -> None:
    """Checks their backward passes, which read what the forward pass saved, and tensors of the network."""
    widths = _structure(call)
    count, present = len(widths) - 1, call["present"]
    alone = NetworkFields(*call["structure"]).kind == 0
    outputs = widths[-1] if alone else widths[0]
    call.require(call.sizes["O"] == outputs, "the first argument", f"have {outputs} columns", call.sizes["O"])
    if alone:
        call.tensor("d_log_det", call["d_log_det"], ("0",), "cw")
    else:
        check_log_det_gradient(call, "O")
    saved = call.get_tensor("saved")
    # On a GPU the inverse computes the activations again.
    keeps = call.is_cpu or not call.op.startswith("autoregressive_inverse")
    size = count_saved_on(saved.device, call.sizes["N"], call["d_out"].dtype, widths, call["structure"]) if keeps else 0
    call.require(saved.numel() == size, "saved", f"hold {size} numbers", saved.numel())
    if keeps:
        call.tensor("saved", saved, [str(length) for length in saved.shape], "cw")
    _check_kept(call, widths)
    wanted = count + sum(present)
    call.require(len(call["needs"]) == wanted, "needs", f"be {wanted} truth values", len(call["needs"]))


def _check_kept(call: Call, widths: Sequence[int]) -> None:
    """Weights, factors, and norms for gains; on a GPU also context's term and biases, and last the network's input."""
    kept, outputs, present = list(call["kept"]), widths[1:], call["present"]
    scaled = [width for width, there in zip(outputs, present[1 + len(outputs) :], strict=True) if there]
    vectors = scaled * 2 if call["normalized"] else scaled
    matrices = [("r", str(width), str(inputs)) for inputs, width in zip(widths, outputs, strict=False)]
    if not call.is_cpu:
        vectors = [*(width for width, there in zip(outputs, present[1:], strict=False) if there), *vectors]
        matrices += [("c", "N", str(outputs[0]))] if present[0] else []
        if kept:
            kept.insert(len(matrices), kept.pop())
        matrices.append(("r", "N", str(widths[0])))
    total = len(matrices) + len(vectors)
    call.require(len(kept) == total, "kept", f"be {total} tensors", len(kept))
    for t, (flags, *shape) in zip(kept, matrices, strict=False):
        call.tensor("kept", t, shape, flags)
    _vectors(call, "kept", kept[len(matrices) :], vectors)


def _structure(call: Call) -> list[int]:
    """The widths of the layers, the inputs first; raises unless numbers and degrees describe a network."""
    degrees, numbers, present = call["degrees"], list(call["structure"]), call["present"]
    call.require(len(degrees) >= 2, "degrees", "be those of the features and of one layer or more", len(degrees))
    for d in degrees:
        call.tensor("degrees", d, (str(d.numel()),), "ci")
    widths = [d.numel() for d in degrees]
    call.require(len(present) == 2 * len(degrees) - 1, "present", f"be {2 * len(degrees) - 1} values", len(present))
    call.require(len(numbers) == len(NetworkFields._fields), "structure", "be six numbers", numbers)
    fields = NetworkFields(*numbers)
    features, params = fields.features, fields.params_per_feature
    inverse = call.op.startswith("autoregressive_inverse")
    described = (
        features >= 1
        and params >= 1
        and widths[0] == features
        and widths[-1] == features * params
        and min(widths) >= 1
        and 0 <= fields.activation < len(ACTIVATION_NAMES)
        and inverse <= fields.kind <= len(KINDS)
        and (fields.kind == 0 or params == (1 if fields.kind == _ONE_PARAMETER else 2))
        and fields.residual in (0, 1)
        and fields.interleaved in (0, 1)
    )
    call.require(described, "structure", f"describe a network of widths {widths}", numbers)
    hidden = widths[1:-1]
    whole = not fields.residual or (len(hidden) % 2 == 1 and len(set(hidden)) == 1)
    call.require(whole, "degrees", "be those of residual blocks, of one width", widths)
    if inverse:
        _check_description(call, widths, fields)
    if inverse and call.is_cpu:
        call.has_read_values = True
        _check_sweep(call, [d.tolist() for d in degrees], bool(fields.interleaved))
    return widths


def _check_description(call: Call, widths: Sequence[int], fields: NetworkFields) -> None:
    """A GPU sweeps through the network as its text describes it."""
    try:
        structure = read_structure(call["network"])
    except ValueError as error:
        raise ValueError(f"fastvae::{call.op}: network must be the description of a structure: {error}") from None
    described = [len(degrees) for degrees in structure.degrees], structure_fields(structure, None)
    wanted = [*widths], [*fields._replace(kind=0)]
    call.require(described == wanted, "network", f"describe a network of {wanted}", described)


def _check_sweep(call: Call, degrees: list[list[int]], interleaved: bool) -> None:
    """A sweep finds one feature after another: each must depend on those before it, and on nothing else."""
    first, *hidden, last = degrees
    features = len(first)
    call.require(sorted(first) == list(range(1, features + 1)), "degrees[0]", f"order {features} features", first)
    inside = all(0 <= degree <= features for layer in hidden for degree in layer)
    call.require(inside, "degrees", f"lie in [0, {features}]", hidden)
    params = len(last) // features
    of_features = [first[o // params if interleaved else o % features] - 1 for o in range(len(last))]
    call.require(last == of_features, "degrees[-1]", f"be {of_features}, one below those of the features", last)


def _weights(call: Call, name: str, weights: Sequence[Tensor], widths: Sequence[int]) -> None:
    for weight, inputs, outputs in zip(weights, widths, widths[1:], strict=False):
        call.tensor(name, weight, (str(outputs), str(inputs)), "r")


def _vectors(call: Call, name: str, vectors: Sequence[Tensor], widths: Sequence[int]) -> None:
    for vector, width in zip(vectors, widths, strict=True):
        call.tensor(name, vector, (str(width),), "c")
