"""What is set from data must be the same in every process that trains a module."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, distributed
from torch.nn.parallel import DistributedDataParallel

__all__ = ["replicas_of_first_batch", "share"]


def replicas_of_first_batch() -> Any | None:
    """The process group whose processes see parts of one first batch; None in a process of its own.

    Raises:
        RuntimeError: there are several processes, and no DistributedDataParallel whose forward this call is part of.
    """
    if torch.compiler.is_compiling() or not distributed.is_available() or not distributed.is_initialized():
        return None
    wrapper = DistributedDataParallel._get_active_ddp_module()
    if wrapper is not None:
        return wrapper.process_group
    raise RuntimeError(
        "weight_norm=True sets gains and biases from the first batch, and only DistributedDataParallel keeps them "
        "equal in all processes: run a batch through the module, in training mode, before torch.distributed is "
        "initialised, call initialize(batch), or load a checkpoint"
    )


def share(group: Any, tensors: Sequence[Tensor | None]) -> None:
    """Gives all processes of ``group`` the tensors of its first one."""
    source = distributed.get_global_rank(group, 0)
    for t in tensors:
        if t is not None:
            distributed.broadcast(t.detach(), source, group)
