"""Flows from normflows."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ..nn.flows import InverseAutoregressiveFlow
from ._networks import Layer, flow_of, made_of
from ._peers import peer
from ._shared_made import check_blocks, layers_of, residual_blocks

__all__ = ["from_normflows"]

SCALE_BIAS = 2.0


def from_normflows(flow: Any) -> InverseAutoregressiveFlow:
    """normflows' ``MaskedAffineAutoregressive`` as a flow with the same weights.

    Both map base noise to sample in ``forward``. normflows' scale, sigmoid(s + 2) + 0.001, becomes the kind
    ``"sigmoid"``, with the 2 part of the last layer's bias.

    Args:
        flow: the flow. Without residual blocks nothing stands between its first two layers, and they become one, their
            product.

    Returns:
        A flow with copies of the weights, on their device and of their dtype.

    Raises:
        ImportError: normflows is not installed.
        TypeError: another type of flow.
        ValueError: a setting or a mask that cannot be expressed, such as a context; the error names it.
    """
    expected = peer("normflows.flows.affine.autoregressive", "normflows").MaskedAffineAutoregressive
    if not isinstance(flow, expected):
        raise TypeError(f"flow must be normflows' {expected.__name__}, got {type(flow).__name__}")
    network, features = flow.autoregressive_net, flow.features
    if hasattr(network, "context_layer"):
        raise ValueError("context_features cannot be expressed: normflows gates every block by the context")
    if not isinstance(network.preprocessing, nn.Identity):
        raise ValueError(f"preprocessing cannot be expressed, got {type(network.preprocessing).__name__}")
    activation, residual = check_blocks(network), residual_blocks(network)
    layers = layers_of(network, features)
    if activation is not None and not residual:
        layers[:2] = [_product(*layers[:2])]
    made = made_of(layers, features, activation or "identity", residual=residual)
    with torch.no_grad():
        made.masked_layers()[-1].bias[features:] += SCALE_BIAS
    return flow_of(InverseAutoregressiveFlow, [made], "sigmoid", flow.training)


@torch.no_grad()
def _product(first: Layer, second: Layer) -> Layer:
    """Two linear layers as one; a connection is where a path is, or may be by the degrees of the second's units."""
    weight = second.weight * second.mask
    bias = None if first.bias is None else weight @ first.bias
    if second.bias is not None:
        bias = second.bias if bias is None else bias + second.bias
    paths = second.mask.to(weight.dtype) @ first.mask.to(weight.dtype) > 0
    return Layer(f"{second.name} after {first.name}", weight @ (first.weight * first.mask), bias, paths)
