"""Bernoulli units: values, gradients, noise, errors."""

import math

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import fastvae.functional as F
from fastvae import _C
from fastvae.ops.bernoulli import FWD
from fastvae.reference import philox
from fastvae.rng import draw_seed
from tests.support.implementations import DTYPES, IMPLEMENTATIONS, SHAPES, device_of
from tests.support.oracle import check_against_oracle
from tests.support.units import unit_inputs, unit_problem

KERNELS = ("cpp", "triton")
every_impl = pytest.mark.parametrize("impl", IMPLEMENTATIONS)
every_kernel = pytest.mark.parametrize("impl", KERNELS)
pairs = pytest.mark.parametrize("antithetic", [False, True], ids=["single", "pairs"])


@every_impl
@pytest.mark.parametrize(("batch", "features"), SHAPES)
def test_forward_and_backward(batch, features, impl):
    check_against_oracle(unit_problem(batch, features), impl, torch.float32)


@every_impl
@pytest.mark.parametrize("dtype", DTYPES)
def test_dtypes(dtype, impl):
    check_against_oracle(unit_problem((6,), 34, (2,)), impl, dtype)


@every_impl
@pairs
@pytest.mark.parametrize("sample_shape", [(), (5,), (2, 3), (0,)])
def test_samples(sample_shape, antithetic, impl):
    check_against_oracle(unit_problem((4,), 9, sample_shape, antithetic), impl, torch.float32)


@pytest.mark.parametrize(("rows", "features", "samples"), [(1, 70_001, 1), (2, 3, 1000), (300, 200, 2)])
def test_long_rows_many_samples_and_many_rows(rows, features, samples):
    check_against_oracle(unit_problem((rows,), features, (samples,)), "cpp", torch.float32)


@pytest.mark.parametrize("isa", _C.available_isas())
def test_every_instruction_set(isa):
    before = _C.isa()
    _C.set_isa(isa)
    try:
        for dtype in (torch.float32, torch.float64):
            for features in (1, 17, 64, 79):
                check_against_oracle(unit_problem((3,), features, (2,), True), "cpp", dtype)
                logits, uniforms = unit_inputs((5,), features)
                for impl in ("cpp", "reference"):
                    b, _ = F.bernoulli_sample(logits.to(dtype), uniforms=uniforms, impl=impl)
                    assert torch.equal(b, (uniforms > torch.sigmoid(-logits.to(dtype))).to(dtype))
    finally:
        _C.set_isa(before)


@every_kernel
@pairs
@pytest.mark.parametrize("columns", [1, 3, 5, 64, 257])
@pytest.mark.parametrize("row_offset", [0, 2**32 - 2])
def test_kernels_draw_the_uniform_numbers_of_the_contract(columns, row_offset, antithetic, impl):
    device = device_of(impl)
    logits = torch.randn(5, columns, device=device)
    generator = torch.Generator(device).manual_seed(9)
    b, log_q = F.bernoulli_sample(
        logits, (3,), antithetic=antithetic, generator=generator, row_offset=row_offset, impl=impl
    )
    u = philox.uniform(draw_seed(device, generator.manual_seed(9)), 3, 5, columns, row_offset=row_offset)
    expected, log_p = F.bernoulli_sample(logits, (3,), antithetic=antithetic, uniforms=u, impl="reference")
    assert torch.equal(b, expected)
    torch.testing.assert_close(log_q, log_p)


@every_kernel
def test_known_answers(impl):
    """Random123's words for counter and key 0 are above one half, a quarter, and so on, or not."""
    device = device_of(impl)
    u = [0x6627E8D5 / 2**32, 0xE169C58D / 2**32, 0xBC57AC4C / 2**32, 0x9B00DBD8 / 2**32]
    for p in (0.2, 0.5, 0.7):
        logits = torch.full((1, 4), math.log(p / (1 - p)), device=device)
        b, _ = (FWD.cpu if impl == "cpp" else FWD.triton)(logits, torch.tensor(0, device=device), (1, 4), 0, False)
        assert b.flatten().tolist() == [float(v > 1 - p) for v in u]


@every_kernel
def test_shards_and_more_samples_draw_the_units_of_the_whole(impl):
    device = device_of(impl)
    logits = torch.zeros(12, 10, device=device)

    def draw(rows, samples, row_offset=0):
        generator = torch.Generator(device).manual_seed(1)
        return F.bernoulli_sample(logits[:rows], (samples,), generator=generator, row_offset=row_offset, impl=impl)[0]

    whole = draw(12, 3)
    assert torch.equal(torch.cat([draw(5, 3), draw(1, 3, 5), draw(6, 3, 6)], 1), whole)
    assert torch.equal(draw(12, 2), whole[:2])
    assert 0.4 < whole.mean() < 0.6


