"""Flows for and from nflows."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..nn.made import MADE
from ..reference.affine_flow import LEAST_SCALE
from ._chains import Affine, ConvertedFlow, Part, Reordering, Step, cannot_express, chain_of, inside, name_layer
from ._networks import Layer, activation_name, build_made
from ._peers import check_flow, peer
from ._shared_made import check_blocks, layers_of, residual_blocks

__all__ = ["from_nflows", "to_nflows"]

KNOWN = (
    "nflows' MaskedAffineAutoregressiveTransform, Permutation, PointwiseAffineTransform, CompositeTransform "
    "or InverseTransform"
)
# Activations that leave positive numbers as they are.
IDENTITY_ABOVE_ZERO = ("relu", "elu", "identity")


class _ActivatedContext(nn.Module):
    """What nflows adds to the first layer: the activation of a linear map of the context.

    With ``carried``, units of their own, of degree 0, hold the positive and the negative part of the context. Residual
    blocks leave them alone and read them, since nflows adds a linear map of the context in every block.
    """

    def __init__(self, linear: nn.Linear, activation: Any, carried: bool) -> None:
        super().__init__()
        self.linear, self.activation, self.carried = copy.deepcopy(linear), activation, carried

    def forward(self, context: Tensor) -> Tensor:
        added = self.activation(self.linear(context))
        return torch.cat([added, context.relu(), (-context).relu()], -1) if self.carried else added


def to_nflows(flow: nn.Module) -> Any:
    """A flow as nflows' ``Transform``: ``forward(inputs, context)`` maps data to noise, ``inverse`` noise to data.

    The transform's ``forward`` is the flow's ``inverse`` and the other way round: :class:`MaskedAutoregressiveFlow` is
    fast in densities, :class:`InverseAutoregressiveFlow` in sampling.

    Args:
        flow: a module with ``forward(z, context=None) -> (z, log_det)`` and ``inverse`` alike.

    Returns:
        A module with the parameters of the flow, for ``nflows.flows.Flow``.

    Raises:
        ImportError: nflows is not installed.
        TypeError: ``flow`` is no module.
    """
    peer("nflows", "nflows")
    from ._nflows_transforms import NflowsTransform

    return NflowsTransform(check_flow(flow))


def from_nflows(transform: Any) -> ConvertedFlow:
    """nflows' ``MaskedAffineAutoregressiveTransform``, or a composition with such, as a flow with the same weights.

    nflows maps data to noise in ``forward``: that is the flow's ``inverse``; its ``inverse`` is the flow's ``forward``.

    Args:
        transform: a ``MaskedAffineAutoregressiveTransform``, a ``Permutation`` or a ``PointwiseAffineTransform``; an
            ``InverseTransform`` of one; or a ``CompositeTransform`` of such.

    Returns:
        A flow of kind ``"softplus"`` with copies of the weights, on their device and of their dtype: a
        :class:`~fastvae.nn.MaskedAutoregressiveFlow`. The ``order`` of its networks expresses the permutations. A
        :class:`~fastvae.nn.FlowSequence` holds it together with the other parts of a composition: a last permutation,
        affine maps, inverted transforms.

    Raises:
        ImportError: nflows is not installed.
        TypeError: another type of transform.
        ValueError: a part of a composition, a setting or a mask that cannot be expressed; the error names it.

    Note:
        nflows' networks ignore the context in the first feature's parameters, and so does the flow at first. Without
        residual blocks it always does, and :func:`fastvae.nn.check_autoregressive` says so. In residual blocks a
        context needs the activation ReLU or ELU: two hidden units more for each of its features carry it to the blocks.
        Training may connect them to the first feature too.
    """
    return chain_of(_parts(transform, "", inverted=False)[::-1])


def _parts(transform: Any, path: str, inverted: bool) -> list[Part]:
    """The parts of ``transform``, as maps from noise to data, in the order in which data pass them."""
    transforms = peer("nflows.transforms", "nflows")
    if isinstance(transform, transforms.CompositeTransform):
        inner = list(enumerate(transform._transforms))
        return [
            part
            for index, t in (reversed(inner) if inverted else inner)
            for part in _parts(t, inside(path, index), inverted)
        ]
    if isinstance(transform, transforms.InverseTransform):
        return _parts(transform._transform, path, not inverted)
    with name_layer(path):
        if isinstance(transform, transforms.MaskedAffineAutoregressiveTransform):
            return [Step(_network(transform), "softplus", not inverted, transform.training)]
        if isinstance(transform, transforms.Permutation):
            if transform._dim != 1:
                raise ValueError(f"dim of a permutation must be 1, the features, got {transform._dim}")
            reordering = Reordering(transform._permutation)
            return [reordering if inverted else reordering.inverse()]
        if isinstance(transform, transforms.PointwiseAffineTransform):
            affine = Affine.of(transform._shift, transform._scale)
            return [affine if inverted else affine.inverse()]
    raise cannot_express(transform, path, KNOWN)


def _network(transform: Any) -> MADE:
    if transform._epsilon != LEAST_SCALE:
        raise ValueError(f"the transform's least scale must be {LEAST_SCALE}, got {transform._epsilon}")
    network, features = transform.autoregressive_net, transform.features
    blocks_activation, activation = check_blocks(network), activation_name(network.activation)
    residual, context = residual_blocks(network), getattr(network, "context_layer", None)
    if blocks_activation not in (None, activation):
        raise ValueError(f"all activations must be the same, got {activation}, {blocks_activation}")
    if not len(network.blocks) and network.use_residual_blocks:
        activation = "identity"
    layers = layers_of(network, features)
    if context is None:
        return build_made(layers, features, activation, residual=residual)
    if residual:
        if activation not in IDENTITY_ABOVE_ZERO:
            raise ValueError(
                f"context_features with use_residual_blocks=True needs the activation relu or elu, got {activation}; "
                "without residual blocks any will do"
            )
        layers = _with_carried_context(layers, [block.context_layer for block in network.blocks])
    width = len(layers[0].weight)
    made = build_made(
        layers,
        features,
        activation,
        residual=residual,
        context_weight=context.weight.new_zeros(width, context.in_features),
    )
    made.add_module("context_layer", _ActivatedContext(context, network.activation, residual))
    return made


@torch.no_grad()
def _with_carried_context(layers: Sequence[Layer], contexts: Sequence[nn.Linear]) -> list[Layer]:
    """Residual layers with hidden units that carry the positive and the negative part of the context.

    An activation that leaves positive numbers alone gives both parts back, and their difference is the context.
    """
    first, *hidden, last = layers
    extra = 2 * contexts[0].in_features
    # Units that see no feature: these, and all where there is only one feature.
    free = torch.cat([first.mask.new_zeros(len(first.mask)) + (first.mask == 0).all(1), first.mask.new_ones(extra)])

    def rows(t: Tensor) -> Tensor:
        return torch.cat([t, t.new_zeros(extra, *t.shape[1:])])

    def columns(t: Tensor, value: float = 0.0) -> Tensor:
        return torch.cat([t, t.new_full((len(t), extra), value)], 1)

    def hidden_layer(layer: Layer, linear: nn.Linear | None) -> Layer:
        weight, bias = layer.weight, layer.bias
        weight = columns(weight) if linear is None else torch.cat([weight, linear.weight, -linear.weight], 1)
        assert bias is not None
        bias = bias if linear is None else bias + linear.bias
        mask = torch.cat([columns(layer.mask, 1.0), free.expand(extra, -1)])
        return Layer(layer.name, rows(weight), rows(bias), mask)

    assert first.bias is not None
    start = Layer(first.name, rows(first.weight), rows(first.bias), rows(first.mask))
    end = Layer(last.name, columns(last.weight), last.bias, columns(last.mask, 1.0))
    blocks = [hidden_layer(layer, None if index % 2 else contexts[index // 2]) for index, layer in enumerate(hidden)]
    return [start, *blocks, end]
