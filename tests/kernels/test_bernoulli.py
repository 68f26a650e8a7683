"""The launchers of Bernoulli units against formulas in float64: awkward shapes and strides, noise given and drawn."""

import pytest
import torch
import triton.language as tl

from fastvae.kernels import bernoulli
from fastvae.kernels._launch import forget_rules
from fastvae.kernels._tiles import BLOCK_TERMS, SampleTile
from fastvae.reference import philox
from fastvae.reference.bernoulli import log_prob
from tests.support.gaussian_launches import DEVICE, cases, move_to_device, rows
from tests.support.implementations import DTYPES, GPU
from tests.support.oracle import assert_as_close_as_eager


def check(n, d, layout, draws, given, antithetic, dtype=torch.float32):
    logits = move_to_device(rows(n, d, layout=layout, scale=2.0), dtype)
    seed = torch.randint(2**62, (), device=DEVICE)
    u = philox.uniform(seed, draws, n, d, row_offset=3)
    b, log_q = bernoulli.bernoulli_fwd(logits, u if given else seed, draws, 3, antithetic)
    wide = logits.to(torch.float64 if dtype == torch.float64 else torch.float32)
    both = torch.cat([u, 1 - u]) if antithetic else u
    assert torch.equal(b, (both > torch.sigmoid(-wide)).to(dtype))
    upstream = torch.randn_like(log_q)
    results = [log_q, bernoulli.bernoulli_bwd(upstream, b, logits)]
    for i, (actual, eager, exact) in enumerate(
        zip(
            results,
            *(
                eager_results(t, b, upstream)
                for t in (torch.nextafter(logits, logits + 1) if dtype == torch.float64 else logits, logits.double())
            ),
            strict=True,
        )
    ):
        assert_as_close_as_eager(actual, eager.to(actual.dtype), exact, f"result {i}")


def eager_results(logits, b, upstream):
    leaf = logits.detach().requires_grad_()
    log_q = log_prob(leaf, b)
    return log_q.detach(), torch.autograd.grad(log_q, leaf, upstream.to(log_q))[0]


@cases
@pytest.mark.parametrize(
    ("draws", "given", "antithetic"), [(1, False, False), (3, False, True), (4, True, False), (1, True, True)]
)
def test_units(n, d, layout, draws, given, antithetic):
    check(n, d, layout, draws, given, antithetic)


@pytest.mark.thorough
@pytest.mark.parametrize("antithetic", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_dtypes(dtype, antithetic):
    check(3, 96, "contiguous", 2, False, antithetic, dtype)


def test_no_samples_leave_zero_gradients():
    logits = torch.zeros(2, 5, device=DEVICE)
    gradient = bernoulli.bernoulli_bwd(logits.new_empty(0, 2), logits.new_empty(0, 2, 5), logits)
    assert (gradient == 0).all()


@pytest.mark.thorough
@pytest.mark.parametrize("tile", [SampleTile(2, 2, 8, 1), SampleTile(4, 1, 64, 2)])
def test_tiles_do_not_matter(monkeypatch, tile):
    logits, seed = torch.randn(5, 65, device=DEVICE), torch.tensor(11, device=DEVICE)
    expected, _ = bernoulli.bernoulli_fwd(logits, seed, 2, 0, True)
    monkeypatch.setattr(bernoulli, "point_tile", lambda *_: tile)
    forget_rules()
    assert torch.equal(bernoulli.bernoulli_fwd(logits, seed, 2, 0, True)[0], expected)


def test_blocks_of_samples(monkeypatch):
    """The first term is so large that the others of its own block vanish in it, and no others."""
    block = BLOCK_TERMS.value
    if not GPU:  # the interpreter takes milliseconds for a sample
        block = 8
        monkeypatch.setattr(bernoulli, "BLOCK_TERMS", tl.constexpr(block))
    monkeypatch.setattr(bernoulli, "sum_tile", lambda *_: SampleTile(1, 1, 16, 1))
    terms = torch.full((3 * block, 1), 2.0, device=DEVICE)
    terms[0] = 2.0**25
    logits, b = torch.zeros(1, 16, device=DEVICE), torch.ones(3 * block, 1, 16, device=DEVICE)
    gradient = bernoulli.bernoulli_bwd(terms, b, logits)
    assert torch.equal(gradient, torch.full_like(gradient, 2.0**24 + 2 * block))
