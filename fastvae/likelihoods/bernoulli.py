"""Log-likelihood of binary data, given a decoder's logits."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as TF
from torch import Tensor
from torch.autograd import forward_ad

from ..precision import compute_dtype

__all__ = ["bernoulli_log_prob"]

# Logits per block. On the CPU the temporaries stay in cache and out of fresh pages, yet threads meet rarely; elsewhere
# blocks only bound the memory, and are large enough to hide the launches.
_CPU_BLOCK = 1 << 20
_BLOCK = 1 << 24
# Above it softplus(l) = l to the last bit of float64; torch's default, 20, leaves an error of 2e-9.
_SOFTPLUS_THRESHOLD = 40.0


def bernoulli_log_prob(x: Tensor, logits: Tensor, event_ndims: int = 1) -> Tensor:
    r"""Log-likelihood of binary data under independent Bernoulli variables given by their logits.

    .. math::
        \log p(x) = \sum_j x_j l_j - \operatorname{softplus}(l_j)

    Args:
        x: data, ``(*, *event)``: bool, integer or floating point, in [0, 1]. Values strictly between are
            allowed, the result then is the negative cross-entropy. Missing or unit batch dimensions broadcast
            against those of ``logits`` (``(N, 784)`` against ``(K, N, 784)``) and are not repeated in memory.
        logits: log-odds :math:`l = \log p / (1 - p)`, ``(*sample_shape, *, *event)``, floating point.
        event_ndims: number of trailing dimensions that are summed over: 1 for ``(*, 784)``, 3 for
            ``(*, C, H, W)``.

    Returns:
        ``log_p_x``, nats, shape of ``logits`` without the event dimensions; float32 (float64 for float64
        logits).

    Raises:
        TypeError: ``logits`` is not floating point, or ``x`` is complex.
        ValueError: shapes do not fit, devices differ, or ``event_ndims`` is out of range.

    Note:
        Computed in float32 for half-precision logits, under autocast too. It runs block by block: large inputs
        meet no temporary of their size, forward or backward. The values of ``x`` are not checked, which would
        read them back from a GPU.

    Example:
        >>> x = torch.tensor([[True, False, True], [False, False, True]])
        >>> bernoulli_log_prob(x, torch.zeros(5, 2, 3)).shape
        torch.Size([5, 2])
        >>> bernoulli_log_prob(x, torch.tensor([2.0, -2.0, 2.0]).expand(2, 3))
        tensor([-0.3808, -2.3808])
    """
    _check(x, logits, event_ndims)
    if torch.compiler.is_compiling() or _under_transform():
        logits = logits.to(compute_dtype(logits.dtype))
        return _sum_terms(x.to(logits.dtype), logits, event_ndims)
    if torch.is_grad_enabled() and (x.requires_grad or logits.requires_grad):
        return _BernoulliLogProb.apply(x, logits, event_ndims)
    return _forward(x, logits, event_ndims)


def _check(x: Tensor, logits: Tensor, event_ndims: int) -> None:
    for name, t in (("x", x), ("logits", logits)):
        if not isinstance(t, Tensor):
            raise TypeError(f"{name} must be a tensor, got {type(t).__name__}")
    if not logits.is_floating_point():
        raise TypeError(f"logits must be floating point, got {logits.dtype}")
    if x.is_complex():
        raise TypeError(f"x must be bool, integer or floating point, got {x.dtype}")
    if x.device != logits.device:
        raise ValueError(f"x must be on the device of logits, {logits.device}; it is on {x.device}")
    if not 0 <= event_ndims <= logits.dim():
        raise ValueError(
            f"event_ndims must lie in [0, {logits.dim()}] for logits {tuple(logits.shape)}, got {event_ndims}"
        )
    event = logits.shape[logits.dim() - event_ndims :]
    if event_ndims <= x.dim() <= logits.dim() and x.shape[x.dim() - event_ndims :] == event:
        aligned = zip(x.shape, logits.shape[logits.dim() - x.dim() :], strict=True)
        if all(size in (1, wanted) for size, wanted in aligned):
            return
    raise ValueError(
        f"x must end in the event shape {tuple(event)} of logits {tuple(logits.shape)} and broadcast to it, "
        f"got {tuple(x.shape)}"
    )


def _under_transform() -> bool:
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def _event_dims(event_ndims: int) -> list[int]:
    return list(range(-event_ndims, 0))


def _sum_terms(x: Tensor, logits: Tensor, event_ndims: int) -> Tensor:
    log_p = x * logits - TF.softplus(logits, threshold=_SOFTPLUS_THRESHOLD)
    return log_p.sum(_event_dims(event_ndims)) if event_ndims else log_p


def _block_size(logits: Tensor) -> int:
    return _CPU_BLOCK if logits.device.type == "cpu" else _BLOCK


def _is_one_block(logits: Tensor, event_ndims: int) -> bool:
    return logits.numel() <= _block_size(logits) or logits.dim() == event_ndims


def _blocks(event_ndims: int, logits: Tensor, *others: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Views of the same batch entries of all tensors, one block of logits each, or one event if that is larger."""
    if _is_one_block(logits, event_ndims):
        yield (logits, *others)
        return
    step = _block_size(logits) * logits.shape[0] // logits.numel()
    if step > 0:
        yield from zip(*(t.split(step) for t in (logits, *others)), strict=True)
        return
    for entry in zip(*(t.unbind() for t in (logits, *others)), strict=True):
        yield from _blocks(event_ndims, *entry)


