"""Log-likelihood of images under discretised mixtures of logistics, one pass over the parameters."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import backend
from ..backend import Route, not_dense
from ..precision import check_dtype, compute_dtype
from ..reference import logistic_mixture as reference
from ..reference.logistic_mixture import PARAMS_PER_COMPONENT
from ..structure.integers import integer
from . import _checks, _layout
from ._contracts import Call
from ._library import Differentiable, apply, define, empty, extension, needs_grad, with_reference

MOST_LEVELS = 1 << 16


# `kept` holds the derivatives of log_prob, which a CPU computes in the forward pass: computing them again would cost
# more than a product with them. It is empty on a GPU, which is bound by memory.


def _fwd_cpu(x: Tensor, params: Tensor, levels: int, keep: bool) -> Any:
    return extension().logistic_mixture_fwd(x, _layout.to_compute_dtype(params), levels, keep)


def _fwd_triton(launcher: Any, x: Tensor, params: Tensor, levels: int, keep: bool) -> tuple[Tensor, Tensor]:
    log_prob = launcher(x, params, levels)
    return log_prob, log_prob.new_empty(0)


def _fwd_fake(x: Tensor, params: Tensor, levels: Any, keep: bool) -> tuple[Tensor, Tensor]:
    log_prob = x.new_empty(x.shape[0])
    kept = _bwd_fake(log_prob, x, params, None, levels) if keep and x.device.type == "cpu" else x.new_empty(0)
    return log_prob, kept.to(x.dtype)


def _bwd_cpu(d_log_prob: Tensor, x: Any, params: Any, kept: Tensor, levels: int) -> Tensor:
    n, c, h, w = kept.shape
    by_pixel = kept.stride(1) == 1
    d_params = empty(kept, (n, h, w, c)).permute(0, 3, 1, 2) if by_pixel else empty(kept, kept.shape)
    torch.mul(kept, d_log_prob.view(-1, 1, 1, 1), out=d_params)
    return d_params


def _bwd_triton(launcher: Any, d_log_prob: Tensor, x: Tensor, params: Tensor, kept: Any, levels: int) -> Any:
    return launcher(d_log_prob, x, params, levels)


def _bwd_fake(d_log_prob: Any, x: Any, params: Tensor | None, kept: Tensor | None, levels: Any) -> Tensor:
    # A CPU scales what the forward pass kept; others read the parameters, whatever is kept.
    of_kept = params is None or (kept is not None and d_log_prob.device.type == "cpu")
    like = kept if of_kept else params
    assert like is not None
    if like.stride(1) != 1:
        return like.new_empty(like.shape)
    n, c, h, w = like.shape
    return like.new_empty((n, h, w, c)).permute(0, 3, 1, 2)


def _check_call(call: Call) -> None:
    levels, kept, backward = call["levels"], call.arguments.get("kept"), "d_log_prob" in call.arguments
    call.require(2 <= levels <= MOST_LEVELS, "levels", f"lie in [2, {MOST_LEVELS}]", levels)
    if backward and call.is_cpu:
        call.require(kept is not None, "kept", "be given for tensors on a CPU", None)
        return
    for name in ("x", "params"):
        call.require(call[name] is not None, name, "be given", None)
    channels, count = call.sizes["C"], call.sizes["P"]
    call.require(channels in PARAMS_PER_COMPONENT, "x", "have 1 or 3 channels", channels)
    per = PARAMS_PER_COMPONENT[channels]
    call.require(count > 0 and count % per == 0, "params", f"have a multiple of {per} channels", count)


FWD = define(
    "logistic_mixture_fwd(Tensor x, Tensor params, int levels, bool keep) -> (Tensor log_prob, Tensor kept)",
    tensors="params[N,P,H,W] x[N,C,H,W]w", more=_check_call,
    module="logistic_mixture", cpu=_fwd_cpu, fake=_fwd_fake, adapt=_fwd_triton,
)  # fmt: skip
BWD = define(
    "logistic_mixture_bwd(Tensor d_log_prob, Tensor? x, Tensor? params, Tensor? kept, int levels) -> Tensor d_params",
    tensors="params?[N,P,H,W] d_log_prob[N]cw x?[N,C,H,W]w kept?[N,P,H,W]w", more=_check_call,
    module="logistic_mixture", cpu=_bwd_cpu, fake=_bwd_fake, adapt=_bwd_triton,
)  # fmt: skip


def _rebuild_log_prob(ctx: Any) -> Differentiable:
    x, params, *_ = ctx.saved_tensors

    def log_prob(_: None, params: Tensor, *others: None) -> Tensor:
        return reference.logistic_mixture_log_prob(x, params, ctx.levels)

    return log_prob, (None, params, None, None)


class _LogisticMixtureLogProb(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, params: Tensor, levels: int, route: Route) -> Tensor:
        log_prob, kept = FWD.on(route)(x, params, levels, True)
        ctx.save_for_backward(x, params, kept if route.impl == "cpp" else None)
        ctx.levels, ctx.route = levels, route
        return log_prob

    @staticmethod
    @with_reference(_rebuild_log_prob)
    def backward(ctx: Any, route: Route, d_log_prob: Tensor) -> Any:
        x, params, kept = ctx.saved_tensors
        op = BWD.on(route)
        saved = (x, params, None) if kept is None else (None, None, kept)
        return None, _layout.cast(op(d_log_prob.contiguous(), *saved, ctx.levels), params.dtype), None, None


def check_levels(levels: int) -> int:
    """``levels`` as a Python integer in its range."""
    try:
        levels = integer("levels", levels)
    except TypeError:
        raise TypeError(f"levels must be an int, got {type(levels).__name__}") from None
    if not 2 <= levels <= MOST_LEVELS:
        raise ValueError(f"levels must lie in [2, {MOST_LEVELS}], got {levels}")
    return levels


def check_data(x: Tensor, levels: int) -> None:
    if not isinstance(x, Tensor):
        raise TypeError(f"x must be a tensor, got {type(x).__name__}")
    if x.layout is not torch.strided or x.is_nested:
        raise not_dense(x, "x")
    if x.dtype is torch.float32 and not x.requires_grad:
        return  # which tells any number of levels apart
    if x.dtype not in _checks.DTYPES:
        raise TypeError(f"x must be float16, bfloat16, float32 or float64, with values in [-1, 1], got {x.dtype}")
    if x.requires_grad and torch.is_grad_enabled():
        raise ValueError("x must not require a gradient: its likelihood is a function of discrete levels; detach it")
    check_dtype("x", x.dtype, levels, symmetric=True)


def _check(x: Tensor, params: Tensor, levels: int, alike: bool) -> None:
    check_data(x, levels)
    if not alike:
        (params,) = _checks.to_same_kind(params=params)
    if params.device != x.device:
        raise ValueError(f"params must be on the device of x, {x.device}; it is on {params.device}")
    # A number also where torch.jit.trace makes tensors of sizes.
    channels = int(x.shape[1]) if x.dim() == 4 else 0
    if channels not in PARAMS_PER_COMPONENT:
        raise ValueError(f"x must have shape (N, C, H, W) with 1 or 3 channels, got {tuple(x.shape)}")
    n, _, height, width = x.shape
    per_component, count = PARAMS_PER_COMPONENT[channels], params.shape[1] if params.dim() == 4 else 0
    if count == 0 or count % per_component or params.shape != (n, count, height, width):
        raise ValueError(
            f"params must have shape ({n}, {per_component} K, {height}, {width}), K components for {channels} "
            f"channel{'s' if channels > 1 else ''} of x {tuple(x.shape)}, got {tuple(params.shape)}"
        )


def logistic_mixture_log_prob(x: Tensor, params: Tensor, *, levels: int = 256, impl: str = "auto") -> Tensor:
    r"""Log-likelihood of images under a discretised mixture of logistics for each pixel, as in PixelCNN++.

    .. math::
        \log p(x) = \sum_{\text{pixels}} \log \sum_k \pi_k \prod_c
            \left[\sigma(e^{-s_{ck}}(x_c - m_{ck} + h)) - \sigma(e^{-s_{ck}}(x_c - m_{ck} - h))\right],
        \qquad h = \tfrac{1}{\mathrm{levels} - 1}

    with the lower term 0 at x = -1 and the upper one 1 at x = 1, so that a pixel's probabilities of all levels sum up
    to 1. The means of three channels depend on the channels before: :math:`m_1 = \mu_1`,
    :math:`m_2 = \mu_2 + \tanh(t_1)\, x_1`, :math:`m_3 = \mu_3 + \tanh(t_2)\, x_1 + \tanh(t_3)\, x_2`.

    Args:
        x: images, ``(N, C, H, W)`` with C = 1 or 3 and values :math:`2 i / (\mathrm{levels} - 1) - 1`, i = 0 ...
            levels - 1, of a floating-point dtype that tells them apart: half precision does for 8-bit images.
        params: of every pixel, K components; ``(N, 3K, H, W)`` for one channel, ``(N, 10K, H, W)`` for three. In
            this order: K weight logits; means, component k of channel c at c K + k; log-scales, in the same way; for
            three channels the coefficients t, component k of coefficient j at j K + k.
        levels: number of values of a channel, 2 to 65536.
        impl: ``"auto"``, ``"triton"``, ``"cpp"`` or ``"reference"``, see :mod:`fastvae.backend`.

    Returns:
        ``log_prob``, nats, ``(N,)``; float32 (float64 for float64 ``params``).

    Raises:
        TypeError: an argument is no floating-point tensor, or ``levels`` no integer.
        ValueError: shapes do not fit, devices differ, ``levels`` is out of range or more than the dtype of ``x`` tells
            apart, or ``x`` requires a gradient, which a function of discrete levels does not have.
        RuntimeError: ``impl`` cannot run here.

    Note:
        Computed in float32 for half-precision ``params``, under autocast too; ``x`` is converted. Differences of
        sigmoids are evaluated without cancellation, and so need no approximation for narrow or far bins. Log-scales
        below -7 count as -7 and get no gradient. The values of ``x`` are not checked, which would read them back from a
        GPU; a value between levels has the probability of the bin around it. Contiguous and channels-last ``params``
        are read without a copy, and the gradient has their layout. Where ``params`` requires a gradient, a CPU computes
        the derivatives on the way forward and keeps them beside it: float32 or float64 maps of that size.
        Deterministic. Differentiable with respect to ``params`` any number of times, by the reference from the second
        time on.

        Behind the logits, the original PixelCNN++ has means, log-scales and coefficients of one channel side by side.
        ``.unflatten(-1, (3, 3, K)).transpose(-3, -2).flatten(-3)`` of that part of its last dimension gives this order.

    Reference:
        *PixelCNN++: Improving the PixelCNN with Discretized Logistic Mixture Likelihood and Other Modifications*
        (Salimans, Karpathy, Chen and Kingma, 2017).

    Example:
        >>> import math
        >>> x = torch.zeros(2, 3, 4, 4)
        >>> params = torch.zeros(2, 100, 4, 4)
        >>> log_prob = logistic_mixture_log_prob(x, params)
        >>> log_prob / (-48 * math.log(2.0))  # bits per dimension
        tensor([8.9944, 8.9944])
    """
    levels = check_levels(levels)
    route, (x, params) = backend.route(impl, x, params, names=("x", "params"))
    _check(x, params, levels, route.alike)
    x = _layout.cast(x, compute_dtype(params.dtype))
    if route.impl == "reference":
        return reference.logistic_mixture_log_prob(x, params, levels)
    if needs_grad(params):
        return apply(_LogisticMixtureLogProb, x, params, levels, route)
    return FWD.on(route)(x, params, levels, False)[0]
