"""The arguments of ops on whole networks as the Triton launchers take them, and the launchers' gradients in order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from ..reference.masked_linear import row_factors
from ..structure import read_structure
from ._network import form_of
from ._network_call import OptionalTensors, Tensors, split_layers
from .masked_linear import NORM_BWD

Launcher = Callable[..., Any]


def run_forward(
    launcher: Launcher,
    z: Tensor,
    tensors: Tensors,
    present: Sequence[bool],
    degrees: Tensors,
    structure: Sequence[int],
    keep: bool,
    log_det_map: bool,
) -> tuple[Tensor, Tensor, Tensor | None]:
    found: tuple[Tensor, Tensor, Tensor | None] = launcher(
        z, *split_layers(tensors, present), degrees, form_of(structure), keep, log_det_map
    )
    return found


def run_backward(
    launcher: Launcher,
    d_out: Tensor,
    d_log_det: Tensor,
    saved: Tensor,
    kept: Tensors,
    present: Sequence[bool],
    normalized: bool,
    degrees: Tensors,
    structure: Sequence[int],
    needs: Sequence[bool],
) -> tuple[Tensor, OptionalTensors]:
    used, norms, z = _split_kept(kept, present)
    _, weights, biases, factors = split_layers(used, present)
    has_bias, of_layers = [t is not None for t in biases], _wants_layers(present, needs)
    found = launcher(d_out, d_log_det, saved, z, weights, has_bias, factors, degrees, form_of(structure), of_layers)
    return found.d_z, _in_order(found, used, norms, present, normalized, degrees, needs)


def run_inverse(
    launcher: Launcher,
    z: Tensor,
    tensors: Tensors,
    present: Sequence[bool],
    degrees: Tensors,
    structure: Sequence[int],
    keep: bool,
    log_det_map: bool,
    network: str,
) -> tuple[Tensor, Tensor, None]:
    """Keeps nothing: the backward pass computes the activations again."""
    kind = form_of(structure).kind
    x, log_det = launcher(z, *split_layers(tensors, present), read_structure(network), kind, log_det_map)
    return x, log_det, None


def run_inverse_gradient(
    launcher: Launcher,
    d_x: Tensor,
    d_log_det: Tensor,
    saved: Any,
    kept: Tensors,
    present: Sequence[bool],
    normalized: bool,
    degrees: Tensors,
    structure: Sequence[int],
    needs: Sequence[bool],
    network: str,
) -> tuple[Tensor, OptionalTensors]:
    used, norms, x = _split_kept(kept, present)
    layers, form = split_layers(used, present), form_of(structure)
    of_network, of_layers = any(needs), _wants_layers(present, needs)
    found = launcher(d_x, d_log_det, x, *layers, degrees, read_structure(network), form, of_network, of_layers)
    return found.d_z, _in_order(found, used, norms, present, normalized, degrees, needs)


def _wants_layers(present: Sequence[bool], needs: Sequence[bool]) -> bool:
    """Whether a gradient is wanted of a tensor that is not the context's term."""
    return any(need for i, need in enumerate(needs) if not (present[0] and i == len(present) // 2))


def _split_kept(kept: Tensors, present: Sequence[bool]) -> tuple[Tensors, Tensors, Tensor]:
    """What :meth:`NetworkCall.keep_all` put together: the tensors of the call, norms, and the network's input."""
    end = len(present) // 2 + sum(present)
    return kept[:end], kept[end:-1], kept[-1]


def _in_order(
    found: Any,
    used: Tensors,
    norms: Tensors,
    present: Sequence[bool],
    normalized: bool,
    degrees: Tensors,
    needs: Sequence[bool],
) -> OptionalTensors:
    """The gradients of a launcher in the order of the call's tensors; those of factors become those of gains."""
    _, weights, _, factors = split_layers(used, present)
    count = len(weights)
    context = [found.d_context_term if needs[count] else None] if present[0] else []
    if not found.d_weights:
        return [*[None] * count, *context, *[None] * sum(present[1:])]
    d_weights, d_factors = found.d_weights, found.d_weight_scales
    if normalized:
        scaled = [(i, factor) for i, factor in enumerate(factors) if factor is not None]
        for (i, factor), norm in zip(scaled, norms, strict=True):
            # A factor is gain / norm, and 0 where the norm is.
            d_gain = row_factors(d_factors[i], norm)
            d_weights[i] += NORM_BWD.triton(-d_gain * factor, norm, weights[i], degrees[i], degrees[i + 1])
            d_factors[i] = d_gain
    return [*d_weights, *context, *[t for t in (*found.d_biases, *d_factors) if t is not None]]
