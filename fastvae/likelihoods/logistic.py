"""Likelihoods of pixels with many levels: discretised logistics and their mixtures."""

from __future__ import annotations

import torch
from torch import Tensor

from ..ops import _checks
from ..ops.logistic_mixture import check_data, check_levels, logistic_mixture_log_prob
from ..precision import compute_dtype
from ..reference import logistic_mixture as reference
from ..rng import check_generator

__all__ = ["discretized_logistic_log_prob", "logistic_mixture_log_prob", "logistic_mixture_sample"]


def discretized_logistic_log_prob(x: Tensor, mu: Tensor, log_scale: Tensor, *, levels: int = 256) -> Tensor:
    r"""Log-probability of every value under a discretised logistic of its own.

    .. math::
        \log p(x) = \log\left[\sigma(e^{-s}(x - \mu + h)) - \sigma(e^{-s}(x - \mu - h))\right],
        \qquad h = \tfrac{1}{\mathrm{levels} - 1}

    with the lower term 0 at x = -1 and the upper one 1 at x = 1.

    Args:
        x: data, any shape, values :math:`2 i / (\mathrm{levels} - 1) - 1`, i = 0 ... levels - 1, of a
            floating-point dtype that tells them apart: half precision does for 8-bit images.
        mu: means, broadcast against ``x``.
        log_scale: s, broadcast against ``x``: one number, one for each channel ``(C, 1, 1)``, or one for each value.
        levels: number of values, 2 to 65536.

    Returns:
        The log-probability of each value, nats, in the joint shape; float32 (float64 for float64 ``mu``). Sum it over
        an image's dimensions for its likelihood.

    Raises:
        TypeError: an argument is no floating-point tensor, dtypes of ``mu`` and ``log_scale`` differ outside autocast,
            or ``levels`` is no integer.
        ValueError: shapes do not broadcast, devices differ, ``levels`` is out of range or more than the dtype of ``x``
            tells apart, or ``x`` requires a gradient.

    Note:
        Plain PyTorch on every device, differentiable any number of times: :func:`logistic_mixture_log_prob` has the
        kernels. Log-scales below -7 count as -7 and get no gradient. Values of ``x`` are not checked.

    Reference:
        *Improving Variational Inference with Inverse Autoregressive Flow* (Kingma et al., 2016).

    Example:
        >>> x = torch.tensor([-1.0, 0.0, 1.0])
        >>> discretized_logistic_log_prob(x, torch.zeros(3), torch.zeros(()), levels=3).exp()
        tensor([0.3775, 0.2449, 0.3775])
    """
    levels = check_levels(levels)
    x, mu, log_scale = _checks.to_readable(x=x, mu=mu, log_scale=log_scale)
    check_data(x, levels)
    mu, log_scale = _checks.to_same_kind(mu=mu, log_scale=log_scale)
    if mu.device != x.device:
        raise ValueError(f"mu must be on the device of x, {x.device}; it is on {mu.device}")
    try:
        torch.broadcast_shapes(x.shape, mu.shape, log_scale.shape)
    except RuntimeError:
        shapes = f"x {tuple(x.shape)}, mu {tuple(mu.shape)}, log_scale {tuple(log_scale.shape)}"
        raise ValueError(f"the shapes of x, mu and log_scale must broadcast, got {shapes}") from None
    dtype = compute_dtype(mu.dtype)
    clamped = log_scale.to(dtype).clamp(min=reference.LEAST_LOG_SCALE)
    return reference.discretized_logistic(x.to(dtype), mu.to(dtype), clamped, levels)


def logistic_mixture_sample(
    params: Tensor,
    *,
    channels: int | None = None,
    temperature: float = 1.0,
    levels: int = 256,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""Draws every pixel from its discretised mixture of logistics.

    A component from the weights, its logistics in the order of the channels, each value to the nearest level before
    the next channel's mean is shifted by it.

    Args:
        params: ``(N, 3K, H, W)`` for one channel, ``(N, 10K, H, W)`` for three, as
            :func:`logistic_mixture_log_prob` orders them.
        channels: 1 or 3; may be left out where only one of them divides ``params``.
        temperature: divides the weight logits and multiplies the scales; above 0.
        levels: number of values of a channel, 2 to 65536.
        generator: the source of randomness, on the device of ``params``; its default generator when None.

    Returns:
        Images, ``(N, C, H, W)``, values :math:`2 i / (\mathrm{levels} - 1) - 1`, i = 0 ... levels - 1; float32 (float64
        for float64 ``params``).

    Raises:
        TypeError: ``params`` is no floating-point tensor, ``levels`` no integer, or ``generator`` no generator.
        ValueError: ``params`` does not hold whole components, ``channels`` is neither 1 nor 3 or must be given, a
            number is out of range, or ``generator`` is on another device.

    Note:
        Plain PyTorch, without a gradient. Pixels are independent given ``params``. The params of an autoregressive
        network depend on the pixels before: draw its images by its sampler.

    Example:
        >>> images = logistic_mixture_sample(torch.zeros(2, 100, 8, 8))
        >>> images.shape, bool(images.abs().max() <= 1.0)
        (torch.Size([2, 3, 8, 8]), True)
    """
    levels = check_levels(levels)
    (params,) = _checks.to_same_kind(params=_checks.to_readable(params=params)[0])
    check_generator(generator, params.device)
    if not temperature > 0.0:
        raise ValueError(f"temperature must be above 0, got {temperature}")
    channels = _channels_of(params, channels)
    maps = params.detach().movedim(1, -1)
    dtype = compute_dtype(params.dtype)
    shape = (*maps.shape[:-1], 1 + channels)
    uniforms = torch.rand(shape, dtype=dtype, device=params.device, generator=generator)
    # In float32, one draw of 2^24 is 0. Its quantile would be infinite.
    uniforms = uniforms.clamp_(min=torch.finfo(dtype).eps / 4)
    pixels = reference.logistic_mixture_sample(maps, uniforms, temperature, levels)
    return pixels.movedim(-1, 1).contiguous()


def _channels_of(params: Tensor, channels: int | None) -> int:
    sizes = reference.PARAMS_PER_COMPONENT
    if channels is not None and channels not in sizes:
        raise ValueError(f"channels must be 1 or 3, got {channels}")
    wanted = list(sizes) if channels is None else [channels]
    whole = params.dim() == 4 and params.shape[1] > 0
    fitting = [c for c in wanted if whole and params.shape[1] % sizes[c] == 0]
    if not fitting:
        forms = " or ".join(f"(N, {sizes[c]} K, H, W)" for c in wanted)
        raise ValueError(f"params must have shape {forms}, got {tuple(params.shape)}")
    if len(fitting) > 1:
        raise ValueError(f"channels must be given, 1 or 3: both are possible for params {tuple(params.shape)}")
    return fitting[0]
