"""Flows for and from zuko."""

from __future__ import annotations

from typing import Any

from torch import nn

from ..nn.flows import InverseAutoregressiveFlow, MaskedAutoregressiveFlow
from ..nn.made import MADE
from ._networks import Layer, activation_name, blocked, flow_of, made_of, split_context
from ._peers import check_flow, peer

__all__ = ["from_zuko", "to_zuko"]


def to_zuko(flow: nn.Module) -> Any:
    """A flow as zuko's ``LazyTransform``: called with a context it returns a transform from data to latents.

    The transform is the flow's ``inverse``, and its ``inv``, which samples, the flow's ``forward``:
    :class:`MaskedAutoregressiveFlow` is fast in densities, :class:`InverseAutoregressiveFlow` in sampling.

    Args:
        flow: a module with ``forward(z, context=None) -> (z, log_det)`` and ``inverse`` alike.

    Returns:
        A module whose parameters are the flow's, for ``zuko.flows.Flow``.

    Raises:
        ImportError: zuko is not installed.
        TypeError: ``flow`` is no module.
    """
    peer("zuko", "zuko")
    from ._zuko_transforms import LazyFlowTransform

    return LazyFlowTransform(check_flow(flow))


def from_zuko(transform: Any) -> MaskedAutoregressiveFlow | InverseAutoregressiveFlow:
    """zuko's affine ``MaskedAutoregressiveTransform``, or a composition of such, as a flow with the same weights.

    zuko's transforms map data to latents: the flow's ``inverse`` is their call, its ``forward`` their ``inv``. What is
    inverted as a whole, zuko's way to an inverse autoregressive flow, becomes an :class:`InverseAutoregressiveFlow`.

    Args:
        transform: a ``MaskedAutoregressiveTransform`` with its default, affine, univariate transform; the ``inv`` of
            one; a ``LazyComposedTransform`` of such; or a ``Flow`` such as ``MAF``, of which the transform is taken and
            the base distribution left out.

    Returns:
        A flow of kind ``"exp"`` with copies of the weights, a step for each transform, on their device and of their
        dtype.

    Raises:
        ImportError: zuko is not installed.
        TypeError: another type of transform.
        ValueError: a setting or a mask that cannot be expressed; the error names it.
    """
    parts = _parts(transform, inverted=False)
    inverted = [inverse for _, inverse in parts]
    if len(set(inverted)) > 1:
        raise ValueError("transform must be composed of transforms or of inverses, not of both: convert each alone")
    networks = [_network(part) for part, _ in parts]
    training = parts[0][0].training
    if inverted[0]:
        return flow_of(InverseAutoregressiveFlow, networks[::-1], "exp", training)
    return flow_of(MaskedAutoregressiveFlow, networks, "exp", training)


def _parts(transform: Any, inverted: bool) -> list[tuple[Any, bool]]:
    """The masked autoregressive transforms in the order in which data meet them, and which are inverted."""
    flows, lazy = peer("zuko.flows", "zuko"), peer("zuko.lazy", "zuko")
    if isinstance(transform, lazy.Flow):
        return _parts(transform.transform, inverted)
    if isinstance(transform, lazy.LazyInverse):
        return _parts(transform.transform, not inverted)
    if isinstance(transform, lazy.LazyComposedTransform):
        order = reversed(transform.transforms) if inverted else transform.transforms
        return [part for inner in order for part in _parts(inner, inverted)]
    if isinstance(transform, flows.MaskedAutoregressiveTransform):
        return [(transform, inverted)]
    raise TypeError(
        "transform must be zuko's MaskedAutoregressiveTransform, its inverse, a composition of such or a Flow, got "
        f"{type(transform).__name__}"
    )


def _network(transform: Any) -> MADE:
    layers_of, affine = peer("zuko.nn", "zuko"), peer("zuko.transforms", "zuko").MonotonicAffineTransform
    if transform.univariate is not affine or [tuple(shape) for shape in transform.shapes] != [(), ()]:
        name = getattr(transform.univariate, "__name__", repr(transform.univariate))
        raise ValueError(f"univariate must be MonotonicAffineTransform with its default slope, got {name}")
    layers, activations = [], []
    for name, module in transform.hyper.named_children():
        if isinstance(module, layers_of.MaskedLinear):
            layers.append(Layer(f"hyper.{name}", module.weight, module.bias, module.mask))
        elif isinstance(module, layers_of.Residual):
            raise ValueError(
                "residual=True cannot be expressed: zuko's blocks have no activation before their first layer"
            )
        else:
            activations.append(activation_name(module))
    if len(layers) < 2:
        raise ValueError("hidden_features must name one or more layers: a MADE has at least one")
    if len(set(activations)) > 1:
        raise ValueError(f"all activations must be the same, got {', '.join(activations)}")
    features = layers[-1].weight.shape[0] // 2
    layers[0], context_weight = split_context(layers[0], slice(features, None), slice(0, features))
    layers[-1] = blocked(layers[-1], features, shift_first=True)
    return made_of(layers, features, activations[0], context_weight=context_weight)
