"""Flows for and from nflows."""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor, nn

from ..nn.flows import MaskedAutoregressiveFlow
from ..reference.affine_flow import LEAST_SCALE
from ._networks import activation_name, flow_of
from ._peers import check_flow, peer
from ._shared_made import check_blocks, network_of, residual_blocks

__all__ = ["from_nflows", "to_nflows"]


class _ActivatedContext(nn.Module):
    """What nflows adds to the first layer: the activation of a linear map of the context."""

    def __init__(self, linear: nn.Linear, activation: Any) -> None:
        super().__init__()
        self.linear, self.activation = copy.deepcopy(linear), activation

    def forward(self, context: Tensor) -> Tensor:
        return self.activation(self.linear(context))


def to_nflows(flow: nn.Module) -> Any:
    """A flow as nflows' ``Transform``: ``forward(inputs, context)`` maps data to noise, ``inverse`` noise to data.

    The transform's ``forward`` is the flow's ``inverse`` and the other way round: :class:`MaskedAutoregressiveFlow` is
    fast in densities, :class:`InverseAutoregressiveFlow` in sampling.

    Args:
        flow: a module with ``forward(z, context=None) -> (z, log_det)`` and ``inverse`` alike.

    Returns:
        A module whose parameters are the flow's, for ``nflows.flows.Flow``.

    Raises:
        ImportError: nflows is not installed.
        TypeError: ``flow`` is no module.
    """
    peer("nflows", "nflows")
    from ._nflows_transforms import NflowsTransform

    return NflowsTransform(check_flow(flow))


def from_nflows(transform: Any) -> MaskedAutoregressiveFlow:
    """nflows' ``MaskedAffineAutoregressiveTransform`` as a flow with the same weights.

    nflows maps data to noise in ``forward``: that is the flow's ``inverse``; its ``inverse`` is the flow's ``forward``.

    Args:
        transform: the transform. Without residual blocks it may take a context. The network of nflows ignores the
            context in the first feature's parameters, and so does the flow that reproduces it:
            :func:`fastvae.nn.check_autoregressive` says so.

    Returns:
        A flow of kind ``"softplus"`` with copies of the weights, on their device and of their dtype.

    Raises:
        ImportError: nflows is not installed.
        TypeError: another type of transform.
        ValueError: a setting or a mask that cannot be expressed; the error names it.
    """
    expected = peer("nflows.transforms.autoregressive", "nflows").MaskedAffineAutoregressiveTransform
    if not isinstance(transform, expected):
        raise TypeError(f"transform must be nflows' {expected.__name__}, got {type(transform).__name__}")
    if transform._epsilon != LEAST_SCALE:
        raise ValueError(f"the transform's least scale must be {LEAST_SCALE}, got {transform._epsilon}")
    network, features = transform.autoregressive_net, transform.features
    blocks_activation, activation = check_blocks(network), activation_name(network.activation)
    residual, context = residual_blocks(network), getattr(network, "context_layer", None)
    if blocks_activation not in (None, activation):
        raise ValueError(f"all activations must be the same, got {activation}, {blocks_activation}")
    if context is not None and residual:
        raise ValueError("context_features with use_residual_blocks=True cannot be expressed: a MADE adds it once")
    if not len(network.blocks) and network.use_residual_blocks:
        activation = "identity"
    made = network_of(network, features, activation, None if context is None else context.weight)
    if context is not None:
        made.add_module("context_layer", _ActivatedContext(context, network.activation))
    return flow_of(MaskedAutoregressiveFlow, [made], "softplus", transform.training)
