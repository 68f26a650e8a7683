"""What the masked layers' ops share: checks of layers, and how the extension is told of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import backend
from .._integers import integer
from ..backend import Route
from ..reference.affine_flow import KINDS
from ..reference.made import MadeParameters
from ..reference.masked_linear import ACTIVATIONS
from ..structure import MadeStructure
from . import _checks

# The extension's numbers (csrc/base/codes.h).
ACTIVATION_IDS = {name: index for index, name in enumerate(ACTIVATIONS)}
KIND_IDS = {None: 0} | {name: index for index, name in enumerate(KINDS, 1)}
# Activations whose derivative needs the pre-activation; for the others it follows from their value.
NEED_PRE = ("gelu", "silu")
# Samples of a block of saved activations (csrc/base/types.h).
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


def degrees_of(name: str, degrees: Sequence[int] | Tensor, count: int) -> tuple[int, ...]:
    """``degrees`` as Python integers, for a layer that keeps them.

    Raises:
        TypeError: one is no integer.
        ValueError: there are not ``count``.
    """
    given = degrees.tolist() if isinstance(degrees, Tensor) else list(degrees)
    if len(given) != count:
        raise ValueError(f"{name} must be {count} integers, got {len(given)}")
    return tuple(integer(f"{name}[{i}]", degree) for i, degree in enumerate(given))


def structure_fields(structure: MadeStructure, kind: str | None) -> list[int]:
    """A structure's numbers for the extension (csrc/base/types.h), made, and the kind checked, once for each kind."""
    fields = structure.fields.get(kind)
    if fields is not None:
        return fields
    if kind is not None:
        check_kind(kind, structure)
    fields = [
        structure.features,
        structure.params_per_feature,
        ACTIVATION_IDS[structure.activation],
        KIND_IDS[kind],
        int(structure.residual),
        int(structure.layout == "interleaved"),
    ]
    if not torch.compiler.is_compiling():
        structure.fields[kind] = fields
    return fields


def saved_rows(widths: Sequence[int], activation: int, residual: bool) -> int:
    """Rows that a block of samples keeps: inputs, hidden layers before and after their activation, parameters.

    ``widths`` are those of the inputs, the hidden layers and the outputs. As csrc/network/network.h lays them out.
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
    weights, biases, scales, degrees, normalized = parameters
    sizes = [len(degrees) for degrees in structure.degrees]
    _check_layers(sizes, weights, biases, scales)
    point, context_term, *layers = _of_one_kind(name, x, context_term, weights, biases, scales)
    assert point is not None
    x = point
    if x.dim() == 0 or x.shape[-1] != structure.features:
        raise ValueError(f"{name} must have shape (*, {structure.features}), got {tuple(x.shape)}")
    if context_term is not None:
        if context_term.dim() == 0 or context_term.shape[-1] != sizes[1]:
            raise ValueError(f"context_term must have shape (*, {sizes[1]}), got {tuple(context_term.shape)}")
        x, context_term = _checks.broadcast_batch((1, 1), **{name: x, "context_term": context_term})
    count = len(weights)
    weights = [t for t in layers[:count] if t is not None]
    if degrees is None:
        degrees = structure.degree_tensors(x.device)
    return x, context_term, MadeParameters(weights, layers[count : 2 * count], layers[2 * count :], degrees, normalized)


def for_autocast(
    x: Tensor, context_term: Tensor | None, parameters: MadeParameters
) -> tuple[Tensor, Tensor | None, MadeParameters]:
    """A network's tensors in the dtype of autocast."""
    dtype = torch.get_autocast_dtype(x.device.type)
    weights, biases, scales = ([_checks.to_autocast(t, dtype) for t in part] for part in parameters[:3])
    return (
        _checks.to_autocast(x, dtype),
        _checks.to_autocast(context_term, dtype),
        parameters._replace(weights=weights, biases=biases, weight_scales=scales),
    )


def route_network(
    name: str, impl: str, x: Tensor, context_term: Tensor | None, parameters: MadeParameters
) -> tuple[Route, Tensor, Tensor | None, MadeParameters]:
    """Who runs a network's call, and its tensors as they take them."""
    weights, biases, scales, degrees, normalized = parameters
    of_layers = (*weights, *biases, *scales)
    names = (name, "context_term", *_layer_names(len(weights)))
    route, (x, context_term, *layers) = backend.route(impl, x, context_term, *of_layers, names=names)
    ends = len(weights), len(weights) + len(biases)
    parts = layers[: ends[0]], layers[ends[0] : ends[1]], layers[ends[1] :]
    return route, x, context_term, MadeParameters(*parts, degrees, normalized)


def _layer_names(count: int) -> list[str]:
    return [f"{part}[{i}]" for part in ("weights", "biases", "weight_scales") for i in range(count)]


def _check_layers(sizes: Sequence[int], *parts: Sequence[Tensor | None]) -> None:
    count = len(sizes) - 1
    for name, tensors in zip(("weights", "biases", "weight_scales"), parts, strict=True):
        if len(tensors) != count:
            raise ValueError(f"{name} must be {count} tensors, one for each layer, got {len(tensors)}")
        for i, t in enumerate(tensors):
            shape = (sizes[i + 1], sizes[i]) if name == "weights" else (sizes[i + 1],)
            if t is None and name == "weights":
                raise TypeError(f"weights[{i}] must be a tensor of shape {shape}, got None")
            if t is not None and t.shape != shape:
                raise ValueError(f"{name}[{i}] must have shape {shape}, got {tuple(t.shape)}")


def _of_one_kind(
    name: str, x: Tensor, context_term: Tensor | None, *parts: Sequence[Tensor | None]
) -> list[Tensor | None]:
    """All tensors in one row, of one dtype and on one device; None stays None."""
    tensors = [x, context_term, *(t for part in parts for t in part)]
    if isinstance(x, Tensor) and x.dtype in _checks.DTYPES:
        dtype, device = x.dtype, x.device
        if all(t is None or (t.dtype is dtype and t.device == device) for t in tensors):
            return tensors
    names = _layer_names(len(parts[0]))
    named = {n: t for n, t in zip((name, "context_term", *names), tensors, strict=True) if t is not None}
    cast = dict(zip(named, _checks.same_kind(**named), strict=True))
    return [cast.get(n) for n in (name, "context_term", *names)]
