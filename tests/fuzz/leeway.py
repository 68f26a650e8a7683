"""What a result may differ by from the reference, where the reference itself is a matter of chance."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from fastvae.nn import MaskedLinear
from fastvae.precision import compute_dtype
from fastvae.reference import made, masked_conv2d, masked_linear


@dataclass
class Leeway:
    """Of one call.

    Attributes:
        least_scale: what roundings are a share of, at least.
        empty: whether the outputs have no numbers: all gradients are 0 then, where the reference has 0 · inf.
        overflows: whether the terms of a masked layer's sum, inputs times weights, add up to more than the dtype holds.
            Whether such a sum is finite, infinite or NaN depends on the order of its terms, and on whether a row's
            factor multiplies the sum, as in the kernels, or the weights: the kernels' results need not be finite.
        cancelled: by the result's number, what cancels in it: roundings are a share of that, too.
    """

    least_scale: float = 0.0
    empty: bool = False
    overflows: bool = False
    cancelled: dict[int, Tensor] = field(default_factory=dict)


@contextlib.contextmanager
def watch_sums(dtype: torch.dtype, leeway: Leeway) -> Iterator[None]:
    """Notes whether a layer that the reference runs in this block, in float64, has sums too large for ``dtype``."""
    largest = torch.finfo(compute_dtype(dtype)).max

    def watch(layer: Callable[..., Tensor], structure: int) -> Callable[..., Tensor]:
        def run(x: Tensor, weight: Tensor, bias: Tensor | None, *rest: Any, **more: Any) -> Tensor:
            sizes = [torch.where(t.isfinite(), t, 0.0).detach().abs() for t in (x, weight)]
            leeway.overflows |= bool((layer(*sizes, None, *rest[:structure]) > largest).any())
            return layer(x, weight, bias, *rest, **more)

        return run

    # The arguments that follow the bias: degrees; or degrees, taps, their origin, padding, dilation and groups.
    linear, conv = watch(masked_linear.masked_linear, 2), watch(masked_conv2d.masked_conv2d, 7)
    with (
        mock.patch.object(made, "masked_linear", linear),
        mock.patch.object(masked_linear, "masked_linear", linear),
        mock.patch.object(masked_conv2d, "masked_conv2d", conv),
    ):
        yield


def cancelled(module: nn.Module, results: Sequence[Tensor | None]) -> dict[int, Tensor]:
    """By the number of each gradient of a normalised weight, sizes ``(out, 1)`` of what cancels in its rows.

    With the unit vector u = v / |v|, a row g u has the gradient (g / |v|) (d - u (u · d)) to v. A row of one weight has
    none but for the roundings of (g / |v|) u (u · d), of which u · d is the gradient of g. The last of the results
    are the gradients of the parameters.
    """
    sizes: dict[int, Tensor] = {}
    parameters = list(module.parameters())
    numbers = {id(p): len(results) - len(parameters) + i for i, p in enumerate(parameters)}
    for layer in module.modules():
        if not isinstance(layer, MaskedLinear) or layer.weight_gain is None:
            continue
        d_gain, scale = results[numbers[id(layer.weight_gain)]], layer.weight_scale()
        if d_gain is not None and scale is not None:
            size = (scale.detach() * d_gain).abs()
            sizes[numbers[id(layer.weight)]] = torch.where(size.isfinite(), size, 0.0).unsqueeze(-1)
    return sizes
