"""Score-function gradients of discrete latents, and the baselines that lower their variance."""

from __future__ import annotations

import math

import torch
import torch.distributed as dist
from torch import Tensor, nn

from . import _checks
from .bounds import iwae_bound

__all__ = ["RunningBaseline", "leave_one_out", "score_function", "vimco_bound"]


def score_function(log_q: Tensor, signal: Tensor, *, baseline: float | Tensor | None = None) -> Tensor:
    r"""A zero whose gradient is the score-function estimate of the gradient of the expected signal.

    .. math::
        \nabla_\phi E_q[f] = E_q\left[(f - c)\, \nabla_\phi \log q_\phi(b)\right]

    Add it to the signal: ``bound = signal + score_function(log_q, signal)`` has the value of the signal, the direct
    gradient of the signal, and the gradient of q by the score function.

    Args:
        log_q: log-probability of the samples b, nats, ``(*)``, with its gradient.
        signal: f, the shape of ``log_q``; taken as a constant. For the evidence lower bound it is
            ``log p(x, b) - log_q.detach()``: the gradient of log q itself is zero on average.
        baseline: c, a number or a tensor that broadcasts to the shape of the signal; taken as a constant. The
            estimate is unbiased if c does not depend on the sample.

    Returns:
        Zeros, the shape of ``log_q``, in the dtype that PyTorch promotes to.

    Raises:
        TypeError: a term is no floating-point tensor.
        ValueError: the shapes of ``log_q`` and ``signal`` differ, or ``baseline`` does not broadcast to them.

    Reference:
        *Simple Statistical Gradient-Following Algorithms for Connectionist Reinforcement Learning* (Williams, 1992).

    Example:
        >>> log_q = torch.tensor([-1.0, -2.0], requires_grad=True)
        >>> (zero := score_function(log_q, torch.tensor([3.0, 5.0]), baseline=4.0)).sum().backward()
        >>> zero.abs().tolist(), log_q.grad.tolist()
        ([0.0, 0.0], [-1.0, 1.0])
    """
    _checks.check_floating(log_q=log_q, signal=signal)
    if log_q.shape != signal.shape:
        raise ValueError(f"signal must have the shape of log_q, {tuple(log_q.shape)}, got {tuple(signal.shape)}")
    weight = signal.detach()
    if baseline is not None:
        if isinstance(baseline, Tensor):
            _check_broadcast("baseline", baseline, signal)
            baseline = baseline.detach()
        weight = weight - baseline
    return weight * (log_q - log_q.detach())


def _check_broadcast(name: str, t: Tensor, signal: Tensor) -> None:
    sizes = zip(reversed(t.shape), reversed(signal.shape), strict=False)
    if t.dim() > signal.dim() or any(own not in (1, size) for own, size in sizes):
        raise ValueError(f"{name} must broadcast to the shape of signal, {tuple(signal.shape)}, got {tuple(t.shape)}")


def leave_one_out(signal: Tensor, dim: int = 0) -> Tensor:
    r"""The baseline of each of K samples: the mean signal of the others.

    .. math::
        c_k = \frac{1}{K - 1} \sum_{j \ne k} f_j

    Args:
        signal: f of K independent samples along ``dim``.
        dim: the dimension of the samples.

    Returns:
        The baselines, the shape and dtype of ``signal``, without gradient. Equal signals give that signal exactly.

    Raises:
        TypeError: ``signal`` is no floating-point tensor.
        ValueError: ``signal`` has no dimension ``dim``, or fewer than two samples along it.

    Reference:
        *Buy 4 REINFORCE Samples, Get a Baseline for Free!* (Kool, van Hoof, Welling, 2019).

    Example:
        >>> leave_one_out(torch.tensor([1.0, 2.0, 6.0]))
        tensor([4.0000, 3.5000, 1.5000])
    """
    samples = _count(signal, dim, "signal")
    signal = signal.detach()
    # Sums of differences: those of equal signals are 0 to the last bit.
    first = signal.narrow(dim, 0, 1)
    apart = signal - first
    return first + (apart.sum(dim, keepdim=True) - apart) / (samples - 1)


def _count(t: Tensor, dim: int, name: str) -> int:
    _checks.check_floating(**{name: t})
    if not -t.dim() <= dim < t.dim():
        raise ValueError(f"dim must be a dimension of {name} {tuple(t.shape)}, got {dim}")
    if t.shape[dim] < 2:
        raise ValueError(f"{name} must hold at least two samples along dim {dim}, got {tuple(t.shape)}")
    return t.shape[dim]


