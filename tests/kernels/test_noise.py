"""The Triton generator: published vectors, equality with the specification, independence of tiles and splits."""

import pytest
import torch
import triton
import triton.language as tl

from fastvae.kernels import diag_gaussian
from fastvae.kernels._launch import forget_rules
from fastvae.kernels._philox import philox
from fastvae.kernels._tiles import SampleTile
from fastvae.reference.philox import normal

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

# Random123's known answers for philox4x32, 10 rounds: counter, key, result.
KNOWN_ANSWERS = [
    ([0x00000000] * 4, [0x00000000] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
    ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
    (
        [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
        [0xA4093822, 0x299F31D0],
        [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
    ),
]


@triton.jit
def _philox_kernel(out_ptr, seed_ptr, counter_ptr):
    c0 = tl.load(counter_ptr).to(tl.uint32)
    c1 = tl.load(counter_ptr + 1).to(tl.uint32)
    c2 = tl.load(counter_ptr + 2).to(tl.uint32)
    c3 = tl.load(counter_ptr + 3).to(tl.uint32)
    x0, x1, x2, x3 = philox(tl.load(seed_ptr), c0, c1, c2, c3)
    tl.store(out_ptr, x0.to(tl.int64))
    tl.store(out_ptr + 1, x1.to(tl.int64))
    tl.store(out_ptr + 2, x2.to(tl.int64))
    tl.store(out_ptr + 3, x3.to(tl.int64))


def seed_of(low: int, high: int) -> torch.Tensor:
    """The key's 64 bits as an int64, which has no unsigned values."""
    bits = low | high << 32
    return torch.tensor(bits - (bits >> 63 << 64), device=DEVICE)


def draw(seed: int, samples: int, rows: int, columns: int, row_offset: int = 0, dtype=torch.float32) -> torch.Tensor:
    """The noise itself, as the sample of a standard normal."""
    zeros = torch.zeros(rows, columns, device=DEVICE, dtype=dtype)
    seed = torch.tensor(seed, device=DEVICE)
    return diag_gaussian.diag_gaussian_fwd(zeros, zeros, seed, samples, row_offset)[0]


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS)
def test_known_answers(counter, key, expected):
    out = torch.empty(4, dtype=torch.int64, device=DEVICE)
    _philox_kernel[(1,)](out, seed_of(*key), torch.tensor(counter, device=DEVICE))
    assert out.tolist() == expected


@pytest.mark.parametrize("row_offset", [0, 7, 2**32 - 2, 2**40 + 1])
@pytest.mark.parametrize("columns", [1, 2, 3, 4, 5, 63, 64, 65, 130])
def test_equals_specification(columns, row_offset):
    seed = 0x0123456789ABCDEF
    expected = normal(torch.tensor(seed), 3, 4, columns, row_offset=row_offset)
    actual = draw(seed, 3, 4, columns, row_offset).cpu()
    # One ulp each for the logarithm, the root, the sine, and their product.
    torch.testing.assert_close(actual, expected, rtol=4 * torch.finfo(torch.float32).eps, atol=0.0)


def test_negative_seed():
    expected = normal(torch.tensor(-3), 1, 2, 9)
    torch.testing.assert_close(draw(-3, 1, 2, 9).cpu(), expected, rtol=4 * torch.finfo(torch.float32).eps, atol=0.0)


@pytest.mark.thorough
@pytest.mark.parametrize("columns", [3, 64, 65])
@pytest.mark.parametrize(
    "tile", [SampleTile(1, 1, 4, 1), SampleTile(2, 2, 8, 1), SampleTile(4, 8, 16, 2), SampleTile(1, 1, 256, 4)]
)
def test_tiles_do_not_matter(monkeypatch, columns, tile):
    expected = draw(11, 2, 5, columns)
    monkeypatch.setattr(diag_gaussian, "point_tile", lambda *_: tile)
    forget_rules()
    assert torch.equal(draw(11, 2, 5, columns), expected)


@pytest.mark.parametrize("columns", [3, 64, 65])
def test_shards_draw_the_noise_of_the_whole(columns):
    whole = draw(5, 2, 7, columns)
    shards = [draw(5, 2, 3, columns), draw(5, 2, 4, columns, row_offset=3)]
    assert torch.equal(torch.cat(shards, 1), whole)


def test_fewer_samples_are_the_first_ones():
    assert torch.equal(draw(5, 2, 3, 10), draw(5, 4, 3, 10)[:2])


def test_float64_noise_is_that_of_float32():
    assert torch.equal(draw(5, 2, 3, 10, dtype=torch.float64), draw(5, 2, 3, 10).double())


def test_moments():
    draws = draw(1, 8, 512, 64).double().flatten()
    n = draws.numel()
    # Means of x, x^2, x^3, x^4 against those of N(0, 1), in standard errors sqrt(Var x^k / n).
    for power, mean, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        error = (draws.pow(power).mean() - mean).abs() / (variance / n) ** 0.5
        assert error < 4.5, f"moment {power}: {error:.1f} standard errors"
