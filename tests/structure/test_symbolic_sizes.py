"""Symbolic sizes in the arithmetic of structures: not every torch takes truth values there."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from fastvae.ops._network import NetworkFields, count_saved
from fastvae.structure import MASK_TYPES, ORDERS, ConvStructure


def refusing(name):
    """The operator of symbolic sizes, which raises where a truth value meets one."""
    operator = getattr(torch.SymInt, name)

    def run(size, other):
        if isinstance(other, bool):
            raise TypeError(f"{other} among symbolic sizes")
        return operator(size, other)

    return run


@pytest.fixture
def symbols(monkeypatch):
    """Makes symbolic sizes of sizes that are two or more."""
    for name in ("__add__", "__radd__", "__sub__", "__rsub__", "__mul__", "__rmul__"):
        monkeypatch.setattr(torch.SymInt, name, refusing(name))
    mode = FakeTensorMode(shape_env=ShapeEnv())

    def make(*sizes):
        made = mode.from_tensor(torch.empty(sizes)).shape
        assert all(isinstance(size, torch.SymInt) for size in made)
        return tuple(made)

    return make


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("mask_type", MASK_TYPES)
def test_taps(mask_type, order, symbols):
    expected = ConvStructure((3, 5), mask_type, order=order, has_rule=True).taps
    assert ConvStructure(symbols(3, 5), mask_type, order=order, has_rule=True).taps == expected


@pytest.mark.parametrize("residual", [0, 1])
@pytest.mark.parametrize("activation", [0, 5])
def test_saved_numbers(activation, residual, symbols):
    fields = NetworkFields(3, 2, activation, 1, residual, 0)
    batch, *widths = 70, 3, 8, 8, 8, 6
    n, features, hidden, outputs = symbols(batch, widths[0], widths[1], widths[-1])
    symbolic = count_saved(n, [features, hidden, hidden, hidden, outputs], fields)
    assert int(symbolic) == count_saved(batch, widths, fields)
