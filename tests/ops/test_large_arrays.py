"""What is too large for the caches is written past them: the same numbers as in parts that are not.

The C++ kernels stream arrays from 12 MiB on (csrc/simd/stream.h); each test's whole exceeds that, its halves do not.
"""

import pytest
import torch

import fastvae.functional as F
from fastvae import _C

LIMIT = 12 << 20
DTYPES = [torch.float32, torch.float64]


@pytest.fixture(params=_C.available_isas(), autouse=True)
def every_isa(request):
    before = _C.isa()
    _C.set_isa(request.param)
    yield
    _C.set_isa(before)


def rows_for(columns, dtype):
    """An even number of rows: all of them exceed the limit, half of them do not."""
    return LIMIT // (columns * dtype.itemsize) * 3 // 2 // 2 * 2


def gradients(function, inputs):
    """Outputs, then gradients under weights that are the same for every row."""
    leaves = [t.detach().requires_grad_() for t in inputs]
    outputs = function(*leaves)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    upstream = [torch.arange(o[0].numel(), dtype=o.dtype).cos().view(o.shape[1:]).expand(o.shape) for o in outputs]
    return [*outputs, *torch.autograd.grad(outputs, leaves, upstream)]


def assert_same_in_halves(function, inputs):
    """``function(offset, *rows)`` of all rows at once, and of one half after the other."""
    rows = inputs[0].shape[0]
    whole = gradients(lambda *p: function(0, *p), inputs)
    for first in (0, rows // 2):
        part = slice(first, first + rows // 2)
        halves = gradients(lambda *p, at=first: function(at, *p), [t[part] for t in inputs])
        for got, expected in zip(whole, halves, strict=True):
            # A compiler may fuse a product with a sum in one of the two paths only; products are below 8.
            eps = torch.finfo(got.dtype).eps
            torch.testing.assert_close(got[part], expected, rtol=2 * eps, atol=8 * eps)
            assert torch.equal(got[part] == 0, expected == 0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_diag_gaussian(dtype):
    rows = rows_for(1024, dtype)
    mu, log_sigma = torch.randn(rows, 1024, dtype=dtype), 0.3 * torch.randn(rows, 1024, dtype=dtype)

    def sample(row_offset, *parameters):
        generator = torch.Generator().manual_seed(3)
        return F.diag_gaussian_rsample(*parameters, generator=generator, row_offset=row_offset, impl="cpp")

    assert mu.nbytes >= LIMIT > mu.nbytes // 2
    assert_same_in_halves(sample, [mu, log_sigma])


@pytest.mark.parametrize("entry", ["rsample", "log_prob", "kl"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_tril_gaussian(dtype, entry):
    d = 64
    rows = rows_for(d * d, dtype)
    mu, log_sigma = torch.randn(rows, d, dtype=dtype), 0.3 * torch.randn(rows, d, dtype=dtype)
    tril = torch.randn(rows, d, d, dtype=dtype) / d
    tril.masked_fill_(torch.ones(d, d).triu() > 0, float("nan"))  # not read, streamed or not

    def call(row_offset, *p):
        if entry == "rsample":
            generator = torch.Generator().manual_seed(3)
            return F.tril_gaussian_rsample(*p, generator=generator, row_offset=row_offset, impl="cpp")
        if entry == "kl":
            return F.tril_gaussian_kl(*p, impl="cpp")
        return F.tril_gaussian_log_prob(p[0] + p[1].sin(), *p, impl="cpp")

    assert tril.nbytes >= LIMIT > tril.nbytes // 2
    assert_same_in_halves(call, [mu, log_sigma, tril])


@pytest.mark.parametrize("in_features", [1536, 1543], ids=["whole vectors", "a rest"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_masked_linear(dtype, in_features):
    outs = rows_for(in_features, dtype)
    x = torch.randn(70, in_features, dtype=dtype)
    weight, bias = torch.randn(outs, in_features, dtype=dtype) / 40, torch.randn(outs, dtype=dtype)
    in_degrees, out_degrees = torch.arange(in_features) // 50, torch.arange(outs) * 30 // outs

    def layer(first, weight, bias):
        degrees = out_degrees[first : first + len(weight)]
        y = F.masked_linear(x, weight, bias, in_degrees=in_degrees, out_degrees=degrees, activation="elu", impl="cpp")
        return y.T

    assert weight.nbytes >= LIMIT > weight.nbytes // 2
    assert_same_in_halves(layer, [weight, bias])
