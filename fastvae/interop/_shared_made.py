"""The masked network of nflows and normflows. They differ in the context, and in what follows the first layer."""

from __future__ import annotations

from typing import Any

from ._networks import Layer, activation_name, to_blocked

__all__ = ["check_blocks", "layers_of", "residual_blocks"]


def residual_blocks(network: Any) -> bool:
    return any(hasattr(block, "linear_layers") for block in network.blocks)


def check_blocks(network: Any) -> str | None:
    """The name of the blocks' activation, None without blocks.

    Raises:
        ValueError: batch normalisation, dropout or activations that cannot be expressed.
    """
    names = []
    for block in network.blocks:
        if getattr(block, "use_batch_norm", False) or getattr(block, "batch_norm", None) is not None:
            raise ValueError("use_batch_norm=True cannot be expressed: a MADE has no batch normalisation")
        if block.dropout.p > 0:
            raise ValueError(f"dropout_probability must be 0: a MADE has no dropout, got {block.dropout.p}")
        names.append(activation_name(block.activation))
    if len(set(names)) > 1:
        raise ValueError(f"all activations must be the same, got {', '.join(names)}")
    return names[0] if names else None


def layers_of(network: Any, features: int) -> list[Layer]:
    def layer(name: str, linear: Any) -> Layer:
        return Layer(name, linear.weight, linear.bias, linear.mask)

    layers = [layer("initial_layer", network.initial_layer)]
    for index, block in enumerate(network.blocks):
        if hasattr(block, "linear_layers"):
            layers += [layer(f"blocks.{index}.linear_layers.{k}", lin) for k, lin in enumerate(block.linear_layers)]
        else:
            layers.append(layer(f"blocks.{index}.linear", block.linear))
    # Its outputs are (D, 2), scales first.
    layers.append(to_blocked(layer("final_layer", network.final_layer), features, shift_first=False))
    return layers
