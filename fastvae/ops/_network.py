"""What the masked layers' ops share: checks of layers, and how the extension is told of them."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ..reference.affine_flow import KINDS
from ..reference.made import MadeParameters
from ..reference.masked_linear import ACTIVATIONS
from ..structure import MadeStructure
from . import _checks

# The extension's numbers (csrc/activation.h, csrc/affine.h).
ACTIVATION_IDS = {name: index for index, name in enumerate(ACTIVATIONS)}
KIND_IDS = {None: 0} | {name: index for index, name in enumerate(KINDS, 1)}
# Activations whose derivative needs the pre-activation; for the others it follows from their value.
NEED_PRE = ("gelu", "silu")
# Samples of a block of saved activations (csrc/lanes.h).
LANES = 64


def activation_of(activation: str | None) -> str:
    if activation is None:
        return "identity"
    if activation not in ACTIVATION_IDS:
        raise ValueError(f"activation must be None or one of {', '.join(ACTIVATIONS)}, got {activation!r}")
    return activation


def check_kind(kind: str, structure: MadeStructure | None = None) -> None:
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
    needed = 1 if kind == "location_only" else 2
    if structure is not None and structure.params_per_feature != needed:
        raise ValueError(f"kind={kind!r} takes params_per_feature={needed}, got {structure.params_per_feature}")


def check_degrees(name: str, degrees: Tensor, count: int, like: Tensor) -> Tensor:
    """``degrees`` as int64, once they are known to be ``count`` integers on the device of ``like``."""
    if not isinstance(degrees, Tensor):
        raise TypeError(f"{name} must be a tensor of integers, got {type(degrees).__name__}")
    if degrees.is_floating_point() or degrees.is_complex():
        raise TypeError(f"{name} must be a tensor of integers, got {degrees.dtype}")
    if degrees.shape != (count,):
        raise ValueError(f"{name} must have shape ({count},), got {tuple(degrees.shape)}")
    if degrees.device != like.device:
        raise ValueError(f"{name} must be on the device of x, {like.device}; it is on {degrees.device}")
    return degrees.long().contiguous()


def layer_fields(
    weight: Tensor, bias: Tensor | None, scale: Tensor | None, in_degrees: Tensor, out_degrees: Tensor
) -> list[int]:
    """A masked layer for the extension: addresses and sizes, in the order of csrc/types.h."""
    return [
        weight.data_ptr(),
        0 if bias is None else bias.data_ptr(),
        0 if scale is None else scale.data_ptr(),
        in_degrees.data_ptr(),
        out_degrees.data_ptr(),
        weight.shape[1],
        weight.shape[0],
        weight.stride(0),
    ]


def structure_fields(structure: MadeStructure, kind: str | None) -> list[int]:
    return [
        structure.features,
        structure.params_per_feature,
        ACTIVATION_IDS[structure.activation],
        KIND_IDS[kind],
        int(structure.residual),
        int(structure.layout == "interleaved"),
    ]


def saved_rows(widths: Sequence[int], activation: int, residual: bool) -> int:
    """Rows that a block of samples keeps: inputs, hidden layers before and after their activation, parameters.

    ``widths`` are those of the inputs, the hidden layers and the outputs. As csrc/network.h lays them out.
    """
    rows, hidden = widths[0] + widths[-1], widths[1:-1]
    before = list(ACTIVATION_IDS)[activation] in NEED_PRE
    for index, width in enumerate(hidden):
        rows += width * (before or (residual and index % 2 == 0))
        rows += width * (not residual or index < len(hidden) - 1)
    return rows


def check_network(
    name: str, x: Tensor, context_term: Tensor | None, parameters: MadeParameters, structure: MadeStructure
) -> tuple[Tensor, Tensor | None, MadeParameters]:
    """The arguments of a network's op once they fit each other, of one dtype; context broadcast to the batch of x."""
    sizes = [len(degrees) for degrees in structure.degrees]
    count = len(sizes) - 1
    weights, biases, scales, _ = parameters
    for part, tensors in (("weights", weights), ("biases", biases), ("weight_scales", scales)):
        if len(tensors) != count:
            raise ValueError(f"{part} must be {count} tensors, one for each layer, got {len(tensors)}")
    named: dict[str, Tensor] = {name: x}
    for i in range(count):
        for part, tensor, shape in (
            ("weights", parameters.weights[i], (sizes[i + 1], sizes[i])),
            ("biases", parameters.biases[i], (sizes[i + 1],)),
            ("weight_scales", parameters.weight_scales[i], (sizes[i + 1],)),
        ):
            if tensor is None:
                continue
            if tensor.shape != shape:
                raise ValueError(f"{part}[{i}] must have shape {shape}, got {tuple(tensor.shape)}")
            named[f"{part}[{i}]"] = tensor
    if context_term is not None:
        named["context_term"] = context_term
    cast = dict(zip(named, _checks.same_kind(**named), strict=True))
    x, context_term = cast[name], cast.get("context_term")
    if x.dim() == 0 or x.shape[-1] != structure.features:
        raise ValueError(f"{name} must have shape (*, {structure.features}), got {tuple(x.shape)}")
    if context_term is not None:
        if context_term.dim() == 0 or context_term.shape[-1] != sizes[1]:
            raise ValueError(f"context_term must have shape (*, {sizes[1]}), got {tuple(context_term.shape)}")
        x, context_term = _checks.broadcast_batch((1, 1), **{name: x, "context_term": context_term})
    degrees = parameters.degrees
    if degrees is None:
        degrees = structure.degree_tensors(x.device)
    return (
        x,
        context_term,
        MadeParameters(
            [cast[f"weights[{i}]"] for i in range(count)],
            [cast.get(f"biases[{i}]") for i in range(count)],
            [cast.get(f"weight_scales[{i}]") for i in range(count)],
            degrees,
        ),
    )