def test_frequencies_and_log_probabilities():
    """Units are on as often as they should be; the mean of -log q is the entropy."""
    n, logits = 100_000, torch.tensor([-3.0, -0.5, 0.0, 1.0, 4.0], dtype=torch.float64)
    b, log_q = F.bernoulli_sample(logits, (n,), generator=torch.Generator().manual_seed(2))
    p = torch.sigmoid(logits)
    assert ((b.mean(0) - p).abs() < 4.5 * (p * (1 - p) / n).sqrt()).all()
    entropy = -(p * p.log() + (1 - p) * (-p).log1p()).sum()
    assert abs(-log_q.mean() - entropy) < 4.5 * log_q.std() / math.sqrt(n)
    both = ((b - p).T @ (b - p) / n)[~torch.eye(5, dtype=torch.bool)]
    assert (both.abs() < 4.5 * 0.25 / math.sqrt(n)).all()


@pytest.mark.parametrize("impl", ["reference", "cpp"])
@pairs
@pytest.mark.parametrize("sample_shape", [(), (3,)])
def test_gradcheck(sample_shape, antithetic, impl):
    logits = unit_inputs((3,), 5)[0].double().detach().requires_grad_()

    def log_q(logits):
        # The reference draws other units, the same in every call.
        generator = torch.Generator().manual_seed(3)
        return F.bernoulli_sample(logits, sample_shape, antithetic=antithetic, generator=generator, impl=impl)[1]

    assert torch.autograd.gradcheck(log_q, [logits])
    assert torch.autograd.gradgradcheck(log_q, [logits])


@every_impl
@pairs
def test_units_have_no_gradient(antithetic, impl):
    logits, uniforms = (t.detach().to(device_of(impl)) for t in unit_inputs((3,), 4))
    b, log_q = F.bernoulli_sample(
        logits.requires_grad_(), antithetic=antithetic, uniforms=uniforms.requires_grad_(), impl=impl
    )
    assert not b.requires_grad
    (d_logits,) = torch.autograd.grad(log_q.sum(), logits)
    units = b if antithetic else b[None]
    torch.testing.assert_close(d_logits, (units - torch.sigmoid(logits)).sum(0))
    assert ((b == 0) | (b == 1)).all()
    if antithetic:
        assert torch.equal(b[1], (1 - uniforms > torch.sigmoid(-logits)).to(b))


@every_kernel
def test_strides(impl):
    logits, uniforms = (t.detach().to(device_of(impl)) for t in unit_inputs((6,), 20))
    expected = F.bernoulli_sample(logits, uniforms=uniforms, impl=impl)
    for relayout in (
        lambda t: torch.cat([t, t], -1).chunk(2, -1)[0],
        lambda t: t.t().contiguous().t(),
        lambda t: torch.stack([t, t], 1)[:, 1],
    ):
        strided = relayout(logits).requires_grad_()
        got = F.bernoulli_sample(strided, uniforms=relayout(uniforms), impl=impl)
        assert all(map(torch.equal, got, expected))
        (d_logits,) = torch.autograd.grad(got[1].sum(), strided)
        torch.testing.assert_close(d_logits, expected[0] - torch.sigmoid(logits))


@every_impl
def test_one_row_for_many(impl):
    """An expanded row is read in place, and its gradient is summed up."""
    row = torch.randn(7, device=device_of(impl), requires_grad=True)
    b, log_q = F.bernoulli_sample(row.expand(5, 7), impl=impl)
    (d_row,) = torch.autograd.grad(log_q.sum(), row)
    torch.testing.assert_close(d_row, (b - torch.sigmoid(row)).sum(0))


@every_impl
@pytest.mark.parametrize("logit", [math.inf, -math.inf, math.nan, 1e4, -1e4, 90.0, -100.0])
def test_extremes(logit, impl):
    """What is certain has log-probability 0; the other value has the logit's, to the last bit."""
    logits = torch.tensor([[0.0, logit]], device=device_of(impl), requires_grad=True)
    b, log_q = F.bernoulli_sample(logits, uniforms=torch.full_like(logits, 0.75), impl=impl)
    (d_logits,) = torch.autograd.grad(log_q.sum(), logits)
    if math.isnan(logit):
        assert log_q.isnan().all()
        assert d_logits[0, 1].isnan()
        return
    assert b.tolist() == [[1.0, float(logit > 0)]]
    torch.testing.assert_close(log_q.cpu(), torch.tensor([-math.log(2.0)]))
    torch.testing.assert_close(d_logits.cpu(), torch.tensor([[0.5, 0.0]]), atol=1e-38, rtol=1e-6)


