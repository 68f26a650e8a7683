"""Integers of a layer's structure, as tensors on the device of its weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

__all__ = ["IntegerConstants", "Tables"]


class IntegerConstants:
    """Vectors of integers that belong to the structure of a layer: degrees, orders, permutations.

    They are no state of a module: no checkpoint holds them, and neither a load nor a move nor ``to_empty`` changes
    them. The tensors are made once for each device.

    Args:
        vectors: the integers of each vector; None for a missing one.

    Example:
        >>> degrees = IntegerConstants([1, 2], None)
        >>> degrees.on(torch.device("cpu"))
        [tensor([1, 2]), None]
    """

    def __init__(self, *vectors: Iterable[int] | None) -> None:
        self.vectors = tuple(None if vector is None else tuple(vector) for vector in vectors)
        self._made: dict[torch.device, list[Any]] = {}

    def on(self, device: torch.device) -> list[Any]:
        """The vectors as int64 tensors on ``device``."""
        # Tensors that a dispatch mode makes, such as fake ones, are of no use outside it, and the other way round.
        if not torch.compiler.is_dynamo_compiling() and torch._C._len_torch_dispatch_stack():
            return self._make(device)
        made = self._made.get(device)
        if made is not None:
            return made
        if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
            return self._make(device)
        made = _make_lasting(lambda: self._make(device))
        # Tensors that functionalization wraps are of no use outside it either.
        if not any(v is not None and torch._is_functional_tensor(v) for v in made):
            self._made[device] = made
        return made

    def _make(self, device: torch.device) -> list[Tensor | None]:
        return [None if v is None else torch.tensor(v, dtype=torch.int64, device=device) for v in self.vectors]

    def __getstate__(self) -> dict[str, Any]:
        return {"vectors": self.vectors, "_made": {}}


class Tables:
    """Tensors that kernels make of a structure and a device, once. They live as long as the structure.

    A CUDA graph reads them by their address: no cache of limited size may own them. No checkpoint holds them.

    Example:
        >>> tables = Tables()
        >>> first = tables.get("counts", lambda: torch.tensor([1, 2]))
        >>> tables.get("counts", lambda: torch.tensor([3])) is first
        True
    """

    def __init__(self) -> None:
        self._made: dict[Any, Any] = {}

    def get(self, key: Any, make: Callable[[], Any]) -> Any:
        """What ``make`` returned for ``key`` when it was first asked for."""
        # As above, fake tensors stay inside of their mode.
        if torch._C._len_torch_dispatch_stack():
            return make()
        if key not in self._made:
            self._made[key] = _make_lasting(make)
        return self._made[key]

    def __getstate__(self) -> dict[str, Any]:
        return {"_made": {}}


def _make_lasting(make: Callable[[], Any]) -> Any:
    """What ``make`` returns, with tensors that may be used in every later call.

    A tensor made in inference mode could not be saved for a backward pass later on, and one made while torch.jit.trace
    records would be a value of its graph.
    """
    tracing = torch._C._get_tracing_state()
    torch._C._set_tracing_state(None)  # type: ignore[attr-defined]
    try:
        with torch.inference_mode(False):
            return make()
    finally:
        torch._C._set_tracing_state(tracing)  # type: ignore[attr-defined]
