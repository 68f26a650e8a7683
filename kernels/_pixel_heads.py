"""Drawing a pixel from the parameters of its distribution and uniform numbers, one program's images at a time."""

from __future__ import annotations

import triton
import triton.language as tl

from ..structure.sampling_records import HeadCode
from ._activations import activate, sigmoid
from ._vecmath import exp

_LEAST_LOG_SCALE = tl.constexpr(-7.0)
_BERNOULLI = tl.constexpr(int(HeadCode.BERNOULLI))
_MIXTURE = tl.constexpr(int(HeadCode.LOGISTIC_MIXTURE))


@triton.jit
def _load_logits(ptrs, exists, first, temperature, COUNT: tl.constexpr, BLOCK: tl.constexpr):
    k = first + tl.arange(0, BLOCK)[None, :]
    logit = tl.load(ptrs[:, None] + k, exists[:, None] & (k < COUNT), 0.0) / temperature
    return tl.where(k < COUNT, logit, -float("inf"))


@triton.jit
def draw_category(ptrs, exists, u, temperature, COUNT: tl.constexpr, BLOCK: tl.constexpr):
    """The first of COUNT logits at which the running sum of the probabilities exceeds u."""
    largest = tl.max(_load_logits(ptrs, exists, 0, temperature, COUNT, BLOCK), 1)
    for first in range(BLOCK, COUNT, BLOCK):
        largest = tl.maximum(largest, tl.max(_load_logits(ptrs, exists, first, temperature, COUNT, BLOCK), 1))
    total = tl.zeros_like(u)
    for first in range(0, COUNT, BLOCK):
        logit = _load_logits(ptrs, exists, first, temperature, COUNT, BLOCK)
        total += tl.sum(exp(logit - largest[:, None], tl.float32), 1)
    before, passed = tl.zeros_like(u), tl.zeros(u.shape, tl.int32)
    for first in range(0, COUNT, BLOCK):
        weight = exp(_load_logits(ptrs, exists, first, temperature, COUNT, BLOCK) - largest[:, None], tl.float32)
        cumulated = before[:, None] + tl.cumsum(weight, 1)
        # Beyond COUNT the running sum is constant: it passes u only where all sums do.
        passed += tl.sum((cumulated <= (u * total)[:, None]).to(tl.int32), 1)
        before += tl.sum(weight, 1)
    return tl.minimum(passed, COUNT - 1)


@triton.jit
def draw_mixture(params_ptrs, u_ptrs, exists, red, green, chosen, temperature, channel: tl.constexpr, C: tl.constexpr,
           K: tl.constexpr, LEVELS: tl.constexpr):  # fmt: skip
    """Channel `channel` of a mixture's component, at the nearest level; a half, which has probability 0, goes up."""
    mean = tl.load(params_ptrs + K * (1 + channel) + chosen, exists, 0.0)
    t_ptrs = params_ptrs + K * (1 + 2 * C) + chosen
    if channel == 1:
        mean += activate(tl.load(t_ptrs, exists, 0.0), "tanh") * red
    if channel == 2:
        mean += activate(tl.load(t_ptrs + K, exists, 0.0), "tanh") * red
        mean += activate(tl.load(t_ptrs + 2 * K, exists, 0.0), "tanh") * green
    log_scale = tl.load(params_ptrs + K * (1 + C + channel) + chosen, exists, 0.0)
    scale = exp(tl.maximum(log_scale, _LEAST_LOG_SCALE), tl.float32) * temperature
    u = tl.load(u_ptrs + 1 + channel, exists, 0.5)
    scaled = (mean + scale * tl.log(u / (1.0 - u)) + 1.0) * (0.5 * (LEVELS - 1))
    level = tl.floor(tl.minimum(tl.maximum(scaled, 0.0), LEVELS - 1.0) + 0.5)
    return level * (2.0 / (LEVELS - 1)) - 1.0


@triton.jit
def keep_value(value, image_ptrs, given_ptrs, seen_ptrs, exists, HAS_GIVEN: tl.constexpr):
    """The final value of a channel, drawn or given. It is stored in the image and for the network."""
    if HAS_GIVEN:
        value = tl.where(tl.load(given_ptrs, exists, 0) != 0, tl.load(image_ptrs, exists, 0.0), value)
    tl.store(image_ptrs, value, exists)
    tl.store(seen_ptrs, value, exists)
    return value


@triton.jit
def draw_pixel(
    params_ptrs, seen_ptrs, image_ptrs, given_ptrs, u_ptrs, colors_ptr, exists, color, area, temperature,
    C: tl.constexpr, HEAD: tl.constexpr, COMPONENTS: tl.constexpr, LEVELS: tl.constexpr, BLOCK_L: tl.constexpr,
    SAMPLES: tl.constexpr, HAS_GIVEN: tl.constexpr,
):  # fmt: skip
    """Draws the channels of a color, or takes those of a finished image."""
    if HEAD == _MIXTURE and SAMPLES:
        u = tl.load(u_ptrs, exists, 0.5)
        chosen = draw_category(params_ptrs, exists, u, temperature, COMPONENTS, BLOCK_L)
        red = tl.zeros(u.shape, tl.float32)
        green = red
        for channel in tl.static_range(C):
            value = draw_mixture(
                params_ptrs, u_ptrs, exists, red, green, chosen, temperature, channel, C, COMPONENTS, LEVELS
            )
            value = keep_value(
                value, image_ptrs + channel * area, given_ptrs + channel * area, seen_ptrs + channel, exists, HAS_GIVEN
            )
            if channel == 0:
                red = value
            else:
                green = value
    else:
        for channel in range(0, C):
            if tl.load(colors_ptr + channel) == color:
                to_ptrs = image_ptrs + channel * area
                if SAMPLES:
                    u = tl.load(u_ptrs + channel, exists, 0.5)
                    if HEAD == _BERNOULLI:
                        logit = tl.load(params_ptrs + channel, exists, 0.0)
                        value = tl.where(u < sigmoid(logit / temperature), 1.0, 0.0)
                    else:
                        logits_ptrs = params_ptrs + channel * LEVELS
                        level = draw_category(logits_ptrs, exists, u, temperature, LEVELS, BLOCK_L)
                        value = level.to(tl.float32) / (LEVELS - 1)
                    keep_value(value, to_ptrs, given_ptrs + channel * area, seen_ptrs + channel, exists, HAS_GIVEN)
                else:
                    tl.store(seen_ptrs + channel, tl.load(to_ptrs, exists, 0.0), exists)
