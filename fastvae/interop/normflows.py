"""Flows from normflows."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ..nn.flows import InverseAutoregressiveFlow
from ..nn.planar import PlanarFlow
from ._networks import Layer, build_made, flow_of
from ._peers import peer
from ._shared_made import check_blocks, layers_of, residual_blocks

__all__ = ["from_normflows"]

SCALE_BIAS = 2.0


def from_normflows(flow: Any) -> InverseAutoregressiveFlow | PlanarFlow:
    """normflows' ``MaskedAffineAutoregressive`` or ``Planar`` as a flow with the same weights.

    Both map base noise to sample in ``forward``. normflows' scale, sigmoid(s + 2) + 0.001, becomes the kind
    ``"sigmoid"``, with the 2 part of the last layer's bias.

    Args:
        flow: the flow. Without residual blocks an autoregressive flow has no activation between its first two layers;
            they become one layer, their product. A ``Planar`` may have either activation; it must map vectors.

    Returns:
        A flow with copies of the weights, on their device and of their dtype.

    Raises:
        ImportError: normflows is not installed.
        TypeError: another type of flow.
        ValueError: a setting or a mask that cannot be expressed, such as a context; the error names it.
    """
    flows = peer("normflows.flows", "normflows")
    if isinstance(flow, flows.Planar):
        return _planar(flow)
    if not isinstance(flow, flows.MaskedAffineAutoregressive):
        raise TypeError(f"flow must be normflows' MaskedAffineAutoregressive or Planar, got {type(flow).__name__}")
    network, features = flow.autoregressive_net, flow.features
    if hasattr(network, "context_layer"):
        raise ValueError("context_features cannot be expressed: normflows gates every block by the context")
    if not isinstance(network.preprocessing, nn.Identity):
        raise ValueError(f"preprocessing cannot be expressed, got {type(network.preprocessing).__name__}")
    activation, residual = check_blocks(network), residual_blocks(network)
    layers = layers_of(network, features)
    if activation is not None and not residual:
        layers[:2] = [_product(*layers[:2])]
    made = build_made(layers, features, activation or "identity", residual=residual)
    with torch.no_grad():
        made.masked_layers()[-1].bias[features:] += SCALE_BIAS
    return flow_of(InverseAutoregressiveFlow, [made], "sigmoid", flow.training)


@torch.no_grad()
def _planar(flow: Any) -> PlanarFlow:
    if flow.w.dim() != 2:
        raise ValueError(f"shape of a Planar must be (D,), got {tuple(flow.w.shape[1:])}")
    slope = flow.h.negative_slope if flow.act == "leaky_relu" else 0.2
    own = PlanarFlow(
        flow.w.shape[1], activation=flow.act, negative_slope=slope, device=flow.w.device, dtype=flow.w.dtype
    )
    own.bias.copy_(torch.cat([flow.w[0], flow.u[0], flow.b.reshape(1)]))
    return own.train(flow.training)


@torch.no_grad()
def _product(first: Layer, second: Layer) -> Layer:
    """Two linear layers as one; a connection is where a path is, or may be by the degrees of the second's units."""
    weight = second.weight * second.mask
    bias = None if first.bias is None else weight @ first.bias
    if second.bias is not None:
        bias = second.bias if bias is None else bias + second.bias
    paths = second.mask.to(weight.dtype) @ first.mask.to(weight.dtype) > 0
    return Layer(f"{second.name} after {first.name}", weight @ (first.weight * first.mask), bias, paths)
