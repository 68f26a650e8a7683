"""Estimates of log p(x) with many importance samples in bounded memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from ..precision import compute_dtype
from . import _checks

__all__ = ["LogMeanExp", "importance_log_prob"]


def finite_shift(maximum: Tensor) -> Tensor:
    """The number to subtract before exponentiating; 0 for an infinite maximum, since inf - inf is NaN."""
    return torch.where(maximum.isinf(), 0.0, maximum)


class LogMeanExp:
    r"""Streaming (online) log-mean-exp of log-weights that arrive chunk by chunk.

    For each example it keeps the largest log-weight m, the sum :math:`s = \sum_k e^{x_k - m}` and, for the
    effective sample size, :math:`s_2 = \sum_k e^{2(x_k - m)}`. A chunk with maximum b is taken in by

    .. math::
        m' = \max(m, b), \qquad s' = s\, e^{m - m'} + \sum_k e^{x_k - m'}

    and the value is :math:`m + \log s - \log K`. The rule is associative: chunks, processes and devices may
    be combined by :meth:`merge` in any order.

    The state is three numbers an example, float32 (float64 once a float64 chunk came), without gradient.
    Infinite and NaN log-weights give what :func:`torch.logsumexp` of all chunks together would give.

    Reference:
        *Online normalizer calculation for softmax* (Milakov, Gimelshein, 2018).

    Example:
        >>> accumulator = LogMeanExp()
        >>> for chunk in torch.tensor([[-81.0], [-83.0], [-82.0]]).split(2):
        ...     accumulator = accumulator.update(chunk)
        >>> accumulator.value(), accumulator.effective_sample_size()
        (tensor([-81.6910]), tensor([1.9587]))
    """

    count: int
    maximum: Tensor | None
    total: Tensor
    total_squares: Tensor

    def __init__(self) -> None:
        self.count = 0
        self.maximum = None

    def __repr__(self) -> str:
        shape = None if self.maximum is None else tuple(self.maximum.shape)
        return f"{type(self).__name__}(count={self.count}, shape={shape})"

    @torch.no_grad()
    def update(self, log_w: Tensor, dim: int = 0) -> LogMeanExp:
        """Takes in the log-weights of a chunk of samples along ``dim``; returns the accumulator.

        Raises:
            TypeError: ``log_w`` is no floating-point tensor.
            ValueError: ``log_w`` has no dimension ``dim``, or its others differ from those of earlier chunks.
        """
        samples = _checks.count_samples(log_w, dim)
        log_w = log_w.to(compute_dtype(log_w.dtype))
        if samples == 0:
            maximum = torch.full_like(log_w.sum(dim), -math.inf)
        else:
            maximum = log_w.amax(dim)
        weights = (log_w - finite_shift(maximum).unsqueeze(dim)).exp_()
        total = weights.sum(dim)
        return self._combine(samples, maximum, total, weights.square_().sum(dim), "log_w")

    @torch.no_grad()
    def merge(self, other: LogMeanExp) -> LogMeanExp:
        """Takes in everything that ``other`` has seen; returns the accumulator.

        Raises:
            TypeError: ``other`` is no :class:`LogMeanExp`.
            ValueError: the two have seen log-weights of different shapes.
        """
        if not isinstance(other, LogMeanExp):
            raise TypeError(f"other must be a LogMeanExp, got {type(other).__name__}")
        if other.maximum is None:
            return self
        return self._combine(other.count, other.maximum, other.total, other.total_squares, "other")

    def _combine(self, count: int, maximum: Tensor, total: Tensor, total_squares: Tensor, name: str) -> LogMeanExp:
        if self.maximum is None:
            self.count, self.maximum = count, maximum
            self.total, self.total_squares = total, total_squares
            return self
        if maximum.shape != self.maximum.shape:
            raise ValueError(
                f"{name} must hold log-weights of shape {tuple(self.maximum.shape)} a sample, as before, "
                f"got {tuple(maximum.shape)}"
            )
        joint = torch.maximum(self.maximum, maximum)
        # Not finite_shift of either maximum: where a maximum is -inf, its sum is empty and must get the factor 0.
        ours, theirs = (self.maximum - finite_shift(joint)).exp(), (maximum - finite_shift(joint)).exp()
        self.total = self.total * ours + total * theirs
        self.total_squares = self.total_squares * ours.square() + total_squares * theirs.square()
        self.maximum, self.count = joint, self.count + count
        return self

    def value(self) -> Tensor:
        r"""The log of the mean of all weights, nats, one for each example.

        Raises:
            RuntimeError: no sample has been taken in.
        """
        maximum = self._require_samples()
        return self.total.log() + finite_shift(maximum) - math.log(self.count)

    def effective_sample_size(self) -> Tensor:
        r""":math:`(\sum_k w_k)^2 / \sum_k w_k^2`, between 1 and the number of samples, one for each example.

        Raises:
            RuntimeError: no sample has been taken in.
        """
        self._require_samples()
        return self.total.square() / self.total_squares

    def _require_samples(self) -> Tensor:
        if self.maximum is None or self.count == 0:
            raise RuntimeError("LogMeanExp has seen no samples: call update first")
        return self.maximum


@torch.no_grad()
def importance_log_prob(
    log_weights: Callable[[int], Tensor] | Iterable[Tensor],
    num_samples: int | None = None,
    chunk_size: int | None = None,
    *,
    accumulator: LogMeanExp | None = None,
) -> Tensor:
    r"""Importance-sampled estimate of log p(x), without gradient, in the memory of one chunk of samples.

    .. math::
        \log p(x) \approx \log \frac1K \sum_k \frac{p(x, z_k)}{q(z_k \mid x)}, \qquad z_k \sim q(z \mid x)

    Args:
        log_weights: a function that draws ``k`` new samples and returns their log-weights
            :math:`\log p(x, z) - \log q(z \mid x)`, nats, ``(k, *)``; or an iterable of such chunks.
        num_samples: the number K of samples in all. For an iterable it may be left out; if given it is
            checked.
        chunk_size: the number of samples in one call of the function; the last may be smaller. Default: 128.
        accumulator: a :class:`LogMeanExp` to continue, which afterwards also tells the effective sample size.

    Returns:
        The estimate of log p(x), nats, ``(*)``; float32 (float64 for float64 log-weights).

    Raises:
        TypeError: ``log_weights`` is neither function nor iterable or yields no floating-point tensors, or a
            size is no int.
        ValueError: a size is below 1, ``num_samples`` is missing for a function or disagrees with the
            iterable, ``chunk_size`` is given for an iterable, or a chunk has another shape than asked for.
        RuntimeError: no sample came.

    Note:
        The estimate is below log p(x) on average, by about Var(w) / (2 K E[w]²): figures for different K must
        not be compared.

    Reference:
        *Importance Weighted Autoencoders* (Burda, Grosse, Salakhutdinov, 2015).

    Example:
        >>> from fastvae.objectives import standard_normal_log_prob
        >>> def log_weights(k):
        ...     z = torch.randn(k, 3, 2)
        ...     return standard_normal_log_prob(z - 1.0) - standard_normal_log_prob(z)
        >>> importance_log_prob(log_weights, num_samples=5000, chunk_size=500).shape
        torch.Size([3])
    """
    accumulator = LogMeanExp() if accumulator is None else accumulator
    if callable(log_weights):
        if num_samples is None:
            raise ValueError("num_samples must be given when log_weights is a function, got None")
        for size in _checks.chunk_sizes(num_samples, 128 if chunk_size is None else chunk_size):
            accumulator.update(_checks.draw_chunk(log_weights, size))
        return accumulator.value()
    if not isinstance(log_weights, Iterable):
        raise TypeError(f"log_weights must be a function or an iterable, got {type(log_weights).__name__}")
    if chunk_size is not None:
        raise ValueError(f"chunk_size must be None when log_weights is an iterable of chunks, got {chunk_size}")
    before = accumulator.count
    for chunk in log_weights:
        accumulator.update(chunk)
    if num_samples is not None and accumulator.count - before != num_samples:
        raise ValueError(f"log_weights must hold num_samples={num_samples}, got {accumulator.count - before}")
    return accumulator.value()
