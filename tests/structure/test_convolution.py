"""Which taps of a kernel count, against what the mask types mean."""

import itertools

import pytest

from fastvae.structure import COLOR_LAYOUTS, MASK_TYPES, ORDERS, ConvStructure, colors_of, pair
from tests.support.convolutions import color, sees

KERNELS = [(1, 1), (3, 3), (7, 7), (1, 5), (5, 1), (3, 5), (2, 2), (2, 3), (4, 1), (6, 5)]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("mask_type", MASK_TYPES)
@pytest.mark.parametrize("kernel", KERNELS)
def test_taps_and_offsets(kernel, mask_type, order):
    """For every place of the origin, without and with a rule of degrees."""
    height, width = kernel
    for origin in itertools.product(range(height), range(width)):
        for has_rule in (False, True):
            structure = ConvStructure(kernel, mask_type, origin, order, has_rule)
            expected = {}
            for ky, kx in itertools.product(range(height), range(width)):
                dy, dx = ky - origin[0], kx - origin[1]
                # Among several degrees there are pairs whose first is below the second.
                if sees(mask_type, order, dy, dx, 0, int(has_rule)):
                    expected[ky * width + kx] = (2 * dy, 3 * dx)
            assert structure.taps == tuple(expected)
            assert structure.offsets((2, 3)) == tuple(expected.values())
            ruled = has_rule and mask_type in ("A", "B")
            assert structure.origin_tap == (origin[0] * width + origin[1] if ruled else -1)


def test_numbers_of_taps():
    assert len(ConvStructure((7, 7), "A").taps) == 24
    assert len(ConvStructure((3, 3), "B").taps) == 5
    assert len(ConvStructure((7, 7), "B").taps) == 25


def test_padding_keeps_the_size():
    structure = ConvStructure((2, 3), "vertical_B", (1, 1))
    assert structure.padding() == (1, 1, 0, 1)
    assert structure.padding((2, 3)) == (2, 3, 0, 3)
    assert ConvStructure((5, 5), "A").padding(2) == (4, 4, 4, 4)


def test_centre_is_the_origin_of_odd_kernels():
    assert ConvStructure((3, 5), "A").origin == (1, 2)
    assert ConvStructure((3, 5), "A") == ConvStructure((3, 5), "A", (1, 2))
    assert hash(ConvStructure((3, 5), "A")) == hash(ConvStructure((3, 5), "A", (1, 2)))


def test_a_size_may_be_one_number():
    assert ConvStructure(3, "B") == ConvStructure((3, 3), "B")


@pytest.mark.parametrize("mask_type", ["vertical_A", "vertical_B"])
def test_vertical_types_have_no_rule(mask_type):
    assert ConvStructure((3, 3), mask_type, has_rule=True) == ConvStructure((3, 3), mask_type)


@pytest.mark.parametrize("layout", COLOR_LAYOUTS)
def test_colors(layout):
    for channels, num_colors in ((3, 3), (12, 3), (8, 2), (5, 1)):
        expected = tuple(color(c, channels, num_colors, layout) for c in range(channels))
        assert colors_of("in_channels", channels, num_colors, layout) == expected


ERRORS = [
    (lambda: ConvStructure((2, 3), "A"), "origin"),
    (lambda: ConvStructure((3, 4), "A"), "origin"),
    (lambda: ConvStructure((2, 3), "A", (2, 0)), "origin"),
    (lambda: ConvStructure((2, 3), "A", (0, 3)), "origin"),
    (lambda: ConvStructure((2, 3), "A", (-1, 0)), "origin"),
    (lambda: ConvStructure((3, 3), "A", (1,)), "origin"),
    (lambda: ConvStructure((3, 3), "C"), "mask_type"),
    (lambda: ConvStructure((3, 3), "a"), "mask_type"),
    (lambda: ConvStructure((3, 3), "A", order="raster scan"), "order"),
    (lambda: ConvStructure((0, 3), "A"), "kernel_size"),
    (lambda: ConvStructure((3, 3, 3), "A"), "kernel_size"),
    (lambda: ConvStructure("33", "A"), "kernel_size"),
    (lambda: ConvStructure((3, 3), "A").offsets(0), "dilation"),
    (lambda: colors_of("in_channels", 4, 3, "contiguous"), "num_colors"),
    (lambda: colors_of("in_channels", 4, 0, "contiguous"), "num_colors"),
    (lambda: colors_of("in_channels", 4, 2, "striped"), "color_layout"),
    (lambda: pair("padding", (1, -1), 0), "padding"),
    (lambda: pair("padding", (1, 0.5), 0), "padding"),
]


@pytest.mark.parametrize(("wrong", "name"), ERRORS)
def test_errors_name_the_argument(wrong, name):
    with pytest.raises(ValueError, match=rf"\b{name}\b"):
        wrong()
