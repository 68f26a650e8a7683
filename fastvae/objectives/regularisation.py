"""Free bits: a floor under the KL divergence, below which it is not penalised."""

from __future__ import annotations

import math

import torch
import torch.distributed as dist
from torch import Tensor

from ..precision import compute_dtype
from . import _checks

__all__ = ["free_bits"]


def free_bits(
    kl: Tensor,
    minimum: float | Tensor,
    *,
    num_groups: int | None = None,
    batch_ndims: int = 1,
    all_processes: bool = False,
    process_group: dist.ProcessGroup | None = None,
) -> Tensor:
    r"""KL divergence that leaves the first ``minimum`` nats of every group free.

    .. math::
        \sum_j \max\left(\lambda,\ \frac1N \sum_n D_{KL}^{(n, j)}\right)

    The floor applies to the mean over the batch. A group with a mean of at most :math:`\lambda` has no gradient
    for any example; a group above it has the full gradient for all.

    Args:
        kl: KL divergence, nats, for every example and latent dimension: ``(N, D)``, as
            ``diag_gaussian_kl(mu[..., None], log_sigma[..., None])`` gives, or ``(N, C, H, W)`` with C the
            dimension that is grouped. What comes after that dimension is summed over, so that a latent map is
            one group.
        minimum: :math:`\lambda`, nats a group, >= 0; a tensor ``(groups,)`` for a floor of each group.
        num_groups: the number of groups of consecutive latent dimensions; every dimension is a group of its
            own if None, and 1 puts the floor under the sum.
        batch_ndims: number of leading dimensions averaged over: 1 for ``(N, D)``, 2 for samples
            ``(K, N, D)``.
        all_processes: average over the batches of all processes of ``torch.distributed``, weighted by their
            sizes.
        process_group: the processes to average over, which implies ``all_processes``; all if None.

    Returns:
        The sum over groups, 0-d; float32 (float64 for float64 input).

    Raises:
        TypeError: ``kl`` is no floating-point tensor.
        ValueError: ``kl`` has too few dimensions or an empty batch, ``num_groups`` does not divide the latent
            dimensions, or ``minimum`` is negative or of another shape.
        RuntimeError: ``all_processes`` is set and ``torch.distributed`` is not initialised.

    Note:
        With ``all_processes`` every process returns the same value, and the gradient is scaled such that its
        average over the processes, as ``DistributedDataParallel`` takes it, is the gradient of that value.
        NaN propagates.

    Reference:
        *Improving Variational Inference with Inverse Autoregressive Flow* (Kingma, Salimans, Jozefowicz,
        Chen, Sutskever, Welling, 2016), equation 15.

    Example:
        >>> kl = torch.tensor([[0.1, 2.0], [0.3, 4.0]], requires_grad=True)
        >>> loss = free_bits(kl, 0.5)
        >>> loss.backward()
        >>> loss.item(), kl.grad.tolist()
        (3.5, [[0.0, 0.5], [0.0, 0.5]])
    """
    rows = _by_group(kl, num_groups, batch_ndims)
    minimum = _floor(minimum, rows)
    if all_processes or process_group is not None:
        mean, local = _means_of_all(rows, process_group)
    else:
        if rows.shape[0] == 0:
            raise ValueError(f"kl must hold at least one example, got {tuple(kl.shape)}")
        mean = local = rows.mean(0)
    # Written so that NaN takes the branch that keeps it.
    return torch.where(mean <= minimum, minimum, local).sum()


def _by_group(kl: Tensor, num_groups: int | None, batch_ndims: int) -> Tensor:
    """``kl`` as ``(examples, groups)``."""
    _checks.check_floating(kl=kl)
    if batch_ndims < 1:
        raise ValueError(f"batch_ndims must be >= 1, got {batch_ndims}")
    if kl.dim() <= batch_ndims:
        raise ValueError(
            f"kl must have {batch_ndims} batch dimensions and at least one of latents, got {tuple(kl.shape)}"
        )
    latents = kl.shape[batch_ndims]
    groups = latents if num_groups is None else num_groups
    if groups < 1 or latents % groups:
        raise ValueError(f"num_groups must divide the {latents} latent dimensions of kl, got {num_groups}")
    kl = kl.flatten(0, batch_ndims - 1).unflatten(1, (groups, latents // groups))
    return kl.sum(list(range(2, kl.dim())), dtype=compute_dtype(kl.dtype))


def _floor(minimum: float | Tensor, rows: Tensor) -> Tensor:
    if isinstance(minimum, Tensor):
        if minimum.dim() > 0 and minimum.shape != rows.shape[1:]:
            raise ValueError(
                f"minimum must be a number or have one value for each of {rows.shape[1]} groups, "
                f"got {tuple(minimum.shape)}"
            )
        return minimum.to(rows.dtype)
    if not 0 <= minimum < math.inf:
        raise ValueError(f"minimum must be >= 0 and finite, got {minimum}")
    return rows.new_full((), minimum)


def _means_of_all(rows: Tensor, process_group: dist.ProcessGroup | None) -> tuple[Tensor, Tensor]:
    """The mean over all processes, and the same value with the gradient of this process's share."""
    if not (dist.is_available() and dist.is_initialized()):
        raise RuntimeError("all_processes=True needs torch.distributed to be initialised, and it is not")
    total = rows.sum(0)
    joint = torch.cat([total.detach(), total.new_tensor([rows.shape[0]])])
    dist.all_reduce(joint, group=process_group)
    share = total * (dist.get_world_size(process_group) / joint[-1])
    mean = joint[:-1] / joint[-1]
    return mean, share + (mean - share.detach())
