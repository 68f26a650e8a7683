r"""Masked convolution in plain PyTorch.

.. math::
    y = \operatorname{act}\left((W \circ M) * x + b\right)

M is 1 at the taps of :attr:`fastvae.structure.ConvStructure.taps`, for all channels, except at ``origin_tap``,
where :math:`M_{oi} = [\,d^{in}_i \le d^{out}_o\,]`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from .masked_linear import ACTIVATIONS


def mask_of(
    weight_shape: Sequence[int],
    taps: Sequence[int],
    origin_tap: int = -1,
    in_degrees: Tensor | None = None,
    out_degrees: Tensor | None = None,
    groups: int = 1,
    device: torch.device | str | None = None,
) -> Tensor:
    """The mask, bool, in the weight's shape (out, in / groups, height, width): which weights count.

    ``in_degrees`` (in,) and ``out_degrees`` (out,) are lowered: at ``origin_tap`` a weight counts where the first is
    at most the second.
    """
    outputs, inputs, height, width = weight_shape
    # Taps are one range; compared on the device, since a CUDA graph takes no copies from the host.
    first, last = (taps[0], taps[-1]) if taps else (0, -1)
    tap = torch.arange(height * width, device=device)
    counts = ((tap >= first) & (tap <= last)).expand(outputs, inputs, -1)
    if in_degrees is not None and out_degrees is not None:
        rule = in_degrees.view(groups, 1, inputs) <= out_degrees.view(groups, outputs // groups, 1)
        # No torch.where of truth values, which ONNX runtimes lack.
        at_origin = tap == origin_tap
        counts = (rule.reshape(outputs, inputs, 1) & at_origin) | (counts & ~at_origin)
    return counts.reshape(outputs, inputs, height, width)


def masked_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    in_degrees: Tensor | None,
    out_degrees: Tensor | None,
    taps: Sequence[int],
    origin_tap: int,
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    activation: str = "identity",
) -> Tensor:
    """As the op of this name; ``padding`` is (top, left, bottom, right)."""
    mask = mask_of(weight.shape, taps, origin_tap, in_degrees, out_degrees, groups, weight.device)
    # Not a product with the mask: what is masked may be anything, NaN as well.
    weight = torch.where(mask, weight, 0.0)
    top, left, bottom, right = padding
    if (top, left) != (bottom, right):
        x, top, left = functional.pad(x, (left, right, top, bottom)), 0, 0
    y = functional.conv2d(x, weight, bias, 1, (top, left), tuple(dilation), groups)
    return ACTIVATIONS[activation](y)
