"""Formulas for ``torch.utils.flop_counter.FlopCounterMode``, for the ops that multiply matrices.

A multiplication and its addition count 2. Only the entries that count of a masked weight are multiplied: half of all
where degrees have no values, as fake and meta tensors. Padding counts as in PyTorch's formula for convolutions.
Elementwise work counts nothing, as there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ._convolution import ConvCall
from ._library import FLOP_FORMULAS


def _pairs(in_degrees: Tensor, out_degrees: Tensor) -> int:
    """How many weights count: those with ``in_degrees[i] <= out_degrees[o]``."""
    if any(type(t) is not Tensor or t.is_meta for t in (in_degrees, out_degrees)):
        return in_degrees.shape[0] * out_degrees.shape[0] // 2
    ascending = in_degrees.sort().values
    return int(torch.searchsorted(ascending, out_degrees, right=True).sum())


def _network(degrees: Sequence[Tensor]) -> int:
    return sum(_pairs(degrees[index], degrees[index + 1]) for index in range(len(degrees) - 1))


def _kernel(weight: Tensor, in_degrees: Tensor | None, out_degrees: Tensor | None, call: ConvCall) -> int:
    """How many weights of a masked convolution count."""
    out, inputs = weight.shape[:2]
    whole = len(call.taps) * out * inputs
    if call.origin_tap not in call.taps or in_degrees is None or out_degrees is None:
        return whole
    of_groups = zip(in_degrees.chunk(call.groups), out_degrees.chunk(call.groups), strict=True)
    return whole - out * inputs + sum(_pairs(ins, outs) for ins, outs in of_groups)


def _masked_linear_fwd(
    x: Tensor, weight: Any, bias: Any, scale: Any, in_degrees: Tensor, out_degrees: Tensor, *_: Any, **__: Any
) -> int:
    return 2 * x.shape[0] * _pairs(in_degrees, out_degrees)


def _masked_linear_bwd(
    d_y: Any,
    at: Any,
    x: Tensor,
    weight: Any,
    scale: Any,
    in_degrees: Tensor,
    out_degrees: Tensor,
    *_: Any,
    **__: Any,
) -> int:
    return 4 * x.shape[0] * _pairs(in_degrees, out_degrees)


def _network_fwd(z: Tensor, tensors: Any, present: Any, degrees: Sequence[Tensor], *_: Any, **__: Any) -> int:
    return 2 * z.shape[0] * _network(degrees)


def _network_bwd(
    d_out: Tensor,
    d_log_det: Any,
    saved: Any,
    kept: Any,
    present: Sequence[bool],
    normalized: Any,
    degrees: Sequence[Tensor],
    structure: Any,
    needs: Sequence[bool],
    **_: Any,
) -> int:
    layers = len(degrees) - 1
    # Gradients of all layers are computed where one is needed; the gradient of z includes that of the context's term.
    of_layers = any(need for index, need in enumerate(needs) if not (present[0] and index == layers))
    return (4 if of_layers else 2) * d_out.shape[0] * _network(degrees)


def _inverse_bwd(d_out: Tensor, *others: Any, **named: Any) -> int:
    """The transposed sweep and, where a gradient of the network is needed, the backward pass of the step."""
    *of_step, _network_text = others
    degrees, needs = of_step[-3], of_step[-1]
    sweep = 2 * d_out.shape[0] * _network(degrees)
    return sweep + _network_bwd(d_out, *of_step, **named) if any(needs) else sweep


def _linear_bernoulli_fwd(h: Tensor, weight: Tensor, *_: Any, **__: Any) -> int:
    return 2 * h.shape[0] * weight.numel()


def _linear_bernoulli_bwd(
    d_log_p: Any, h: Tensor, weight: Tensor, bias: Any, x: Any, kept: Any, inner: Any, needs: Sequence[bool], **_: Any
) -> int:
    """The products for h and for the weight, and that for the logits unless their gradient was kept."""
    products = needs[0] + needs[1] + (kept is None)
    return 2 * products * h.shape[0] * weight.numel()


def _linear_tril_gaussian_fwd(
    h: Tensor, weight: Tensor, bias: Any, noise: Any, latents: int, *_: Any, **__: Any
) -> int:
    """The layer, and the factor with the noise."""
    return 2 * h.shape[0] * weight.numel() + _triangles(h.shape[0], latents)


def _linear_tril_gaussian_bwd(
    d_z: Any,
    d_log_q: Any,
    d_kl: Any,
    h: Tensor,
    weight: Tensor,
    bias: Any,
    kept: Any,
    latents: int,
    scale: Any,
    lower: Any,
    upper: Any,
    needs: Sequence[bool],
    **_: Any,
) -> int:
    """The products for h and for the weight, and an outer product for the factor."""
    return 2 * (needs[0] + needs[1]) * h.shape[0] * weight.numel() + _triangles(h.shape[0], latents)


def _latent_gradient_fwd(z: Tensor, layers: Sequence[Tensor], has_bias: Sequence[bool], *_: Any, **__: Any) -> int:
    """A product forward and one back for each layer."""
    return 4 * z.shape[0] * sum(weight.numel() for weight in layers[: len(has_bias)])


def _mlp_bernoulli_fwd(z: Tensor, layers: Sequence[Tensor], has_bias: Sequence[bool], *_: Any, **__: Any) -> int:
    return 2 * z.shape[0] * sum(weight.numel() for weight in layers[: len(has_bias)])


def _mlp_bernoulli_bwd(
    d_log_p: Any,
    z: Tensor,
    layers: Sequence[Tensor],
    has_bias: Sequence[bool],
    x: Any,
    kept: Any,
    inner: Any,
    activation: Any,
    of_z: bool,
    of_layers: bool,
    **_: Any,
) -> int:
    """A product back through each layer, through the first one for z alone, and one for each weight."""
    weights = [weight.numel() for weight in layers[: len(has_bias)]]
    return 2 * z.shape[0] * ((1 + of_layers) * sum(weights) - (not of_z) * weights[0])


def _latent_gradient_bwd(
    d_log_p: Any, d_gradient: Any, z: Tensor, layers: Sequence[Tensor], has_bias: Sequence[bool], *_: Any, **__: Any
) -> int:
    """The same for the tangents beside the values."""
    return 2 * _latent_gradient_fwd(z, layers, has_bias)


def _latent_hessian_product_fwd(
    z: Tensor, v: Any, layers: Sequence[Tensor], has_bias: Sequence[bool], *_: Any, **__: Any
) -> int:
    return 2 * _latent_gradient_fwd(z, layers, has_bias)


def _masked_conv2d_fwd(
    x: Any,
    weight: Tensor,
    bias: Any,
    in_degrees: Tensor | None,
    out_degrees: Tensor | None,
    *rest: Any,
    out_val: tuple[Tensor, Tensor],
    **_: Any,
) -> int:
    *how, _keep = rest
    n, _channels, height, width = out_val[0].shape
    return 2 * n * height * width * _kernel(weight, in_degrees, out_degrees, ConvCall(*how))


def _masked_conv2d_bwd(
    d_y: Tensor,
    at: Any,
    x: Any,
    weight: Tensor,
    in_degrees: Tensor | None,
    out_degrees: Tensor | None,
    *rest: Any,
    **_: Any,
) -> int:
    *how, needs = rest
    n, _channels, height, width = d_y.shape
    products = int(needs[0]) + int(needs[1])
    return 2 * products * n * height * width * _kernel(weight, in_degrees, out_degrees, ConvCall(*how))


def _triangles(samples: int, features: int, count: int = 1) -> int:
    """``count`` products of a strict triangle, with D (D - 1) / 2 entries, and every sample."""
    return count * samples * features * (features - 1)


def _tril_gaussian_fwd(
    mu: Tensor, log_sigma: Any, tril: Any, noise: Any, shape: Sequence[int], *_: Any, **__: Any
) -> int:
    return _triangles(math.prod(shape[:-1]), mu.shape[-1])


def _tril_gaussian_bwd(d_z: Tensor, *_: Any, **__: Any) -> int:
    return _triangles(math.prod(d_z.shape[:-1]), d_z.shape[-1])


def _tril_gaussian_log_prob_bwd(d_log_q: Any, eps: Tensor, *_: Any, **__: Any) -> int:
    # A solve for the points' gradient, an outer product for the factor's.
    return _triangles(math.prod(eps.shape[:-1]), eps.shape[-1], count=2)


def _patches(windows: int, points: int, height: int, width: int) -> int:
    """The products with both filters of one patch for each window."""
    return 2 * windows * points * width * (height + points)


def _attention_read_fwd(x: Tensor, other: Tensor | None, window: Any, points: int, **_: Any) -> int:
    return _patches((1 if other is None else 2) * x.shape[0], points, *x.shape[1:])


def _attention_read_bwd(
    d_patches: Tensor, x: Tensor, other: Tensor | None, window: Any, needs: Sequence[bool], **_: Any
) -> int:
    """Images are written; for the filters of both sides the patch is spread, the image read, and each multiplied."""
    of_images = needs[0] + (needs[1] and other is not None)
    images, points = d_patches.shape[1:3]
    passes = of_images + (2 * images if needs[2] else 0)
    return passes * _patches(x.shape[0], points, *x.shape[1:])


def _attention_write_fwd(patch: Tensor, window: Any, height: int, width: int, **_: Any) -> int:
    return _patches(patch.shape[0], patch.shape[-1], height, width)


def _attention_write_bwd(d_image: Tensor, patch: Tensor, window: Any, needs: Sequence[bool], **_: Any) -> int:
    """As of what is read, with one image."""
    return (needs[0] + 2 * needs[1]) * _patches(patch.shape[0], patch.shape[-1], *d_image.shape[1:])


FLOP_FORMULAS.update(
    {
        "attention_read_fwd": _attention_read_fwd,
        "attention_read_bwd": _attention_read_bwd,
        "attention_write_fwd": _attention_write_fwd,
        "attention_write_bwd": _attention_write_bwd,
        "masked_linear_fwd": _masked_linear_fwd,
        "masked_linear_bwd": _masked_linear_bwd,
        "autoregressive_flow_fwd": _network_fwd,
        "autoregressive_flow_bwd": _network_bwd,
        "autoregressive_inverse_fwd": _network_fwd,
        "autoregressive_inverse_bwd": _inverse_bwd,
        "linear_bernoulli_fwd": _linear_bernoulli_fwd,
        "linear_bernoulli_bwd": _linear_bernoulli_bwd,
        "linear_tril_gaussian_fwd": _linear_tril_gaussian_fwd,
        "linear_tril_gaussian_bwd": _linear_tril_gaussian_bwd,
        "mlp_bernoulli_fwd": _mlp_bernoulli_fwd,
        "mlp_bernoulli_bwd": _mlp_bernoulli_bwd,
        "latent_gradient_fwd": _latent_gradient_fwd,
        "latent_gradient_bwd": _latent_gradient_bwd,
        "latent_hessian_product_fwd": _latent_hessian_product_fwd,
        "masked_conv2d_fwd": _masked_conv2d_fwd,
        "masked_conv2d_bwd": _masked_conv2d_bwd,
        "tril_gaussian_fwd": _tril_gaussian_fwd,
        "tril_gaussian_bwd": _tril_gaussian_bwd,
        "tril_gaussian_with_kl_fwd": _tril_gaussian_fwd,
        "tril_gaussian_with_kl_bwd": _tril_gaussian_bwd,
        "tril_gaussian_log_prob_fwd": _tril_gaussian_bwd,  # forward substitution of the points, its first argument
        "tril_gaussian_log_prob_bwd": _tril_gaussian_log_prob_bwd,
    }
)