def _loss(x: Tensor, logits: Tensor) -> Tensor:
    logits = logits.to(x.dtype)
    return TF.softplus(logits, threshold=_SOFTPLUS_THRESHOLD).addcmul_(x, logits, value=-1.0)


def _residual(x: Tensor, logits: Tensor) -> Tensor:
    mean = torch.sigmoid(logits.to(x.dtype))
    return torch.sub(x, mean, out=mean)


def _forward(x: Tensor, logits: Tensor, event_ndims: int) -> Tensor:
    x = x.to(compute_dtype(logits.dtype))
    if event_ndims == 0:
        return _loss(x, logits).neg_()
    dims = _event_dims(event_ndims)
    if _is_one_block(logits, event_ndims):
        return _loss(x, logits).sum(dims).neg_()
    log_p_x = x.new_empty(logits.shape[: logits.dim() - event_ndims])
    for block, data, out in _blocks(event_ndims, logits, x.expand(logits.shape), log_p_x):
        torch.sum(_loss(data, block), dims, out=out)
    return log_p_x.neg_()


class _BernoulliLogProb(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, logits: Tensor, event_ndims: int) -> Tensor:
        ctx.save_for_backward(x, logits)
        ctx.event_ndims = event_ndims
        return _forward(x, logits, event_ndims)

    @staticmethod
    def backward(ctx: Any, d_log_p_x: Tensor) -> Any:
        x, logits = ctx.saved_tensors
        g = d_log_p_x.reshape(d_log_p_x.shape + (1,) * ctx.event_ndims)
        data = x.to(g.dtype)
        d_x = d_logits = None
        if ctx.needs_input_grad[0]:
            d_x = (g * logits).sum_to_size(x.shape).to(x.dtype)
        if ctx.needs_input_grad[1]:
            if torch.is_grad_enabled():
                d_logits = ((data - torch.sigmoid(logits.to(g.dtype))) * g).to(logits.dtype)
            elif _is_one_block(logits, ctx.event_ndims):
                d_logits = _residual(data, logits).mul_(g).to(logits.dtype)
            else:
                d_logits = torch.empty_like(logits)
                data = data.expand(logits.shape)
                for block, values, upstream, out in _blocks(ctx.event_ndims, logits, data, g, d_logits):
                    torch.mul(_residual(values, block), upstream, out=out)
        return d_x, d_logits, None
