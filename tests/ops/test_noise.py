"""The noise contract: one function of (seed, sample, row, column), the same in every implementation and split."""

import math
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import fastvae.functional as F
from fastvae import _C
from fastvae.reference import philox
from fastvae.rng import draw_seed
from tests.support.implementations import device_of

KERNELS = ("cpp", "triton")


def draw(rows, columns, sample_shape=(), *, seed=0, row_offset=0, impl="cpp", dtype=torch.float32):
    """mu = 0, sigma = 1: the sample is the noise."""
    device = device_of(impl)
    zeros = torch.zeros(rows, columns, dtype=dtype, device=device)
    generator = torch.Generator(device).manual_seed(seed)
    z, _ = F.diag_gaussian_rsample(zeros, zeros, sample_shape, generator=generator, row_offset=row_offset, impl=impl)
    return z.cpu()


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            [0xA4093822, 0x299F31D0],
            [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
        ),
    ],
)
def test_known_answers(counter, key, expected):
    """The vectors published with Random123."""
    words = philox.philox_4x32_10([torch.tensor(c) for c in counter], [torch.tensor(k) for k in key])
    assert [int(w) for w in words] == expected


@pytest.mark.parametrize("impl", KERNELS)
@pytest.mark.parametrize("columns", [1, 2, 3, 4, 5, 31, 64, 257])
@pytest.mark.parametrize("row_offset", [0, 2**32 - 2, 2**40])
def test_kernels_follow_the_specification(columns, row_offset, impl):
    device = device_of(impl)
    seed = draw_seed(device, torch.Generator(device).manual_seed(9)).cpu()
    expected = philox.normal(seed, 3, 5, columns, row_offset=row_offset)
    got = draw(5, columns, (3,), seed=9, row_offset=row_offset, impl=impl)
    # A few units in the last place of the radius, at most 6.7: the polynomials' error.
    torch.testing.assert_close(got, expected, rtol=2e-6, atol=2e-6)


def test_seeds_are_those_of_draw_seed():
    """Kernels that read their seed at once draw the same number, and leave the generator in the same state."""
    mu, log_sigma = (torch.zeros(5, 7, requires_grad=True) for _ in range(2))
    torch.manual_seed(3)
    expected = [philox.normal(draw_seed("cpu"), 1, 5, 7)[0] for _ in range(3)]
    state = torch.get_rng_state()
    torch.manual_seed(3)
    samples = [F.diag_gaussian_rsample(mu, log_sigma, impl="cpp") for _ in range(3)]
    assert torch.equal(torch.get_rng_state(), state)
    for (z, _), eps in zip(samples, expected, strict=True):
        torch.testing.assert_close(z.detach(), eps, rtol=2e-6, atol=2e-6)
    # Later calls change neither samples nor gradients of earlier ones.
    (z, log_q), eps = samples[0], samples[0][0].detach().clone()
    d_mu, d_log_sigma = torch.autograd.grad((z, log_q), (mu, log_sigma), (torch.ones(5, 7), torch.zeros(5)))
    assert torch.equal(d_mu, torch.ones(5, 7))
    torch.testing.assert_close(d_log_sigma, eps)
    torch.set_rng_state(state)
    again = F.diag_gaussian_rsample(mu, log_sigma, impl="cpp")[0]
    torch.set_rng_state(state)
    assert torch.equal(F.diag_gaussian_rsample(mu, log_sigma, impl="cpp")[0], again)


def test_threads_draw_their_own_seeds():
    def run(seed):
        generator, zeros = torch.Generator().manual_seed(seed), torch.zeros(3, 4)
        with torch.inference_mode():
            F.diag_gaussian_rsample(zeros, zeros, generator=generator, impl="cpp")
        return torch.stack(
            [F.diag_gaussian_rsample(zeros, zeros, generator=generator, impl="cpp")[0] for _ in range(50)]
        )

    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(run, range(4)))
    for seed, samples in enumerate(together):
        assert torch.equal(samples, run(seed))


@pytest.mark.parametrize("isa", _C.available_isas())
def test_instruction_sets_agree(isa):
    before = _C.isa()
    expected = draw(9, 77)
    _C.set_isa(isa)
    try:
        torch.testing.assert_close(draw(9, 77), expected, rtol=1e-6, atol=1e-6)
    finally:
        _C.set_isa(before)


