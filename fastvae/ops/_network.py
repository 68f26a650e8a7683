"""What ops on whole masked networks share: the numbers that describe one, and checks of its tensors."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from .. import backend
from ..backend import Route
from ..precision import DTYPES, to_autocast
from ..reference.affine_flow import KINDS
from ..reference.made import MadeParameters
from ..structure import ACTIVATION_NAMES, MadeStructure
from ..structure.kept_activations import NetworkForm
from . import _checks
from ._layers import ACTIVATION_IDS, KIND_IDS, NEED_PRE, check_kind

# Samples of a block of saved activations (csrc/base/types.h).
LANES = 64


class NetworkFields(NamedTuple):
    """A network's numbers as ops and the extension take them, in this order."""

    features: int
    params_per_feature: int
    activation: int
    kind: int
    residual: int
    interleaved: int


def structure_fields(structure: MadeStructure, kind: str | None) -> list[int]:
    """The :class:`NetworkFields` of a structure; they are made, and the kind is checked, once for each kind."""
    fields = structure.fields.get(kind)
    if fields is not None:
        return fields
    if kind is not None:
        check_kind(kind)
        needed = 1 if kind == "location_only" else 2
        if structure.params_per_feature != needed:
            raise ValueError(f"kind={kind!r} takes params_per_feature={needed}, got {structure.params_per_feature}")
    fields = list(
        NetworkFields(
            structure.features,
            structure.params_per_feature,
            ACTIVATION_IDS[structure.activation],
            KIND_IDS[kind],
            int(structure.residual),
            int(structure.layout == "interleaved"),
        )
    )
    if not torch.compiler.is_compiling():
        structure.fields[kind] = fields
    return fields


def form_of(numbers: Sequence[int]) -> NetworkForm:
    """What the Triton launchers take of a network's :class:`NetworkFields`."""
    return _make_form(*map(int, numbers))


@lru_cache(maxsize=256)
def _make_form(*numbers: int) -> NetworkForm:
    fields = NetworkFields(*numbers)
    kind, activation = (None, *KINDS)[fields.kind], ACTIVATION_NAMES[fields.activation]
    return NetworkForm(kind, activation, bool(fields.residual), bool(fields.interleaved))


def count_saved_on(
    device: torch.device, n: int, dtype: torch.dtype, widths: Sequence[int], numbers: Sequence[int]
) -> int:
    """Numbers that the forward pass of ``n`` samples of ``dtype`` keeps on ``device``."""
    if device.type == "cuda":
        return form_of(numbers).count_kept(n, dtype, widths)
    return count_saved(n, widths, NetworkFields(*numbers))


def count_saved(n: int, widths: Sequence[int], fields: NetworkFields) -> int:
    """Numbers that the forward pass of ``n`` samples keeps on a CPU, as csrc lays them out.

    A block of samples keeps the inputs, hidden layers before and after their activation, and the parameters.
    ``widths`` are those of the inputs, the hidden layers and the outputs.
    """
    rows, hidden = widths[0] + widths[-1], widths[1:-1]
    before = list(ACTIVATION_IDS)[fields.activation] in NEED_PRE
    for index, width in enumerate(hidden):
        has_input = before or bool(fields.residual and index % 2 == 0)
        has_output = not fields.residual or index < len(hidden) - 1
        # Not every torch multiplies a symbolic size by a truth value.
        rows += width * (int(has_input) + int(has_output))
    return (n + LANES - 1) // LANES * rows * LANES


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
    weights, biases, scales = ([to_autocast(t, dtype) for t in part] for part in parameters[:3])
    return (
        to_autocast(x, dtype),
        to_autocast(context_term, dtype),
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
    tensors = [x, context_term]
    for part in parts:
        tensors += part
    if isinstance(x, Tensor) and x.dtype in DTYPES:
        dtype, device = x.dtype, x.device
        if not [t for t in tensors if t is not None and not (t.dtype is dtype and t.device == device)]:
            return tensors
    names = _layer_names(len(parts[0]))
    named = {n: t for n, t in zip((name, "context_term", *names), tensors, strict=True) if t is not None}
    cast = dict(zip(named, _checks.to_same_kind(**named), strict=True))
    return [cast.get(n) for n in (name, "context_term", *names)]
