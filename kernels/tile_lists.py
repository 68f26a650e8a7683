"""Which tiles of a staircase a product visits: lists that the device makes once for each pair of degrees.

A tile counts wholly, in part or not at all, which depends on the degrees and the tile's size only. Products read the
lists instead of degrees: nothing is compared in front of their loops, and each kind of tiles is one loop.
"""

from __future__ import annotations

import weakref
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._launch import AotCase, Plan, by_shape, meta
from ._matrix import launch_options
from ._tiles import ceil_div, next_power_of_2

# Elements whose degrees are looked at together.
_AT_ONCE = 2048
_FAR = tl.constexpr(1 << 62)
# What a row holds besides its tiles: two counts in front, and a zero at the end.
_MORE = tl.constexpr(3)


@triton.jit
def _kinds(degrees_ptr, first, size, least, most, SIGN: tl.constexpr, BLOCK: tl.constexpr, TILES: tl.constexpr):
    """Which tiles from `first` on count wholly, in part, not at all, for partners of `least` to `most`."""
    at = first + tl.arange(0, TILES)[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
    degree = SIGN * tl.load(degrees_ptr + at, at < size, 0)
    lowest = tl.min(tl.where(at < size, degree, _FAR), 1)
    highest = tl.max(tl.where(at < size, degree, -_FAR), 1)
    exists = first + tl.arange(0, TILES) * BLOCK < size
    return exists & (highest <= least), exists & (highest > least) & (lowest <= most), exists & (lowest > most)


@triton.jit
def _append(tiles_ptr, length, tile, chosen):
    """Writes the chosen tiles from place `length` on, and returns the place after them."""
    chosen = chosen.to(tl.int32)
    tl.store(tiles_ptr + length + tl.cumsum(chosen, 0) - chosen, tile, chosen > 0)
    return length + tl.sum(chosen, 0)


@triton.jit
def _tile_lists_kernel(
    lists_ptr, degrees_ptr, partners_ptr, size, n_partners, width,
    SIGN: tl.constexpr, BLOCK: tl.constexpr, TILES: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """One program owns BLOCK_P partners and the row of their tiles of BLOCK elements.

    An element counts for a partner where SIGN degree <= SIGN partner.
    A row is two counts, the tiles that count wholly, those that count in part, the others, and a zero.
    """
    p = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    partner = SIGN * tl.load(partners_ptr + p, p < n_partners, 0)
    least = tl.min(tl.where(p < n_partners, partner, _FAR), 0)
    most = tl.max(tl.where(p < n_partners, partner, -_FAR), 0)
    n_whole, n_part = 0, 0
    for first in range(0, size, TILES * BLOCK):
        whole, part, _ = _kinds(degrees_ptr, first, size, least, most, SIGN, BLOCK, TILES)
        n_whole += tl.sum(whole.to(tl.int32), 0)
        n_part += tl.sum(part.to(tl.int32), 0)
    row_ptr = lists_ptr + tl.program_id(0) * width
    tl.store(row_ptr, n_whole)
    tl.store(row_ptr + 1, n_part)
    tl.store(row_ptr + width - 1, 0)
    at_whole, at_part, at_none = 0, n_whole, n_whole + n_part
    for first in range(0, size, TILES * BLOCK):
        whole, part, none = _kinds(degrees_ptr, first, size, least, most, SIGN, BLOCK, TILES)
        tile = first // BLOCK + tl.arange(0, TILES)
        at_whole = _append(row_ptr + 2, at_whole, tile, whole)
        at_part = _append(row_ptr + 2, at_part, tile, part)
        at_none = _append(row_ptr + 2, at_none, tile, none)


@triton.jit
def row_of(lists_ptr, block, size, BLOCK: tl.constexpr):
    """(tiles, how many count wholly, how many in part) of a block of partners, for `size` elements."""
    row_ptr = lists_ptr + block * (tl.cdiv(size, BLOCK) + _MORE)
    return row_ptr + 2, tl.load(row_ptr), tl.load(row_ptr + 1)


def make_tile_lists(degrees: Tensor, partners: Tensor, sign: int, block: int, partner_block: int) -> Tensor:
    """A row for each block of partners, int32; `_tile_lists_kernel` says what it holds."""
    size, n_partners = degrees.numel(), partners.numel()
    blocks, tiles = ceil_div(n_partners, partner_block), ceil_div(size, block)
    lists = degrees.new_empty((blocks, tiles + _MORE.value), dtype=torch.int32)
    _plan(degrees.get_device(), size, n_partners, sign, block, partner_block).launch(lists, degrees, partners)
    return lists


@by_shape
def _plan(device: int, size: int, n_partners: int, sign: int, block: int, partner_block: int) -> Plan:
    tiles = ceil_div(size, block)
    return Plan(
        device, _tile_lists_kernel, ceil_div(n_partners, partner_block), (size, n_partners, tiles + _MORE.value),
        SIGN=sign, BLOCK=block, TILES=min(next_power_of_2(tiles), max(_AT_ONCE // block, 1)), BLOCK_P=partner_block,
        **launch_options(4),
    )  # fmt: skip


def _is_capturing(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


class _Kept:
    """Lists with the degrees that they are of, and where and when a stream writes them."""

    def __init__(self, degrees: Tensor, partners: Tensor, lists: Tensor, forget: Any) -> None:
        self.lists, self.versions = lists, (degrees._version, partners._version)
        self.owners = weakref.ref(degrees, forget), weakref.ref(partners, forget)
        # Lists of degrees that were written over, as long as captured graphs may read them.
        self.in_graphs: list[Tensor] = []
        self.is_in_graph = False
        self.written = None
        if lists.device.type == "cuda":
            self.stream = torch._C._cuda_getCurrentRawStream(lists.device.index)
            self.written = torch.cuda.current_stream(lists.device).record_event()

    def are_of(self, degrees: Tensor, partners: Tensor) -> bool:
        return self.owners[0]() is degrees and self.owners[1]() is partners

    def on_current_stream(self) -> Tensor:
        """The lists, for a kernel of the current stream."""
        device = self.lists.device
        if _is_capturing(device):
            # Whoever captures has waited for the other streams.
            self.is_in_graph = True
        elif self.written is not None and torch._C._cuda_getCurrentRawStream(device.index) != self.stream:
            stream = torch.cuda.current_stream(device)
            stream.wait_event(self.written)
            self.lists.record_stream(stream)
        return self.lists


_kept: dict[tuple[int, ...], _Kept] = {}


def _can_keep(degrees: Tensor, partners: Tensor) -> bool:
    """What a graph's capture makes is written at each replay only; tensors of inference mode have no version."""
    if degrees.device.type == "meta" or degrees.is_inference() or partners.is_inference():
        return False
    return not _is_capturing(degrees.device)


def tile_lists(degrees: Tensor, partners: Tensor, sign: int, block: int, partner_block: int) -> Tensor:
    """As `make_tile_lists`, made once and kept as long as both tensors live.

    A captured graph reads the lists of the degrees as they were when it was captured.
    """
    key = (id(degrees), id(partners), sign, block, partner_block)
    kept = _kept.get(key)
    if kept is not None and not kept.are_of(degrees, partners):
        kept = None
    if kept is not None and kept.versions == (degrees._version, partners._version):
        return kept.on_current_stream()
    lists = make_tile_lists(degrees, partners, sign, block, partner_block)
    if _can_keep(degrees, partners):
        made = _Kept(degrees, partners, lists, lambda _: _kept.pop(key, None))
        if kept is not None:
            made.in_graphs = kept.in_graphs + [kept.lists] * kept.is_in_graph
        _kept[key] = made
    return lists


def aot_cases() -> list[AotCase]:
    degrees = [meta(width, dtype=torch.int64) for width in (1920, 1920)]
    return [
        AotCase(f"1920 -> 1920, sign {sign}, tiles of {block}", make_tile_lists, (*degrees, sign, block, 128))
        for sign, block in ((1, 32), (-1, 32), (1, 128))
    ]
