"""What is made of a structure once serves every later call, and lasts as long as the structure does."""

import copy
import gc
import pickle
import weakref

import pytest
import torch

from fastvae.kernels.sorted_units import sorted_structure
from fastvae.ops._convolution import _colors
from fastvae.structure import MadeStructure

CPU = torch.device("cpu")


def structure_of(features):
    return MadeStructure(features, (tuple(range(features)) * 2,), tuple(range(features)))


def tables_of(structure):
    tables = sorted_structure(structure, 2, CPU)
    return [*tables.orders, *tables.degrees, tables.counts]


def colors_of(channels):
    return _colors((channels, 3 * channels), channels, "contiguous", -1).on(CPU)


MAKERS = {
    "degrees": lambda: structure_of(5).degree_tensors(),
    "units by degree": lambda: structure_of(5).sorted_units(CPU),
    "tables of the sweep": lambda: tables_of(structure_of(5)),
    "colours": lambda: colors_of(971),
}


@pytest.mark.parametrize("name", MAKERS)
def test_made_in_inference_mode_and_used_in_training(name):
    with torch.inference_mode():
        tensors = MAKERS[name]()
    assert not any(t.is_inference() for t in tensors)


def test_other_structures_displace_no_tables():
    """A CUDA graph reads them by their addresses."""
    structure, channels = structure_of(3), 977
    tables, colors = sorted_structure(structure, 2, CPU), colors_of(channels)
    for other in range(1, 300):
        colors_of(other)
    kept = [structure_of(features) for features in range(1, 80)]
    for other in kept:
        sorted_structure(other, 2, CPU)
    assert sorted_structure(structure, 2, CPU) is tables
    assert all(now is before for now, before in zip(colors_of(channels), colors, strict=True))


def test_tables_end_with_their_own_structure():
    """An equal structure has tables of its own, which outlive the first's."""
    first, second = structure_of(4), structure_of(4)
    assert first == second
    gone, stays = (weakref.ref(sorted_structure(structure, 2, CPU).counts) for structure in (first, second))
    del first
    gc.collect()
    assert gone() is None
    assert stays() is sorted_structure(second, 2, CPU).counts


@pytest.mark.parametrize("again", [copy.deepcopy, lambda structure: pickle.loads(pickle.dumps(structure))])
def test_copies_and_files_hold_no_tables(again):
    structure = structure_of(4)
    tables = sorted_structure(structure, 2, CPU)
    assert len(pickle.dumps(structure)) == len(pickle.dumps(structure_of(4)))
    other = sorted_structure(again(structure), 2, CPU)
    assert other is not tables
    assert all(torch.equal(a, b) for a, b in zip(other.orders, tables.orders, strict=True))
