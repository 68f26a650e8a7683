r"""Discretised mixture of logistics in plain PyTorch.

A channel x of a pixel takes ``levels`` values, equally spaced over [-1, 1]. A logistic of mean m and log-scale s gives
the bin of half-width :math:`h = 1 / (\mathrm{levels} - 1)` around x the probability

.. math::
    \sigma(a) - \sigma(b) = \sigma(a)\, \sigma(-b)\, (1 - e^{b - a}), \qquad a, b = e^{-s} (x - m \pm h),

where the right-hand side loses nothing to cancellation. The outermost bins reach to infinity: :math:`\sigma(a)` at
x = -1, :math:`\sigma(-b)` at x = 1. A pixel's mixture components k share their weight over channels, and

.. math::
    \log p(x) = \log \sum_k \pi_k \prod_c P_{ck}(x_c), \qquad
    m_{2k} = \mu_{2k} + \tanh(t_{1k})\, x_1, \quad
    m_{3k} = \mu_{3k} + \tanh(t_{2k})\, x_1 + \tanh(t_{3k})\, x_2 .
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from ..precision import compute_dtype

LEAST_LOG_SCALE = -7.0
# Numbers of a component: its weight, means, log-scales and coefficients, by number of channels.
PARAMS_PER_COMPONENT = {1: 3, 3: 10}


def split(params: Tensor, channels: int, dim: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Weight logits (K), means (C, K), log-scales (C, K) and coefficients (3 or 0, K) along ``dim``."""
    k = params.shape[dim] // PARAMS_PER_COMPONENT[channels]
    coefficients = 3 if channels == 3 else 0
    logits, *blocks = params.split([k, channels * k, channels * k, coefficients * k], dim)
    means, log_scales, coefficients = (block.unflatten(dim, (-1, k)) if block.shape[dim] else block for block in blocks)
    return logits, means, log_scales, coefficients


def discretized_logistic(x: Tensor, mean: Tensor, log_scale: Tensor, levels: int) -> Tensor:
    """Log-probability of each x, for log-scales that are clamped already."""
    half = 1.0 / (levels - 1)
    inverse_scale = torch.exp(-log_scale)
    centred = x - mean
    below_top = functional.logsigmoid(inverse_scale * (centred + half))
    above_bottom = functional.logsigmoid(inverse_scale * (half - centred))
    # Bins much narrower than the scale take the series of log(1 - e^-width): there, width itself may underflow.
    width = inverse_scale * (2.0 * half)
    narrow = width < 1e-4
    log_mass = torch.where(
        narrow,
        math.log(2.0 * half) - log_scale - width / 2 + width.square() / 24,
        torch.log(-torch.expm1(-torch.where(narrow, 1.0, width))),
    )
    inside = below_top + above_bottom + log_mass
    return torch.where(x < half - 1.0, below_top, torch.where(x > 1.0 - half, above_bottom, inside))


def logistic_mixture_log_prob(x: Tensor, params: Tensor, levels: int) -> Tensor:
    """x (N, C, H, W), params (N, 3K or 10K, H, W) to (N,)."""
    dtype = compute_dtype(params.dtype)
    x, channels = x.to(dtype).unsqueeze(2), int(x.shape[1])
    logits, means, log_scales, coefficients = split(params.to(dtype), channels, 1)
    if channels == 3:
        t = torch.tanh(coefficients)
        red, green, _ = x.unbind(1)
        second = means[:, 1] + t[:, 0] * red
        third = means[:, 2] + t[:, 1] * red + t[:, 2] * green
        means = torch.stack([means[:, 0], second, third], 1)
    log_p = discretized_logistic(x, means, log_scales.clamp(min=LEAST_LOG_SCALE), levels).sum(1)
    return torch.logsumexp(log_p + functional.log_softmax(logits, 1), 1).sum((1, 2))


def logistic_mixture_sample(params: Tensor, uniforms: Tensor, temperature: float = 1.0, levels: int = 256) -> Tensor:
    """Pixels (..., C) from params (..., 3K or 10K) and uniforms (..., 1 + C) in (0, 1).

    The first uniform chooses the component: the first one at which the running sum of the weights, softmax of logits /
    temperature, exceeds the uniform. The other uniforms give each channel a logistic number by the inverse of its
    distribution function, with its scale times the temperature. The number is rounded to the nearest level before it
    shifts the next channel's mean.
    """
    dtype = compute_dtype(params.dtype)
    channels = int(uniforms.shape[-1]) - 1
    logits, means, log_scales, coefficients = split(params.to(dtype), channels, -1)
    u = uniforms.to(dtype)
    weights = torch.exp((logits - logits.amax(-1, keepdim=True)) / temperature).cumsum(-1)
    chosen = (weights <= u[..., :1] * weights[..., -1:]).sum(-1, keepdim=True).clamp(max=logits.shape[-1] - 1)
    pixel: list[Tensor] = []
    shifts = ((), (0,), (1, 2)) if channels == 3 else ((),)  # rows of the coefficients, one for each channel before
    for c, rows in enumerate(shifts):
        mean = means[..., c, :].gather(-1, chosen).squeeze(-1)
        for row, before in zip(rows, pixel, strict=True):
            mean = mean + torch.tanh(coefficients[..., row, :].gather(-1, chosen).squeeze(-1)) * before
        scale = log_scales[..., c, :].gather(-1, chosen).squeeze(-1).clamp(min=LEAST_LOG_SCALE).exp()
        value = mean + temperature * scale * torch.logit(u[..., 1 + c])
        level = torch.round((value + 1.0) * (0.5 * (levels - 1))).clamp(0, levels - 1)
        pixel.append(level * (2.0 / (levels - 1)) - 1.0)
    return torch.stack(pixel, -1)
