"""Lower bounds of log p(x), in nats, for training."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..precision import compute_dtype
from ..reference import diag_gaussian as reference
from . import _checks
from .importance import finite_shift

__all__ = ["checkpointed_iwae_bound", "elbo", "iwae_bound", "monte_carlo_elbo", "standard_normal_log_prob"]


def _check_trailing(log_p_x: Tensor, **terms: Tensor) -> None:
    for name, t in terms.items():
        if t.dim() > log_p_x.dim() or t.shape != log_p_x.shape[log_p_x.dim() - t.dim() :]:
            raise ValueError(
                f"{name} must have the shape of log_p_x, {tuple(log_p_x.shape)}, or its trailing dimensions, "
                f"got {tuple(t.shape)}"
            )


def elbo(log_p_x: Tensor, kl: Tensor, *, beta: float | Tensor = 1.0) -> Tensor:
    r"""Evidence lower bound with a KL divergence known in closed form.

    .. math::
        \mathcal{L} = \log p(x \mid z) - \beta \, D_{KL}\!\left(q(z \mid x) \,\|\, p(z)\right)

    Args:
        log_p_x: log-likelihood of the data given one sample of z, nats, ``(*sample_shape, *)``.
        kl: KL divergence from prior to posterior, nats, ``(*)``: the trailing dimensions of ``log_p_x``; a
            0-d tensor, as :func:`free_bits` returns, too.
        beta: weight of the KL divergence, see the schedules of this package. Only ``beta <= 1`` leaves a
            lower bound.

    Returns:
        The bound, ``(*sample_shape, *)``; the dtype that PyTorch promotes to.

    Raises:
        TypeError: a term is no floating-point tensor.
        ValueError: the shape of ``kl`` is not that of the trailing dimensions of ``log_p_x``. Shapes such as
            ``(N, 1)`` against ``(N,)``, which would broadcast to ``(N, N)``, are refused.

    Reference:
        *Auto-Encoding Variational Bayes* (Kingma, Welling, 2013).

    Example:
        >>> elbo(torch.tensor([-80.0, -90.0]), torch.tensor([20.0, 25.0]))
        tensor([-100., -115.])
    """
    _checks.check_floating(log_p_x=log_p_x, kl=kl)
    _check_trailing(log_p_x, kl=kl)
    return log_p_x - beta * kl


def monte_carlo_elbo(log_p_x: Tensor, log_p_z: Tensor, log_q: Tensor, *, beta: float | Tensor = 1.0) -> Tensor:
    r"""Evidence lower bound with a KL divergence estimated by the sample itself.

    .. math::
        \mathcal{L} = \log p(x \mid z) - \beta \left(\log q(z \mid x) - \log p(z)\right),
        \quad z \sim q(z \mid x)

    With ``beta=1`` these are also the log-weights :math:`\log w` of :func:`iwae_bound` and
    :func:`importance_log_prob`.

    Args:
        log_p_x: log-likelihood of the data given the sample, nats, ``(*sample_shape, *)``.
        log_p_z: log-density of the sample under the prior, the same shape.
        log_q: log-density of the sample under the posterior, the same shape.
        beta: weight of the KL estimate.

    Returns:
        The bound, ``(*sample_shape, *)``; the dtype that PyTorch promotes to.

    Raises:
        TypeError: a term is no floating-point tensor.
        ValueError: the shapes differ.

    Reference:
        *Auto-Encoding Variational Bayes* (Kingma, Welling, 2013).

    Example:
        >>> monte_carlo_elbo(torch.tensor([-80.0]), torch.tensor([-60.0]), torch.tensor([-40.0]))
        tensor([-100.])
    """
    _checks.check_floating(log_p_x=log_p_x, log_p_z=log_p_z, log_q=log_q)
    for name, t in (("log_p_z", log_p_z), ("log_q", log_q)):
        if t.shape != log_p_x.shape:
            raise ValueError(f"{name} must have the shape of log_p_x, {tuple(log_p_x.shape)}, got {tuple(t.shape)}")
    return log_p_x - beta * (log_q - log_p_z)


def standard_normal_log_prob(z: Tensor) -> Tensor:
    r"""Log-density of a standard normal vector.

    .. math::
        \log p(z) = -\tfrac12 \sum_i \left(z_i^2 + \log 2\pi\right)

    Args:
        z: points, ``(*, D)``, floating point.

    Returns:
        ``log_p_z``, nats, ``(*)``; float32 (float64 for float64 points).

    Raises:
        TypeError: ``z`` is no floating-point tensor.
        ValueError: ``z`` has no dimension.

    Example:
        >>> standard_normal_log_prob(torch.zeros(3, 2))
        tensor([-1.8379, -1.8379, -1.8379])
    """
    _checks.check_floating(z=z)
    if z.dim() == 0:
        raise ValueError("z must have shape (*, D), got ()")
    return reference.standard_normal_log_prob(z.to(compute_dtype(z.dtype)))


def iwae_bound(log_w: Tensor, dim: int = 0) -> Tensor:
    r"""Importance-weighted bound of K samples, for training.

    .. math::
        \mathcal{L}_K = \log \frac1K \sum_k w_k, \qquad
        \nabla \mathcal{L}_K = \sum_k \tilde w_k \nabla \log w_k, \quad
        \tilde w = \operatorname{softmax}(\log w)

    Args:
        log_w: log-weights :math:`\log p(x, z_k) - \log q(z_k \mid x)`, nats, the K samples along ``dim``.
        dim: the dimension of the samples.

    Returns:
        The bound, the shape of ``log_w`` without ``dim``; float32 (float64 for float64 log-weights). The
        elementary bound for K = 1, and log p(x) in the limit of large K.

    Raises:
        TypeError: ``log_w`` is no floating-point tensor.
        ValueError: ``log_w`` has no dimension ``dim``, or no sample along it.

    Note:
        For thousands of samples without a gradient see :func:`importance_log_prob`, with a gradient
        :func:`checkpointed_iwae_bound`.

    Reference:
        *Importance Weighted Autoencoders* (Burda, Grosse, Salakhutdinov, 2015).

    Example:
        >>> iwae_bound(torch.tensor([[-81.0, -90.0], [-83.0, -90.0]]))
        tensor([-81.5662, -90.0000])
    """
    samples = _checks.count_samples(log_w, dim)
    if samples == 0:
        raise ValueError(f"log_w must hold at least one sample along dim {dim}, got {tuple(log_w.shape)}")
    log_w = log_w.to(compute_dtype(log_w.dtype))
    # logsumexp alone rounds its gradient, exp(log_w - result), to the absolute precision of the result.
    shift = finite_shift(log_w.detach().amax(dim))
    return torch.logsumexp(log_w - shift.unsqueeze(dim), dim) + (shift - math.log(samples))


def checkpointed_iwae_bound(
    log_weights: Callable[[int], Tensor],
    num_samples: int,
    chunk_size: int,
    *,
    device: torch.device | str | None = None,
) -> Tensor:
    r"""Importance-weighted bound of many samples, for training in the memory of one chunk.

    The samples are drawn chunk by chunk. Between the passes only the log-weights, one number for each sample
    and example, are kept; the backward pass runs ``log_weights`` again, one chunk at a time, with the same
    noise. The activations of a single chunk bound the memory, whatever ``num_samples``; value and gradient
    are those of :func:`iwae_bound`, at the price of a second forward pass.

    Args:
        log_weights: draws ``k`` new samples and returns their log-weights
            :math:`\log p(x, z) - \log q(z \mid x)`, nats, ``(k, *)``. The encoder should run outside: what
            the function captures is not computed again.
        num_samples: the number K of samples in all.
        chunk_size: the number of samples in one call; the last may be smaller.
        device: the device of the generator that the noise comes from. Default: the current CUDA device if CUDA is
            in use, else the CPU. The generator of the CPU is restored in any case.

    Returns:
        The bound, ``(*)``; float32 (float64 for float64 log-weights).

    Raises:
        TypeError: ``log_weights`` returns no floating-point tensor, or a size is no int.
        ValueError: a size is below 1, ``log_weights(k)`` does not return ``k`` samples, or they are on a
            device with a generator that is not restored.

    Note:
        The noise is drawn again by restoring the state of torch's default generators: a ``generator`` passed
        explicitly inside ``log_weights`` would give the second pass other noise and a wrong gradient.

    Reference:
        *Importance Weighted Autoencoders* (Burda, Grosse, Salakhutdinov, 2015);
        *Training Deep Nets with Sublinear Memory Cost* (Chen, Xu, Zhang, Guestrin, 2016).

    Example:
        >>> mu = torch.zeros(3, requires_grad=True)
        >>> bound = checkpointed_iwae_bound(lambda k: -(mu + torch.randn(k, 3)).square(), 50, 20)
        >>> bound.sum().backward()
        >>> bound.shape, mu.grad.shape
        (torch.Size([3]), torch.Size([3]))
    """
    sizes = _checks.chunk_sizes(num_samples, chunk_size)
    if device is None:
        device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_initialized() else "cpu"
    # checkpoint restores the generators of the devices of its tensor arguments, and of no others.
    noise_device = torch.empty(0, device=device)
    return iwae_bound(torch.cat([checkpoint(_chunk, log_weights, k, noise_device, use_reentrant=False) for k in sizes]))


def _chunk(log_weights: Callable[[int], Tensor], size: int, noise_device: Tensor) -> Tensor:
    log_w = _checks.draw_chunk(log_weights, size)
    if log_w.device.type != "cpu" and log_w.device != noise_device.device:
        raise ValueError(
            f"device must be that of the noise of log_weights, which returns {log_w.device}; got {noise_device.device}"
        )
    return log_w
