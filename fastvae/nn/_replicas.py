"""Parameters that a first batch sets must be the same in every process that trains a module."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, distributed
from torch.nn.parallel import DistributedDataParallel

__all__ = ["replicas_of_first_batch", "share", "shared_first_batch"]

# The groups of the blocks that are open, the innermost last.
_shared: list[Any] = []


@contextlib.contextmanager
def shared_first_batch(group: Any = None) -> Iterator[None]:
    """A block in which all processes run the same modules on a first batch, and begin alike.

    What a module sets from its first batch becomes what the first process of the group has set. Modules in a
    :class:`torch.nn.parallel.DistributedDataParallel` need no such block. Without :mod:`torch.distributed` nothing
    happens.

    Args:
        group: the processes, a group of :mod:`torch.distributed`; None for all. All of them must come here.

    Example:
        >>> import fastvae
        >>> flow = fastvae.nn.InverseAutoregressiveFlow(5, weight_norm=True)
        >>> with shared_first_batch():
        ...     z, log_det = flow(torch.randn(100, 5))
    """
    _shared.append(group)
    try:
        yield
    finally:
        _shared.pop()


def replicas_of_first_batch() -> Any | None:
    """The process group that sees one first batch in parts; None where one process sees it whole.

    Raises:
        RuntimeError: there are several processes, and nothing keeps them equal: the call is neither part of the forward
            of a DistributedDataParallel nor inside :func:`shared_first_batch`.
    """
    if torch.compiler.is_compiling() or not distributed.is_available() or not distributed.is_initialized():
        return None
    if _shared:
        return _shared[-1] or distributed.group.WORLD
    wrapper = DistributedDataParallel._get_active_ddp_module()
    if wrapper is not None:
        return wrapper.process_group
    raise RuntimeError(
        "weight_norm=True sets gains and biases from the first batch, and only DistributedDataParallel keeps them "
        "equal in all processes: run a first batch through the module in all of them, in training mode, inside `with "
        "fastvae.nn.shared_first_batch():`, or load a checkpoint"
    )


def share(group: Any, tensors: Sequence[Tensor | None]) -> None:
    """Gives all processes of ``group`` the tensors of its first one."""
    source = distributed.get_global_rank(group, 0)
    for t in tensors:
        if t is not None:
            distributed.broadcast(t.detach(), source, group)
