"""Flows for and from zuko."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.distributions import AffineTransform

from ..nn.made import MADE
from ._chains import Affine, ConvertedFlow, Part, Reordering, Step, cannot_express, chain_of, inside, name_layer
from ._networks import Layer, activation_name, build_made, split_context, to_blocked
from ._peers import check_flow, peer

__all__ = ["from_zuko", "to_zuko"]

KNOWN = (
    "zuko's MaskedAutoregressiveTransform, its inverse, a composition of such, a Flow, or an UnconditionalTransform of "
    "AffineTransform, MonotonicAffineTransform or PermutationTransform"
)


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


def from_zuko(transform: Any) -> ConvertedFlow:
    """zuko's affine ``MaskedAutoregressiveTransform``, or a composition with such, as a flow with the same weights.

    zuko's transforms map data to latents: the flow's ``inverse`` is their call, its ``forward`` their ``inv``. An
    inverted transform, zuko's way to an inverse autoregressive flow, becomes an :class:`InverseAutoregressiveFlow`.

    If sbi has built the flow, pass its ``net``. Its z-score of the parameters is an affine map in the composition and
    becomes a fixed :class:`~fastvae.nn.AffineTransform`. Its ``embedding_net``, with the z-score of the condition,
    stays outside: its result is the context.

    Args:
        transform: a ``MaskedAutoregressiveTransform`` with its default, affine, univariate transform; an
            ``UnconditionalTransform`` of ``AffineTransform``, ``MonotonicAffineTransform`` or
            ``PermutationTransform``; the ``inv`` of one; a ``LazyComposedTransform`` of such; or a ``Flow`` such as
            ``MAF``, whose transform is taken without the base distribution.

    Returns:
        A flow of kind ``"exp"`` with copies of the weights, a step for each transform, on their device and of their
        dtype; a :class:`~fastvae.nn.FlowSequence` where a composition holds more than autoregressive transforms of one
        direction.

    Raises:
        ImportError: zuko is not installed.
        TypeError: another type of transform.
        ValueError: a part of a composition, a setting or a mask that cannot be expressed; the error names it.
    """
    return chain_of(_parts(transform, "", inverted=False)[::-1])


def _parts(transform: Any, path: str, inverted: bool) -> list[Part]:
    """The parts of ``transform``, as maps from latents to data, in the order in which data meet them."""
    flows, lazy = peer("zuko.flows", "zuko"), peer("zuko.lazy", "zuko")
    if isinstance(transform, lazy.Flow):
        return _parts(transform.transform, path, inverted)
    if isinstance(transform, lazy.LazyInverse):
        return _parts(transform.transform, path, not inverted)
    if isinstance(transform, lazy.LazyComposedTransform):
        inner = list(enumerate(transform.transforms))
        return [
            part
            for index, t in (reversed(inner) if inverted else inner)
            for part in _parts(t, inside(path, index), inverted)
        ]
    with name_layer(path):
        if isinstance(transform, flows.MaskedAutoregressiveTransform):
            return [Step(_network(transform), "exp", not inverted, transform.training)]
        if isinstance(transform, lazy.UnconditionalTransform | lazy.Unconditional):
            part = _convert_fixed(transform())
            if part is not None:
                return [part if inverted else part.inverse()]
            raise cannot_express(transform(), path, KNOWN)
    raise cannot_express(transform, path, KNOWN)


def _convert_fixed(transform: Any) -> Affine | Reordering | None:
    """The part for a transform of torch or zuko without a context; None if its type is unknown."""
    zuko = peer("zuko.transforms", "zuko")
    if isinstance(transform, AffineTransform):
        return Affine.of(transform.loc, transform.scale)
    if isinstance(transform, zuko.MonotonicAffineTransform):
        return Affine.of(transform.shift, transform.scale)
    if isinstance(transform, zuko.PermutationTransform):
        return Reordering(transform.order)
    return None


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
    layers[-1] = to_blocked(layers[-1], features, shift_first=True)
    return build_made(layers, features, activations[0], context_weight=context_weight)
