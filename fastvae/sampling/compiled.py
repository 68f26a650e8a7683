"""Sampling under ``torch.compile``: one op, which a compiler sees as one node of its graph.

A compiler cannot follow how a network is read, and its graph would hold every layer of every pixel. The op finds its
sampler by a number. The compiler guards on the number, so that a graph belongs to one sampler.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, Protocol
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn

from ..precision import compute_dtype
from ..rng import draw_seed

__all__ = ["enrol", "like_of", "sample_in_graph"]


class Owner(Protocol):
    """What is enrolled: a sampler, or a network that has one."""

    def _sampler(self) -> Any: ...


_LIBRARY = torch.library.Library("fastvae_sampling", "DEF")
_OWNERS: WeakValueDictionary[str, Owner] = WeakValueDictionary()
_numbers = itertools.count()


def enrol(owner: Owner) -> str:
    """The number of ``owner``; a copy needs one of its own."""
    number = str(next(_numbers))
    _OWNERS[number] = owner
    return number


def like_of(network: nn.Module) -> Tensor:
    """An empty tensor of the device and dtype that the network is computed in."""
    # torch 2.6 compiles no `next` with a default; a list would walk through all modules.
    for t in network.parameters():
        if t.is_floating_point():
            return torch.empty(0, dtype=compute_dtype(t.dtype), device=t.device)
    return torch.empty(0)


def sample_in_graph(
    number: str,
    network: nn.Module,
    n: int,
    channels: int,
    image_size: int | Sequence[int],
    *,
    context: Any,
    given: Tensor | None,
    temperature: float,
    generator: torch.Generator | None,
    row_offset: int = 0,
    parameters: int = 0,
) -> tuple[Tensor, Tensor]:
    """Images, and as many parameters of each pixel as are wanted, by the op.

    Raises:
        TypeError: the context is no tensor.
    """
    if not (context is None or isinstance(context, Tensor)):
        raise TypeError(f"context must be a tensor under torch.compile, got {type(context).__name__}")
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    with torch.no_grad():
        # The graph names all that it reads.
        state = [t.detach() for t in (*network.parameters(), *network.buffers())]
        like = like_of(network)
        seed = draw_seed(like.device, generator)
        shape = [n, channels, height, width]
        found: tuple[Tensor, Tensor] = torch.ops.fastvae_sampling.draw(
            seed, like, state, context, given, number, shape, float(temperature), row_offset, parameters
        )
        return found


def _is_same(own: Tensor, given: Tensor) -> bool:
    return own.data_ptr() == given.data_ptr() or torch.equal(own, given)


def _draw(
    seed: Tensor,
    like: Tensor,
    state: Sequence[Tensor],
    context: Tensor | None,
    given: Tensor | None,
    number: str,
    shape: Sequence[int],
    temperature: float,
    row_offset: int,
    parameters: int,
) -> tuple[Tensor, Tensor]:
    owner = _OWNERS.get(number)
    if owner is None:
        raise RuntimeError("the network of this compiled function does not exist any more: compile it again")
    sampler = owner._sampler()
    own = (*sampler.network.parameters(), *sampler.network.buffers())
    if len(own) != len(state) or not all(map(_is_same, own, state)):
        raise RuntimeError(
            "a compiled sampler must be called with the network's own parameters and buffers, got others: call the "
            "compiled function on a network of its own, without torch.func.functional_call"
        )
    n, _, *size = shape
    images, found = sampler._draw(seed, n, size, context, given, temperature, row_offset, parameters > 0)
    return images, images.new_empty((n, 0, *size)) if found is None else found


def _draw_fake(
    seed: Tensor,
    like: Tensor,
    state: Sequence[Tensor],
    context: Tensor | None,
    given: Tensor | None,
    number: str,
    shape: Sequence[int],
    temperature: float,
    row_offset: int,
    parameters: int,
) -> tuple[Tensor, Tensor]:
    n, _, *size = shape
    return like.new_empty(shape), like.new_empty((n, parameters, *size))


_LIBRARY.define(
    "draw(Tensor seed, Tensor like, Tensor[] state, Tensor? context, Tensor? given, str number, SymInt[] shape,"
    " float temperature, SymInt row_offset, SymInt parameter_channels) -> (Tensor images, Tensor parameters)",
    tags=(torch.Tag.pt2_compliant_tag,),
)
_LIBRARY.impl("draw", _draw, "CompositeExplicitAutograd")
torch.library.register_fake("fastvae_sampling::draw", _draw_fake, lib=_LIBRARY)
