"""The start of a layer's parameters, where the module that owns the layer changes it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

__all__ = ["Start", "start_as", "start_of"]


class Start(NamedTuple):
    """A change of a layer's parameters after they are drawn.

    The layer keeps it and applies it in its own ``reset_parameters``: FSDP, which draws parameters anew after
    ``to_empty``, calls that of every module that holds parameters, in an order of its own.
    """

    weight_scale: float = 1.0
    bias_scale: float = 1.0
    shift: float = 0.0  # is added to the bias
    first: int = 0  # the first row that changes
    data_std: float = 1.0  # of the pre-activations, where an initialisation from data takes the place of the scales

    @torch.no_grad()
    def apply(self, layer: nn.Module) -> None:
        weight, bias = layer.weight, layer.bias
        gain = getattr(layer, "weight_gain", None)
        if gain is not None:
            # Normalisation undoes what scales a weight.
            weight = gain
        if self.weight_scale != 1.0 and isinstance(weight, Tensor):
            weight[self.first :].mul_(self.weight_scale)
        if (self.bias_scale, self.shift) != (1.0, 0.0) and isinstance(bias, Tensor):
            bias[self.first :].mul_(self.bias_scale).add_(self.shift)

    @torch.no_grad()
    def apply_after_data(self, layer: nn.Module) -> None:
        """What remains to change after an initialisation from data."""
        if self.shift != 0.0 and isinstance(layer.bias, Tensor):
            layer.bias[self.first :].add_(self.shift)


def start_as(layer: nn.Module, start: Start) -> None:
    """Makes ``start`` the layer's own, and carries it out on the parameters as drawn."""
    layer._start = start  # type: ignore[assignment]
    start.apply(layer)


def start_of(layer: nn.Module) -> Start:
    """The layer's start. During its construction, and for most layers, the start changes nothing."""
    start = layer.__dict__.get("_start")
    return Start() if start is None else start