@every_impl
def test_a_gradient_of_rare_units_keeps_its_digits(impl):
    """1 - sigmoid(20) is 2e-9, a difference that float32 would lose."""
    logits = torch.tensor([[20.0, -20.0]], device=device_of(impl), requires_grad=True)
    _, log_q = F.bernoulli_sample(logits, uniforms=torch.full_like(logits, 0.5), impl=impl)
    (d_logits,) = torch.autograd.grad(log_q.sum(), logits)
    expected = torch.sigmoid(torch.tensor([[-20.0, -20.0]], dtype=torch.float64)) * torch.tensor([1.0, -1.0])
    torch.testing.assert_close(d_logits.cpu().double(), expected, rtol=1e-6, atol=0)


def test_autocast():
    layer = torch.nn.Linear(4, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        b, log_q = F.bernoulli_sample(layer(torch.randn(3, 4)))
        assert (b.dtype, log_q.dtype) == (torch.bfloat16, torch.float32)
    log_q.sum().backward()
    assert layer.weight.grad is not None


@pytest.mark.parametrize("impl", ["auto", pytest.param("reference", marks=pytest.mark.thorough)])
def test_compile_fullgraph(impl):
    """Forward and backward in one graph each, for two shapes under one dynamic compilation."""

    def loss(logits, uniforms):
        b, log_q = F.bernoulli_sample(logits, antithetic=True, uniforms=uniforms, impl=impl)
        return (b.sum(-1) * log_q).sum()

    torch._dynamo.reset()
    compiled = torch.compile(loss, fullgraph=True, dynamic=True, backend="aot_eager")
    for batch in ((4,), (6,)):
        logits, uniforms = unit_inputs(batch, 8)
        expected, got = (torch.autograd.grad(call(logits, uniforms), logits) for call in (loss, compiled))
        torch.testing.assert_close(got, expected)


def test_compiled_calls_draw_anew():
    torch._dynamo.reset()
    logits = torch.zeros(16, 40, requires_grad=True)
    compiled = torch.compile(lambda t: F.bernoulli_sample(t), fullgraph=True, backend="aot_eager")
    (b, log_q), (again, _) = compiled(logits), compiled(logits)
    assert (b != again).any()
    (d_logits,) = torch.autograd.grad(log_q.sum(), logits)
    torch.testing.assert_close(d_logits, b - 0.5)


def test_sizes_beyond_32_bits():
    with FakeTensorMode():
        logits = torch.empty(2**21, 1024)
        seed = torch.empty((), dtype=torch.int64)
        b, log_q = torch.ops.fastvae.bernoulli_fwd(logits, seed, (2, 2**21, 1024), 0, True)
        assert (b.shape, log_q.shape) == ((2, 2**21, 1024), (2, 2**21))
    assert F.bernoulli_sample(torch.empty(2**21, 1024, device="meta"), (3,))[1].shape == (3, 2**21)


ONE = torch.zeros(2, 4)
ERRORS = [
    (lambda: F.bernoulli_sample([0.0]), TypeError, "logits must be a tensor, got list"),
    (lambda: F.bernoulli_sample(ONE.long()), TypeError, r"logits must be float16.*got torch\.int64"),
    (lambda: F.bernoulli_sample(ONE[0, 0]), ValueError, r"logits must have shape \(\*, D\) with D >= 1, got \(\)"),
    (lambda: F.bernoulli_sample(ONE[:, :0]), ValueError, r"logits must have shape \(\*, D\) with D >= 1"),
    (lambda: F.bernoulli_sample(ONE, 3), TypeError, r"sample_shape must be a sequence.*\(3,\)"),
    (lambda: F.bernoulli_sample(ONE, (-1,)), ValueError, "sample_shape must hold sizes >= 0"),
    (lambda: F.bernoulli_sample(ONE, (1 << 59,)), ValueError, "sample_shape must leave a sample that memory can hold"),
    (lambda: F.bernoulli_sample(ONE, row_offset=-1), ValueError, "row_offset must be >= 0"),
    (lambda: F.bernoulli_sample(ONE, uniforms=ONE[0]), ValueError, r"uniforms must have the shape of a sample"),
    (lambda: F.bernoulli_sample(ONE, uniforms=ONE.double()), TypeError, "uniforms must have the dtype of logits"),
    (lambda: F.bernoulli_sample(ONE, uniforms=3.0), TypeError, "uniforms must be a tensor, got float"),
    (lambda: F.bernoulli_sample(ONE, uniforms=ONE.to("meta")), ValueError, "uniforms must be on the device of logits"),
    (
        lambda: F.bernoulli_sample(ONE, uniforms=ONE, generator=torch.Generator()),
        ValueError,
        "uniforms and generator exclude each other",
    ),
    (lambda: F.bernoulli_sample(ONE, generator=3), TypeError, r"generator must be a torch\.Generator, got int"),
    (lambda: F.bernoulli_sample(ONE, impl="cuda"), ValueError, "impl must be one of"),
]


@pytest.mark.parametrize(("call", "kind", "message"), ERRORS, ids=[message[:30] for *_, message in ERRORS])
def test_errors(call, kind, message):
    with pytest.raises(kind, match=message):
        call()
