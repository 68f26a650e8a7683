"""Lists of a staircase's tiles: against the mask itself, and how long they are kept."""

import gc

import pytest
import torch

from fastvae.kernels import tile_lists as module
from fastvae.kernels.masked_linear import masked_linear_fwd
from fastvae.kernels.tile_lists import make_tile_lists, tile_lists
from tests.support.implementations import GPU

DEVICE = "cuda" if GPU else "cpu"


def degrees_of(inputs: int, outputs: int, order: str) -> tuple[torch.Tensor, torch.Tensor]:
    ins, outs = 1 + torch.arange(inputs) * 8 // inputs, torch.arange(outputs) * 9 // outputs
    if order == "descending":
        ins, outs = ins.flip(0), outs.flip(0)
    elif order == "unsorted":
        ins, outs = ins[torch.randperm(inputs)], outs[torch.randperm(outputs)]
    return ins.to(DEVICE), outs.to(DEVICE)


def kinds_of(mask: torch.Tensor, block: int, partner_block: int) -> list[tuple[list[int], list[int], list[int]]]:
    """Of each block of partners: the tiles that count wholly, those that count in part, the others."""
    rows = []
    for partners in mask.split(partner_block):
        tiles = partners.split(block, 1)
        whole = [t for t, tile in enumerate(tiles) if tile.all()]
        none = [t for t, tile in enumerate(tiles) if not tile.any()]
        rows.append((whole, [t for t in range(len(tiles)) if t not in (*whole, *none)], none))
    return rows


@pytest.mark.parametrize("order", ["ascending", "descending", "unsorted"])
@pytest.mark.parametrize(("inputs", "outputs"), [(1, 1), (63, 65), (130, 33), (2100, 20)])
def test_lists_are_those_of_the_mask(inputs, outputs, order):
    """The last shape has more tiles than are looked at together."""
    ins, outs = degrees_of(inputs, outputs, order)
    mask = (ins[None, :] <= outs[:, None]).cpu()
    for lists, kinds in (
        (make_tile_lists(ins, outs, 1, 16, 32), kinds_of(mask, 16, 32)),
        (make_tile_lists(outs, ins, -1, 16, 32), kinds_of(mask.T, 16, 32)),
    ):
        assert lists.tolist() == [[len(whole), len(part), *whole, *part, *none, 0] for whole, part, none in kinds]


def test_without_elements_or_partners():
    none, some = torch.zeros(0, dtype=torch.int64, device=DEVICE), torch.arange(40, device=DEVICE)
    assert make_tile_lists(none, some, 1, 16, 32).tolist() == [[0, 0, 0]] * 2
    assert make_tile_lists(some, none, 1, 16, 32).shape[0] == 0


def test_lists_are_made_once():
    ins, outs = degrees_of(40, 30, "ascending")
    lists = tile_lists(ins, outs, 1, 16, 8)
    assert tile_lists(ins, outs, 1, 16, 8) is lists
    assert tile_lists(ins, outs, 1, 32, 32) is not lists
    assert tile_lists(ins.clone(), outs, 1, 16, 32) is not lists


def test_lists_follow_degrees_that_are_written_over():
    ins, outs = degrees_of(40, 30, "ascending")
    before = tile_lists(ins, outs, 1, 16, 8).tolist()
    ins.copy_(ins.flip(0))
    assert tile_lists(ins, outs, 1, 16, 8).tolist() != before
    assert torch.equal(tile_lists(ins, outs, 1, 16, 8), make_tile_lists(ins, outs, 1, 16, 8))


@pytest.mark.parametrize("dies", ["degrees", "partners"])
def test_lists_die_with_either_tensor(dies):
    pair = dict(zip(("degrees", "partners"), degrees_of(40, 30, "ascending"), strict=True))
    gc.collect()
    before = len(module._kept)
    tile_lists(pair["degrees"], pair["partners"], 1, 16, 32)
    assert len(module._kept) == before + 1
    del pair[dies]
    gc.collect()
    assert len(module._kept) == before


def test_tensors_of_inference_mode_are_looked_at_each_time():
    """They have no version: whether they were written over shows nowhere."""
    with torch.inference_mode():
        ins, outs = degrees_of(40, 30, "ascending")
        before = tile_lists(ins, outs, 1, 16, 8)
        ins.copy_(ins.flip(0))
        assert not torch.equal(tile_lists(ins, outs, 1, 16, 8), before)


def test_a_capture_keeps_nothing_of_its_own(monkeypatch):
    """What it makes is written when the graph runs, not before."""
    ins, outs = degrees_of(40, 30, "ascending")
    monkeypatch.setattr(module, "_is_capturing", lambda device: True)
    captured = tile_lists(ins, outs, 1, 16, 8)
    monkeypatch.undo()
    assert tile_lists(ins, outs, 1, 16, 8) is not captured


def test_a_graph_keeps_what_it_reads(monkeypatch):
    """Its lists stay where they are for as long as the degrees live, even if new ones replace them."""
    ins, outs = degrees_of(40, 30, "ascending")
    tile_lists(ins, outs, 1, 16, 8)
    monkeypatch.setattr(module, "_is_capturing", lambda device: True)
    captured = tile_lists(ins, outs, 1, 16, 8)
    monkeypatch.undo()
    for _ in range(2):
        ins.copy_(ins.flip(0))
        assert tile_lists(ins, outs, 1, 16, 8) is not captured
    assert any(lists is captured for kept in module._kept.values() for lists in kept.in_graphs)


def test_a_layer_makes_its_lists_once(monkeypatch):
    ins, outs = degrees_of(40, 30, "ascending")
    x, weight = torch.randn(4, 40, device=DEVICE), torch.randn(30, 40, device=DEVICE)
    masked_linear_fwd(x, weight, None, None, ins, outs, "identity", False)
    monkeypatch.setattr(module, "make_tile_lists", lambda *_: pytest.fail("made again"))
    masked_linear_fwd(x, weight, None, None, ins, outs, "identity", False)
