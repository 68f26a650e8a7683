"""Data-dependent initialisation of weight-normalised layers."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ._replicas import replicas_of_first_batch, share
from ._start import start_of
from .class_linear import ClassLinear
from .made import MADE
from .masked_conv2d import MaskedConv2d
from .masked_linear import MaskedLinear

__all__ = ["initialize_from_data"]


@torch.no_grad()
def initialize_from_data(
    module: nn.Module,
    *inputs: Any,
    run: Callable[..., Any] | None = None,
    target_std: Mapping[nn.Module, float] | None = None,
    plain: Collection[nn.Module] = (),
) -> None:
    r"""Sets gains and biases such that, on a first batch, pre-activations have mean 0 and standard deviation 1.

    .. math::
        f = c / \operatorname{std}(t), \qquad g \leftarrow f g, \qquad b \leftarrow f\,(b - \operatorname{mean}(t))

    for the pre-activations t of every weight-normalised layer: :class:`MaskedConv2d` and :class:`MaskedLinear` with
    ``weight_norm=True``, and :class:`torch.nn.Linear` and convolutions under
    :func:`torch.nn.utils.parametrizations.weight_norm`. A layer sees what those before it give after their own
    initialisation. One without a bias keeps its mean; an output that does not vary keeps its gain. A layer that its
    network starts in another way, such as the last one of a flow, then gets that start.

    Args:
        module: holds the layers. It runs in training mode, and its modes are as before afterwards.
        inputs: the first batch.
        run: called with ``inputs`` in place of the module.
        target_std: standard deviation c of layers that shall have another than 1.
        plain: linear layers, those of classes, and convolutions without weight norm that shall start so, too: their
            weights take the place of the gain.

    Raises:
        ValueError: there is no such layer, the batch is empty, or a layer of ``plain`` is of another kind.
        RuntimeError: the first batch comes in one of several processes, and nothing keeps them equal; see
            :func:`shared_first_batch`.

    Note:
        Every :class:`MADE` in the module initialises itself, from the same batch.

    Reference:
        *Weight Normalization: A Simple Reparameterization to Accelerate Training of Deep Neural Networks* (Salimans,
        Kingma, 2016).

    Example:
        >>> layer, x = MaskedConv2d(2, 3, 3, mask_type="B", padding=1, weight_norm=True), torch.randn(20, 2, 5, 5)
        >>> initialize_from_data(layer, x)
        >>> torch.allclose(layer(x).std((0, 2, 3), correction=0), torch.ones(3), atol=1e-4)
        True
    """
    networks = [part for part in module.modules() if isinstance(part, MADE) and part.forget_initialization()]
    own = {id(layer) for network in networks for layer in network.layers.modules()}
    _check_plain(plain)
    chosen = {id(layer) for layer in plain}
    layers = [
        layer for layer in module.modules() if id(layer) not in own and (_is_normalised(layer) or id(layer) in chosen)
    ]
    if not layers and not networks:
        raise ValueError(f"module must hold a layer with weight_norm=True, got {type(module).__name__} without one")
    replicas, targets = replicas_of_first_batch(), target_std or {}

    def hook(layer: nn.Module, args: tuple[Any, ...], named: dict[str, Any], output: Tensor) -> Tensor:
        std = targets.get(layer, start_of(layer).data_std)
        if isinstance(layer, MaskedConv2d | MaskedLinear):
            _initialize_masked(layer, std, *args, **named)
            changed: Tensor = layer.forward(*args, **named)
            return changed
        if isinstance(layer, ClassLinear):
            return _initialize_class_linear(layer, std, *args, **named)
        return _initialize_torch_layer(layer, std, output)

    handles = [layer.register_forward_hook(hook, with_kwargs=True) for layer in layers]
    modes = [(part, part.training) for part in module.modules()]
    module.train()
    try:
        (module if run is None else run)(*inputs)
    finally:
        for handle in handles:
            handle.remove()
        for part, mode in modes:
            part.training = mode
    if replicas is not None:
        share(replicas, [t for layer in layers for t in (*_gains_of(layer), layer.bias)])  # type: ignore[misc]


def _is_normalised(layer: nn.Module) -> bool:
    if isinstance(layer, MaskedConv2d | MaskedLinear):
        return layer.weight_gain is not None
    if not isinstance(layer, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
        return False
    found: Any = layer
    return parametrize.is_parametrized(layer, "weight") and hasattr(found.parametrizations.weight, "original0")


def _check_plain(layers: Collection[nn.Module]) -> None:
    for layer in layers:
        known = isinstance(layer, nn.Linear | nn.Conv2d | nn.ConvTranspose2d | ClassLinear)
        other = isinstance(layer, MaskedConv2d | MaskedLinear) or parametrize.is_parametrized(layer)
        if not known or other or getattr(layer, "groups", 1) != 1:
            raise ValueError(
                "plain must hold Linear, ClassLinear, Conv2d and ConvTranspose2d without mask or parametrisation, with "
                f"groups=1, got {layer}"
            )


def _gains_of(layer: nn.Module) -> list[Tensor]:
    """What scales the output: the gain, or the weights of a layer without one."""
    if isinstance(layer, MaskedConv2d | MaskedLinear):
        assert layer.weight_gain is not None
        return [layer.weight_gain]
    if isinstance(layer, ClassLinear):
        return [*layer.weights, layer.class_weight]
    if parametrize.is_parametrized(layer, "weight"):
        return [layer.get_submodule("parametrizations.weight").get_parameter("original0")]
    return [layer.get_parameter("weight")]


def _initialize_masked(layer: MaskedConv2d | MaskedLinear, std: float, *args: Any, **named: Any) -> None:
    activation, layer.activation = layer.activation, None
    try:
        layer.initialize(layer.forward(*args, **named), std)
    finally:
        layer.activation = activation
    start_of(layer).apply_after_data(layer)


def _initialize_class_linear(layer: ClassLinear, std: float, *args: Any, **named: Any) -> Tensor:
    activation, layer.activation = layer.activation, None
    try:
        _initialize_torch_layer(layer, std, layer.forward(*args, **named).flatten(0, -2))
    finally:
        layer.activation = activation
    found: Tensor = layer.forward(*args, **named)
    return found


def _initialize_torch_layer(layer: nn.Module, target_std: float, output: Tensor) -> Tensor:
    """Initialises the layer from its ``output``, and returns the output that the layer now has."""
    dims = [dim for dim in range(output.dim()) if dim != (1 if output.dim() == 4 else output.dim() - 1)]
    std, mean = torch.std_mean(output, dims, correction=0)
    factor = torch.where(std > 1e-6, target_std / std.clamp(min=1e-6), 1.0)
    bias = layer.bias
    for gain in _gains_of(layer):
        of_outputs = [1] * gain.dim()
        of_outputs[1 if isinstance(layer, nn.ConvTranspose2d) else 0] = -1
        gain.mul_(factor.view(of_outputs))
    if isinstance(bias, Tensor):
        bias.sub_(mean).mul_(factor)
    else:
        mean = torch.zeros_like(mean)
    shape = [1, -1, 1, 1] if output.dim() == 4 else [-1]
    return (output - mean.view(shape)) * factor.view(shape)