def vimco_bound(log_w: Tensor, log_q: Tensor, dim: int = 0) -> Tensor:
    r"""Importance-weighted bound of K discrete samples with the gradient of VIMCO.

    .. math::
        \nabla \mathcal{L}_K \approx \sum_k (\mathcal{L}_K - c_k) \nabla \log q(b_k)
        + \sum_k \tilde w_k \nabla \log w_k, \qquad
        c_k = \log \frac1K \Big(\sum_{j \ne k} w_j + \exp \frac{1}{K - 1} \sum_{j \ne k} \log w_j\Big)

    Args:
        log_w: log-weights :math:`\log p(x, b_k) - \log q(b_k \mid x)`, nats, with their gradients, also that of log q;
            the K samples along ``dim``.
        log_q: log-probability of the samples, the same shape.
        dim: the dimension of the samples.

    Returns:
        The bound, the shape of ``log_w`` without ``dim``; float32 (float64 for float64 log-weights).

    Raises:
        TypeError: a term is no floating-point tensor.
        ValueError: the shapes differ, or there are fewer than two samples.

    Note:
        The K baselines take memory for K² numbers an example.

    Reference:
        *Variational Inference for Monte Carlo Objectives* (Mnih, Rezende, 2016).

    Example:
        >>> log_q = torch.tensor([-1.0, -2.0], requires_grad=True)
        >>> vimco_bound(torch.tensor([-81.0, -83.0]) - log_q, log_q)
        tensor(-80.3799, grad_fn=<AddBackward0>)
    """
    samples = _count(log_w, dim, "log_w")
    _checks.check_floating(log_q=log_q)
    if log_q.shape != log_w.shape:
        raise ValueError(f"log_q must have the shape of log_w, {tuple(log_w.shape)}, got {tuple(log_q.shape)}")
    bound = iwae_bound(log_w, dim)
    # The samples last, twice: row k has the mean of the others in place of its own log-weight.
    last = log_w.detach().to(bound.dtype).movedim(dim, -1)
    own = torch.eye(samples, dtype=torch.bool, device=last.device)
    without = torch.where(own, leave_one_out(last, -1).unsqueeze(-1), last.unsqueeze(-2))
    baselines = torch.logsumexp(without, -1) - math.log(samples)
    signal = bound.detach().unsqueeze(-1).expand_as(baselines)
    return bound + score_function(log_q.movedim(dim, -1), signal, baseline=baselines).sum(-1)


class RunningBaseline(nn.Module):
    r"""A baseline of earlier signals: their mean, and for :meth:`normalise` their spread.

    .. math::
        c_t = \frac{\sum_{s < t} d^{\,t - s} \bar f_s}{\sum_{s < t} d^{\,t - s}}

    The mean over a batch enters after it was used, so that the estimate stays unbiased. Before the first batch the mean
    is 0 and the spread 1. In evaluation mode nothing enters.

    Args:
        decay: d in (0, 1), the share of the past that a batch leaves.
        all_processes: whether the signals of all processes of ``torch.distributed`` enter.

    Raises:
        TypeError: ``decay`` is no number.
        ValueError: ``decay`` is out of its range.
        RuntimeError: at a call, ``all_processes`` is set and ``torch.distributed`` is not initialised.

    Reference:
        *Neural Variational Inference and Learning in Belief Networks* (Mnih, Gregor, 2014).

    Example:
        >>> baseline = RunningBaseline(0.5)
        >>> [baseline(torch.tensor([f])).item() for f in (4.0, 8.0, 8.0)]
        [0.0, 4.0, 6.666666666666667]
    """

    sums: Tensor

    def __init__(self, decay: float = 0.9, *, all_processes: bool = False) -> None:
        super().__init__()
        _checks.check_positive(decay=decay)
        if decay >= 1:
            raise ValueError(f"decay must lie in (0, 1), got {decay}")
        self.decay, self.all_processes = decay, all_processes
        # Decayed sums of the weights, the means and the mean squares of batches.
        self.register_buffer("sums", torch.zeros(3, dtype=torch.float64))

    def extra_repr(self) -> str:
        return f"decay={self.decay}, all_processes={self.all_processes}"

    def forward(self, signal: Tensor) -> Tensor:
        """The baseline for ``signal``, 0-d float64, which then enters it."""
        mean, _ = self.moments()
        self._enter(signal)
        return mean

    def normalise(self, signal: Tensor) -> Tensor:
        r""":math:`(f - c) / \max(1, s)` with the deviation s of earlier signals, without gradient; then f enters."""
        mean, deviation = self.moments()
        self._enter(signal)
        return ((signal.detach() - mean) / deviation.clamp(min=1.0)).to(signal.dtype)

    def moments(self) -> tuple[Tensor, Tensor]:
        """The mean and the standard deviation of earlier signals, 0-d float64; 0 and 1 where there are none."""
        weight, mean, square = self.sums.clone()
        none = weight == 0
        weight = torch.where(none, 1.0, weight)
        mean = mean / weight
        return mean, torch.where(none, 1.0, (square / weight - mean.square()).clamp(min=0.0).sqrt())

    @torch.no_grad()
    def _enter(self, signal: Tensor) -> None:
        _checks.check_floating(signal=signal)
        if not self.training:
            return
        wide = signal.detach().to(self.sums)
        totals = torch.stack([wide.new_tensor(float(wide.numel())), wide.sum(), wide.square().sum()])
        if self.all_processes:
            if not (dist.is_available() and dist.is_initialized()):
                raise RuntimeError("all_processes=True needs torch.distributed to be initialised, and it is not")
            dist.all_reduce(totals)
        if totals[0] > 0:
            self.sums.mul_(self.decay).add_(totals / totals[0], alpha=1.0 - self.decay)