@pytest.mark.parametrize("impl", KERNELS)
def test_shards_draw_the_noise_of_the_whole(impl):
    whole = draw(12, 10, (2,), impl=impl)
    shards = [draw(n, 10, (2,), row_offset=start, impl=impl) for start, n in ((0, 5), (5, 1), (6, 6))]
    assert torch.equal(torch.cat(shards, 1), whole)


@pytest.mark.parametrize("impl", KERNELS)
def test_more_samples_keep_the_first(impl):
    assert torch.equal(draw(4, 6, (5,), impl=impl)[:2], draw(4, 6, (2,), impl=impl))


@pytest.mark.parametrize("impl", KERNELS)
def test_dtypes_share_the_noise(impl):
    single = draw(4, 40, impl=impl)
    assert torch.equal(draw(4, 40, impl=impl, dtype=torch.float64), single.double())
    # One unit in the last place: Triton's interpreter truncates to bfloat16 where hardware rounds.
    half = draw(4, 40, impl=impl, dtype=torch.bfloat16)
    torch.testing.assert_close(half, single.bfloat16(), rtol=2.0**-7, atol=0)


@pytest.mark.parametrize("impl", KERNELS)
def test_triangular_draws_the_same_noise(impl):
    device = device_of(impl)
    zeros, tril = torch.zeros(4, 12, device=device), torch.zeros(4, 66, device=device)
    z, _ = F.tril_gaussian_rsample(zeros, zeros, tril, generator=torch.Generator(device).manual_seed(0), impl=impl)
    assert torch.equal(z.cpu(), draw(4, 12, impl=impl))


@pytest.mark.parametrize("impl", ["reference", *KERNELS])
def test_generator_decides_and_advances(impl):
    device = device_of(impl)
    zeros = torch.zeros(3, 8, device=device)
    generator = torch.Generator(device).manual_seed(5)
    first, _ = F.diag_gaussian_rsample(zeros, zeros, generator=generator, impl=impl)
    second, _ = F.diag_gaussian_rsample(zeros, zeros, generator=generator, impl=impl)
    again, _ = F.diag_gaussian_rsample(zeros, zeros, generator=generator.manual_seed(5), impl=impl)
    assert torch.equal(first, again)
    assert (first != second).all()


@pytest.fixture(scope="module")
def many():
    """10^8 draws, in rows of 1000."""
    return draw(100_000, 1000, seed=42)


def test_moments(many):
    n = many.numel()
    mean, second = many.mean(dtype=torch.float64), many.square().mean(dtype=torch.float64)
    third, fourth = many.pow(3).mean(dtype=torch.float64), many.pow(4).mean(dtype=torch.float64)
    # Five standard errors of each moment of a standard normal.
    for moment, expected, variance in ((mean, 0, 1), (second, 1, 2), (third, 0, 15), (fourth, 3, 96)):
        assert abs(moment - expected) < 5 * math.sqrt(variance / n)


def test_tails(many):
    n = many.numel()
    for threshold in (1.0, 2.0, 3.0, 4.0, 5.0):
        p = math.erfc(threshold / math.sqrt(2))
        count = int((many.abs() > threshold).sum())
        assert abs(count - n * p) < 5 * math.sqrt(n * p)
    assert 5.3 < many.abs().max() < 6.8


def test_lanes_rows_and_columns_are_uncorrelated(many):
    n = many.numel()
    quarter = many.shape[1] // 4
    lanes = many.view(-1, 4, quarter)
    pairs = [(lanes[:, a], lanes[:, b]) for a in range(4) for b in range(a)]
    pairs += [(many[1:], many[:-1]), (many[:, 1:], many[:, :-1])]
    for x, y in pairs:
        bound = 5 / math.sqrt(n / 4)
        assert abs((x * y).mean(dtype=torch.float64)) < bound
        # Squares too: the two normals of a pair share a radius before their angle splits it.
        assert abs(((x * x - 1) * (y * y - 1)).mean(dtype=torch.float64)) < 2 * bound
