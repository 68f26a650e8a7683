"""The gated PixelCNN of seven layers of 64 channels, the whole network: time and peak memory of a training pass.

The reference is the same network in plain PyTorch, with the same weights. The weights are the inputs, so that the
gradients are those of training, which needs no gradient of the images.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
from torch import Tensor

from .. import gaussian
from ..task import Case, Function, Inputs, Shape, Task, Work

# Rows are images, columns pixels.
SHAPES = (Shape(16, 784),)
LAYERS, CHANNELS = 7, 64
_CHECKED_IMAGES = 2


@functools.lru_cache(maxsize=4)
def _network(device: str, dtype: torch.dtype, impl: str) -> Any:
    from fastvae.nn.gated_pixelcnn import GatedPixelCNN

    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = GatedPixelCNN(1, CHANNELS, LAYERS, impl=impl)
    return network.to(device, dtype)


def _images(case: Case) -> Tensor:
    side = math.isqrt(case.shape.columns)
    uniform = torch.rand(case.shape.rows, 1, side, side, generator=torch.Generator().manual_seed(0))
    return (uniform < 0.13).to(case.device, case.torch_dtype)


def _weights(case: Case, generator: torch.Generator) -> Inputs:
    """The weights of a fresh network; every set has its own."""
    network = _network(case.device, case.torch_dtype, "reference")
    return tuple(weight.detach().clone() for weight in network.parameters())


def _stack(case: Case, impl: str) -> Function:
    network, images = _network(case.device, case.torch_dtype, impl), _images(case)
    names = [name for name, _ in network.named_parameters()]
    return lambda *weights: torch.func.functional_call(network, dict(zip(names, weights, strict=True)), (images,))


def _check(case: Case, inputs: Inputs, outputs: Any) -> str | None:
    expected = _network(case.device, torch.float64, "reference")(_images(case)[:_CHECKED_IMAGES].double())
    return gaussian.describe_difference(case, "logits", outputs[:_CHECKED_IMAGES], expected)


def _work(case: Case) -> Work:
    """The products of the weights that count. The first layer makes no gradient of the images."""
    network = _network(case.device, case.torch_dtype, "reference")
    layers = [module for module in network.modules() if hasattr(module, "mask")]
    pixels = case.shape.rows * case.shape.columns
    kept = sum(int(layer.mask().sum()) for layer in layers)
    first = sum(int(layer.mask().sum()) for layer in layers if layer.in_channels == 1)
    # Weights and images -> logits
    elements, flops = kept + 2 * pixels, 2 * kept * pixels
    if case.mode == "fwd":
        return Work(elements * case.itemsize, flops)
    # Then weights, images and d_logits -> gradients of the weights
    gradients = sum(weight.numel() for weight in network.parameters())
    return Work((2 * elements + gradients) * case.itemsize, 3 * flops - 2 * first * pixels)


TASKS = (
    Task(
        op="gated_stack",
        entry="stack",
        variant=f"{LAYERS}x{CHANNELS}",
        inputs=_weights,
        fastvae=_stack,
        reference=lambda case: _stack(case, "reference"),
        work=_work,
        check=_check,
        shapes={"cpu": SHAPES, "cuda": SHAPES},
        sampled=False,
    ),
)
