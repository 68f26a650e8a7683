"""Degrees found from masks."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastvae.interop._masks import degrees_of
from fastvae.reference.masked_linear import mask_of


def masks_of(units):
    return [mask_of(units[i], units[i + 1]) for i in range(len(units) - 1)]


def check(masks, features, one_hidden=False):
    names = [f"layer {i}" for i in range(len(masks))]
    order, hidden = degrees_of(masks, names, features, one_hidden)
    places = torch.tensor(order)
    assert sorted(order) == list(range(features))
    units = [places + 1, *(torch.tensor(degrees) for degrees in hidden), places.repeat(len(masks[-1]) // features)]
    for mask, expected in zip(masks_of(units), masks, strict=True):
        assert torch.equal(mask, expected)
    return order, hidden


@given(st.data())
def test_any_network(data):
    features = data.draw(st.integers(1, 7))
    places = torch.tensor(data.draw(st.permutations(range(features))))
    widths = data.draw(st.lists(st.integers(1, 9), min_size=1, max_size=3))
    hidden = [torch.tensor(data.draw(st.lists(st.integers(0, features), min_size=w, max_size=w))) for w in widths]
    check(masks_of([places + 1, *hidden, places.repeat(2)]), features)


@given(st.data())
def test_residual(data):
    features = data.draw(st.integers(1, 7))
    places = torch.tensor(data.draw(st.permutations(range(features))))
    hidden = torch.tensor(data.draw(st.lists(st.integers(0, features), min_size=1, max_size=9)))
    _, found = check(masks_of([places + 1, hidden, hidden, hidden, places.repeat(2)]), features, one_hidden=True)
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("groups", [[0, 0, 1, 1, 2, 2], [1, 0, 1, 0, 1, 0], [0] * 6])
def test_features_that_share_a_place(groups):
    # Coupling layers: features of one group do not see each other.
    level = torch.tensor(groups)
    hidden = torch.arange(12) % (max(groups) + 2)
    check(masks_of([level + 1, hidden, hidden, level.repeat(2)]), 6)


def test_usual_network_gets_its_own_degrees():
    places, hidden = torch.tensor([2, 0, 3, 1]), torch.tensor([1, 2, 3, 1, 2, 3])
    order, found = check(masks_of([places + 1, hidden, hidden, places.repeat(2)]), 4)
    assert order == (2, 0, 3, 1)
    assert found == ((1, 2, 3, 1, 2, 3),) * 2


def test_names_the_layer_that_cannot_be():
    places, hidden = torch.arange(3), torch.tensor([1, 2])
    masks = masks_of([places + 1, hidden, hidden, places.repeat(2)])
    crossed = [masks[0], torch.eye(2, dtype=torch.bool), masks[2]]
    with pytest.raises(
        ValueError, match="the mask of layer 1 cannot be written as in_degrees <= out_degrees: the sets"
    ):
        check(crossed, 3)
    with pytest.raises(ValueError, match=r"the mask of layer . cannot be written as in_degrees <= out_degrees"):
        check([m.flip(0) if i == 2 else m for i, m in enumerate(masks)], 3)


def test_cycles_end():
    full = torch.ones(2, 2, dtype=torch.bool)
    with pytest.raises(ValueError, match="cannot be written"):
        check([full, full], 2)
