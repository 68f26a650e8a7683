"""Flows built around the layers of another library's masked network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..nn.flows import InverseAutoregressiveFlow, MaskedAutoregressiveFlow
from ..nn.made import MADE
from ._masks import degrees_of

__all__ = ["Layer", "activation_name", "build_made", "flow_of", "split_context", "to_blocked"]

Flow = TypeVar("Flow", InverseAutoregressiveFlow, MaskedAutoregressiveFlow)

FUNCTIONS = {
    functional.relu: "relu",
    torch.relu: "relu",
    functional.elu: "elu",
    functional.tanh: "tanh",
    torch.tanh: "tanh",
    functional.softplus: "softplus",
    functional.gelu: "gelu",
    functional.silu: "silu",
}
# The name of each module's activation here, and the settings that it has.
MODULES: dict[type[nn.Module], tuple[str, dict[str, Any]]] = {
    nn.ReLU: ("relu", {}),
    nn.ELU: ("elu", {"alpha": 1.0}),
    nn.Tanh: ("tanh", {}),
    nn.Softplus: ("softplus", {"beta": 1.0, "threshold": 20.0}),
    nn.GELU: ("gelu", {"approximate": "none"}),
    nn.SiLU: ("silu", {}),
    nn.Identity: ("identity", {}),
}


class Layer(NamedTuple):
    """A masked linear layer of a peer."""

    name: str
    weight: Tensor
    bias: Tensor | None
    mask: Tensor


def activation_name(activation: Any) -> str:
    """Our name of a peer's activation, a function or a module.

    Raises:
        ValueError: there is none.
    """
    if isinstance(activation, nn.Module):
        name, settings = MODULES.get(type(activation), ("", {}))
        if name and all(getattr(activation, key) == value for key, value in settings.items()):
            return name
    elif activation in FUNCTIONS:
        return FUNCTIONS[activation]
    known = ", ".join(sorted(set(FUNCTIONS.values())))
    shown = repr(activation) if isinstance(activation, nn.Module) else getattr(activation, "__name__", repr(activation))
    raise ValueError(f"the activation {shown} cannot be expressed, only {known}, with their default settings")


def to_blocked(layer: Layer, features: int, shift_first: bool) -> Layer:
    """A last layer with outputs ``(D, 2)`` as one with outputs ``(2, D)``, the shifts first."""
    rows = torch.arange(2 * features, device=layer.weight.device).view(features, 2).T
    rows = (rows if shift_first else rows.flip(0)).reshape(-1)
    bias = None if layer.bias is None else layer.bias[rows]
    return Layer(layer.name, layer.weight[rows], bias, layer.mask[rows])


def split_context(layer: Layer, context: slice, inputs: slice) -> tuple[Layer, Tensor | None]:
    """A first layer on features and context as one on the features, and the context's weights, if any.

    Raises:
        ValueError: some unit does not see all of the context.
    """
    if layer.weight[:, context].shape[1] == 0:
        return layer, None
    if not (layer.mask[:, context] != 0).all():
        raise ValueError(f"the mask of {layer.name} cannot be expressed: not every unit sees all of the context")
    rest = Layer(layer.name, layer.weight[:, inputs], layer.bias, layer.mask[:, inputs])
    return rest, layer.weight[:, context]


@torch.no_grad()
def build_made(
    layers: Sequence[Layer],
    features: int,
    activation: str,
    *,
    residual: bool = False,
    context_weight: Tensor | None = None,
) -> MADE:
    """A network with two parameters for each feature, shifts and scales, and copies of the layers' weights."""
    masks = [(layer.mask != 0).cpu() for layer in layers]
    order, hidden_degrees = degrees_of(masks, [layer.name for layer in layers], features, one_hidden=residual)
    like = layers[0].weight
    network = MADE(
        features,
        [len(degrees) for degrees in hidden_degrees],
        context_features=0 if context_weight is None else context_weight.shape[1],
        order=order,
        hidden_degrees=hidden_degrees,
        activation=activation,
        residual=residual,
        device=like.device,
        dtype=like.dtype,
    )
    for own, layer in zip(network.masked_layers(), layers, strict=True):
        own.weight.copy_(layer.weight)
        own.bias.copy_(torch.zeros_like(own.bias) if layer.bias is None else layer.bias)
    if context_weight is not None:
        assert network.context_layer is not None
        network.context_layer.weight.copy_(context_weight)
    return network


def flow_of(flow_class: type[Flow], networks: Sequence[MADE], kind: str, training: bool) -> Flow:
    """A flow with ``networks`` as its steps."""
    flow = flow_class.from_networks(networks, kind=kind)
    return flow.train(training)
