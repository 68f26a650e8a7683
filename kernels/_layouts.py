"""How a warp's accesses fall on memory: bytes of a thread's access, and sectors of a warp's request."""

from __future__ import annotations

import json
import re
from typing import NamedTuple

import numpy as np

from ._ttgir import Access

# Memory is read and written in sectors of this many bytes, by accesses of at most so many bytes a thread.
SECTOR, WIDEST = 32, 16


class Request(NamedTuple):
    """Bytes that a thread accesses at once; the sectors of a warp's request, and the fewest that hold its bytes."""

    bytes: int
    sectors: float
    least: float


def measure_request(access: Access) -> Request | None:
    """The mean of the requests of the first warp; None where the layout is one of matrix products or nothing is on."""
    places = _places_of_warp(access.layout, access.addresses.shape)
    if places is None:
        return None
    at = tuple(np.moveaxis(places, -1, 0))
    addresses, mask = access.addresses[at], access.mask[at]
    wide = _contiguous_elements(addresses, access.item)
    addresses, mask = addresses[::wide], mask[::wide]
    sectors, least = [], []
    for request, is_on in zip(addresses, mask, strict=True):
        if is_on.any():
            distinct = np.unique(request[is_on])
            sectors.append(len(np.unique(distinct // SECTOR)))
            least.append(-(-len(distinct) * wide * access.item // SECTOR))
    if not sectors:
        return None
    return Request(wide * access.item, float(np.mean(sectors)), float(np.mean(least)))


def _contiguous_elements(addresses: np.ndarray, item: int) -> int:
    """How many registers of a thread one access fills: they are contiguous and aligned in every thread."""
    registers = len(addresses)
    wide = max(WIDEST // item, 1)
    while wide > 1:
        if registers % wide == 0:
            groups = addresses.reshape(registers // wide, wide, -1)
            expected = groups[:, :1] + item * np.arange(wide)[None, :, None]
            if (groups == expected).all() and (groups[:, 0] % (wide * item) == 0).all():
                return wide
        wide //= 2
    return 1


def _places_of_warp(layout: str, shape: tuple[int, ...]) -> np.ndarray | None:
    """The element of each register and thread of the first warp, (registers, threads, dimensions)."""
    if layout.startswith("#ttg.slice<"):
        dim, parent = re.match(r"#ttg\.slice<\{dim = (\d+), parent = (.*)\}>$", layout).groups()
        places = _places_of_warp(parent, (*shape[: int(dim)], 1, *shape[int(dim) :]))
        return None if places is None else np.delete(places, int(dim), -1)
    if layout.startswith("#ttg.blocked<"):
        return _places_of_blocks(layout, shape)
    if layout.startswith("#ttg.linear<"):
        registers, lanes = (_span(_numbers(layout, name), len(shape)) for name in ("register", "lane"))
        return registers[:, None] ^ lanes[None, :]
    return None


def _numbers(layout: str, name: str) -> list:
    return json.loads(re.search(rf"{name} = (\[[^a-z}}]*\])", layout)[1])


def _span(bases: list[list[int]], dimensions: int) -> np.ndarray:
    places = np.zeros((1, dimensions), np.int64)
    for base in bases:
        places = np.concatenate([places, places ^ np.array(base)])
    return places


def _places_of_blocks(layout: str, shape: tuple[int, ...]) -> np.ndarray:
    sizes, threads, warps, order = (
        _numbers(layout, name) for name in ("sizePerThread", "threadsPerWarp", "warpsPerCTA", "order")
    )
    # A thread keeps no element twice.
    sizes = [min(size, extent) for size, extent in zip(sizes, shape, strict=True)]
    steps = [size * thread for size, thread in zip(sizes, threads, strict=True)]
    tiles = [step * warp for step, warp in zip(steps, warps, strict=True)]
    repeats = [max(extent // tile, 1) for extent, tile in zip(shape, tiles, strict=True)]
    within, thread, repeat = (_enumerate(counts, order) for counts in (sizes, threads, repeats))
    registers = (repeat * tiles)[:, None, :] + within[None, :, :]
    places = registers.reshape(-1, 1, len(shape)) + (thread * sizes)[None, :, :]
    return places % np.array(shape)


def _enumerate(counts: list[int], order: list[int]) -> np.ndarray:
    """All places of a box, (places, dimensions), the first dimension of `order` fastest."""
    number = np.arange(np.prod(counts))
    places = np.empty((len(number), len(counts)), np.int64)
    for dimension in order:
        places[:, dimension] = number % counts[dimension]
        number //= counts[dimension]
    return places
