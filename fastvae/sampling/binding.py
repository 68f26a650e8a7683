"""The numbers of one call of a sampler: weights and constants of a network's modules, once they are known to fit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..structure.sampling_plan import Binding, Lookup, Norm, Plan
from .graph import Recording

__all__ = ["bind"]

# Sigmoids of such numbers are 0 and 1, in float64 too.
_STEEP = 4000.0


def bind(plan: Plan, recording: Recording, values: Mapping[str, Any], images: Tensor) -> Binding:
    """Weights, biases and constants in the dtype of ``images``.

    Args:
        plan: which layers and constants there are.
        recording: the network.
        values: of the nodes that do not depend on the image.
        images: what is drawn.

    Raises:
        ValueError: a weight that is no plain tensor, or of a shape or device that does not fit; a constant that does
            not belong to the images.
    """
    weights: list[Tensor] = []
    biases: list[Tensor | None] = []
    for layer in plan.layers:
        if isinstance(layer, Lookup):
            weight, bias = _lookup(layer, recording, images)
        else:
            weight, bias = _conv(recording, layer, images)
        weights.append(weight)
        biases.append(bias)
    constants = []
    for source, channels in plan.constants:
        if isinstance(source, Norm):
            value: Any = _norm(source, recording, images)
        else:
            value = source if isinstance(source, float) else values[source]
        constants.append(_constant(value, channels, images))
    return Binding(weights, biases, constants)


def _conv(recording: Recording, path: str, images: Tensor) -> tuple[Tensor, Tensor | None]:
    layer: Any = recording.layer(path)
    label = recording.label_of(path)
    shape = (layer.out_channels, layer.in_channels // layer.groups, *layer.kernel_size)
    made = getattr(layer, "scaled_weight", None)
    weight = _numbers(layer.weight if made is None else made(), images, f"{label}: weight", shape)
    if layer.bias is None:
        return weight, None
    return weight, _numbers(layer.bias, images, f"{label}: bias", (layer.out_channels,))


def _lookup(lookup: Lookup, recording: Recording, images: Tensor) -> tuple[Tensor, Tensor | None]:
    """Weights of a convolution of 1 x 1; see :class:`fastvae.structure.sampling_plan.Lookup`."""
    layer: Any = recording.layer(lookup.path)
    rows = layer.num_embeddings
    if lookup.part == "indicator":
        row = torch.arange(rows, dtype=torch.float64, device=images.device)
        steep = torch.full((rows, 1, 1, 1), _STEEP * lookup.factor, dtype=torch.float64, device=images.device)
        weight, bias = torch.cat([steep, -steep]), _STEEP * torch.cat([0.5 - row, 0.5 + row])
        return weight.to(images.dtype), bias.to(images.dtype)
    label = f"{recording.label_of(lookup.path)}: weight"
    table = _numbers(layer.weight, images, label, (rows, layer.embedding_dim))
    return table.t().contiguous()[:, :, None, None], None


def _norm(norm: Norm, recording: Recording, images: Tensor) -> Tensor:
    """The factor, or the term, of a batch norm, ``(1, channels)``."""
    layer: Any = recording.layer(norm.path)
    label, shape = recording.label_of(norm.path), (layer.num_features,)
    names = ("running_mean", "running_var") + (("weight", "bias") if layer.affine else ())
    # In double precision: every implementation then gets the same rounded numbers.
    found = [_numbers(getattr(layer, name), images, f"{label}: {name}", shape).double() for name in names]
    factor = torch.rsqrt(found[1] + layer.eps)
    if layer.affine:
        factor = factor * found[2]
    if norm.part == "factor":
        return factor[None]
    term = -found[0] * factor
    return (term + found[3] if layer.affine else term)[None]


def _numbers(t: Any, images: Tensor, name: str, shape: tuple[int, ...] | None = None) -> Tensor:
    """``t`` as a plain contiguous tensor of the dtype of ``images``."""
    if type(t) in (Tensor, nn.Parameter) and t.dtype is images.dtype and t.shape == shape and _is_alike(t, images):
        return t.detach()  # the usual one, recognised at once
    if not isinstance(t, Tensor):
        raise ValueError(f"{name} must be a tensor, got {type(t).__name__}")
    why = ""
    if type(t) not in (Tensor, nn.Parameter):
        why = f"a {type(t).__module__}.{type(t).__qualname__}"
    elif t.is_meta:
        why = "a tensor on the meta device, which holds no numbers"
    elif t.is_quantized or (shape is not None and not t.is_floating_point()):
        why = f"a tensor of {t.dtype}"
    elif t.layout != torch.strided:
        why = f"a tensor of layout {t.layout}"
    if why:
        raise ValueError(
            f"{name} must be a plain, dense, floating-point torch.Tensor or nn.Parameter while the network samples, "
            f"got {why}. Sample from a copy of the network whose layers hold such weights: merged, dequantised, "
            "gathered or loaded"
        )
    if t.device != images.device:
        raise ValueError(
            f"{name} must be on the device of the network's first parameter, {images.device}; it is on {t.device}"
        )
    if shape is not None and tuple(t.shape) != shape:
        raise ValueError(f"{name} must have the shape that the layer's attributes say, {shape}, got {tuple(t.shape)}")
    return t.detach().to(images.dtype).contiguous()


def _is_alike(t: Tensor, images: Tensor) -> bool:
    return t.layout is torch.strided and not t.is_meta and t.device == images.device and t.is_contiguous()


def _constant(value: Any, channels: int, images: Tensor) -> Tensor:
    """``value`` as ``(N, channels)`` or ``(N, channels, H, W)``."""
    n, _, *size = images.shape
    if isinstance(value, (int, float)):
        return images.new_full((n, channels), value)
    if not isinstance(value, Tensor):
        raise ValueError(f"context must give tensors to what depends on the image, got {type(value).__name__}")
    if value.dim() == 0:
        # As in PyTorch, a 0-d tensor on a CPU goes with tensors on every device.
        value = value.to(images.device)
    shape = tuple(value.shape)
    full = {0: (1, 1, 1, 1), 2: (*shape, 1, 1), 3: (1, *shape), 4: shape}.get(value.dim(), (0, 0, 0, 0))
    target = (n, channels, *((1, 1) if full[2:] == (1, 1) else size))
    if any(own not in (1, wanted) for own, wanted in zip(full, target, strict=True)):
        raise ValueError(
            f"context must be such that what the network makes of it has shape ({n}, {channels}), "
            f"({n}, {channels}, 1, 1) or ({n}, {channels}, {size[0]}, {size[1]}), got {shape}"
        )
    value = _numbers(value.reshape(full).expand(target), images, "what the network makes of its context and parameters")
    return value.flatten(1) if target[2:] == (1, 1) and full[2:] == (1, 1) else value
