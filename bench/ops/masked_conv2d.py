"""Masked convolutions beside ``F.conv2d(x, weight * mask)``, in both layouts: the better of the two is the baseline.

The reference and the library run on contiguous images; the provider ``channels_last`` is the reference, and
``fastvae_channels_last`` the library, on images and weights whose channels come last.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from .. import gaussian
from ..task import Case, Function, Inputs, Peer, Shape, Task, Work


@dataclass(frozen=True)
class Layer:
    """An odd square kernel over images of the given channels."""

    kernel: int
    mask_type: str
    inputs: int
    outputs: int

    @property
    def taps(self) -> int:
        """Taps that count, with one colour."""
        return self.kernel**2 // 2 + (self.mask_type == "B")

    @property
    def weights(self) -> int:
        return self.taps * self.inputs * self.outputs

    def __str__(self) -> str:
        return f"{self.kernel}x{self.kernel}-{self.mask_type}-{self.inputs}-{self.outputs}"


# Rows are images, columns their height and width.
SHAPES = {
    Layer(7, "B", 64, 64): {"cpu": (Shape(32, 28),), "cuda": (Shape(32, 28),)},
    Layer(3, "B", 64, 64): {"cpu": (Shape(32, 28),), "cuda": (Shape(32, 28),)},
    Layer(3, "B", 128, 128): {"cpu": (Shape(16, 32),), "cuda": (Shape(16, 32), Shape(128, 32))},
    Layer(7, "B", 128, 128): {"cpu": (Shape(16, 32),), "cuda": (Shape(128, 32),)},
    Layer(7, "A", 1, 32): {"cpu": (Shape(100, 28),), "cuda": (Shape(100, 28),)},
}
_LAYERS = {str(layer): layer for layer in SHAPES}


def _inputs(case: Case, generator: torch.Generator) -> Inputs:
    options, layer, side = gaussian.options(case, generator), _LAYERS[case.variant], case.shape.columns
    x = torch.randn(case.shape.rows, layer.inputs, side, side, **options)
    weight = torch.randn(layer.outputs, layer.inputs, layer.kernel, layer.kernel, **options)
    return x, weight / math.sqrt(layer.inputs * layer.taps), torch.randn(layer.outputs, **options)


def _mask(case: Case) -> Tensor:
    layer = _LAYERS[case.variant]
    area = layer.kernel**2
    return (torch.arange(area, device=case.device) < layer.taps).view(layer.kernel, layer.kernel).to(case.torch_dtype)


def _fastvae(case: Case, impl: str) -> Function:
    from fastvae.ops.masked_conv2d import masked_conv2d

    layer = _LAYERS[case.variant]
    options: dict[str, Any] = {"mask_type": layer.mask_type, "padding": layer.kernel // 2, "impl": impl}
    return lambda x, weight, bias: masked_conv2d(x, weight, bias, **options)


def _reference(case: Case) -> Function:
    """With the mask made once, as a module keeps it in a buffer."""
    mask, padding = _mask(case), _LAYERS[case.variant].kernel // 2
    return lambda x, weight, bias: functional.conv2d(x, weight * mask, bias, padding=padding)


def _channels_last(case: Case, inputs: Inputs) -> Inputs:
    # Not `contiguous`, which leaves a single channel's strides as they are.
    return tuple(
        t.permute(0, 2, 3, 1).clone(memory_format=torch.contiguous_format).permute(0, 3, 1, 2) if t.dim() == 4 else t
        for t in inputs
    )


def _check(case: Case, inputs: Inputs, outputs: Any) -> str | None:
    x, weight, bias = (t.detach().double() for t in inputs)
    padding = _LAYERS[case.variant].kernel // 2
    images = x[: gaussian.CHECKED_ROWS]
    expected = functional.conv2d(images, weight * _mask(case).double(), bias, padding=padding)
    return gaussian.describe_difference(case, "y", outputs[: gaussian.CHECKED_ROWS], expected)


def _work(case: Case) -> Work:
    """Reads and multiplies only the weights that count; writes d_weight with its zeros."""
    layer, pixels = _LAYERS[case.variant], case.shape.rows * case.shape.columns**2
    images = pixels * (layer.inputs + layer.outputs)
    # x, weight, bias -> y
    elements, flops = images + layer.weights + layer.outputs, pixels * (2 * layer.weights + layer.outputs)
    if case.mode == "fwd":
        return Work(elements * case.itemsize, flops)
    # Then d_y, x, weight -> d_x, d_weight, d_bias
    elements += images + pixels * layer.inputs + layer.weights
    elements += layer.kernel**2 * layer.inputs * layer.outputs + layer.outputs
    return Work(elements * case.itemsize, pixels * (6 * layer.weights + 2 * layer.outputs))


TASKS = tuple(
    Task(
        op="masked_conv2d",
        entry="convolution",
        variant=str(layer),
        inputs=_inputs,
        fastvae=_fastvae,
        reference=_reference,
        peers={
            "channels_last": Peer(_reference, _channels_last),
            "fastvae_channels_last": Peer(lambda case: _fastvae(case, "auto"), _channels_last),
        },
        work=_work,
        check=_check,
        shapes=shapes,
        sampled=False,
    )
    for layer, shapes in SHAPES.items()
)
