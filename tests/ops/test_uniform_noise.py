"""Uniform numbers of the noise contract: their words, their bits, their distribution."""

import itertools
import math

import torch

from fastvae.reference import philox
from fastvae.rng import draw_seed, philox_uniform
from tests.support.causal_stacks import make_generator


def test_uniform_numbers_follow_the_contract():
    seed = draw_seed("cpu", make_generator())
    rows, columns, offset = 3, 11, 2**32 - 2
    got = philox_uniform(seed, rows, columns, offset)
    quarter = 3
    for row, column in itertools.product(range(rows), range(columns)):
        place = row + offset
        counter = [torch.tensor(c) for c in (column % quarter, place & 0xFFFFFFFF, place >> 32, 0)]
        key = [seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF]
        word = int(philox.philox_4x32_10(counter, key)[column // quarter])
        assert got[row, column] == ((word >> 9) + 0.5) / 2**23
    assert got.dtype == torch.float32


def test_uniform_numbers_of_known_words():
    """Key and counter zero: the known answer of the generator's authors."""
    words = [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    assert philox_uniform(torch.tensor(0), 1, 4)[0].tolist() == [((word >> 9) + 0.5) / 2**23 for word in words]


def test_uniform_numbers_are_uniform():
    u = philox_uniform(torch.tensor(5), 1000, 1000).double()
    n = u.numel()
    assert 0 < u.min() < 1e-4
    assert 1 - 1e-4 < u.max() < 1
    for power in (1, 2, 3):
        mean, spread = 1 / (power + 1), math.sqrt(1 / (2 * power + 1) - 1 / (power + 1) ** 2)
        assert abs(u.pow(power).mean() - mean) < 5 * spread / math.sqrt(n)
    v = u - 0.5
    for x, y in ((v[1:], v[:-1]), (v[:, 1:], v[:, :-1]), (v[:, :250], v[:, 250:500])):
        assert abs((x * y).mean()) < 5 / 12 / math.sqrt(x.numel())
