import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import fastvae.functional as F
from fastvae import _C, backend
from fastvae.likelihoods import bernoulli_log_prob
from fastvae.ops import linear_bernoulli
from tests.support.implementations import DTYPES, IMPLEMENTATIONS, device_of
from tests.support.oracle import Problem, check

every_impl = pytest.mark.parametrize("impl", IMPLEMENTATIONS)
kernels = pytest.mark.parametrize("impl", ["cpp", "triton"])

# Batch of h, batch of x, pixels, features, and why.
SHAPES = [
    ((5,), (5,), 7, 3),  # one block with a ragged end
    ((3, 100), (100,), 20, 4),  # samples of more data points than a block has lanes: rows as they come
    ((3, 120), (120,), 20, 4),  # and of so many that blocks of data points leave few lanes empty
    ((3, 4), (4,), 33, 5),  # samples of few data points
    ((4, 3, 10), (3, 1), 9, 5),  # classes, in several samples
    ((6,), (1,), 17, 2),  # one data point
    ((6,), (), 17, 2),  # the same, without a batch
    ((2, 3), (2, 3), 6, 4),  # two batch dimensions
    ((2, 3, 4), (2, 1, 4), 6, 4),  # a batch that does not broadcast from its ends alone
    ((), (), 13, 8),  # no batch
    ((0,), (0,), 5, 4),  # no rows
    ((2, 0), (0,), 5, 4),  # samples of no data points
    ((3,), (3,), 5, 0),  # no features: the bias alone
]
every_shape = pytest.mark.parametrize("shape", SHAPES)


def problem(shape=((3, 4), (4,), 33, 5), with_bias=True, spread=1.0):
    of_h, of_x, pixels, features = shape
    x = torch.rand(*of_x, pixels) < 0.4
    h, weight = torch.randn(*of_h, features), spread * torch.randn(pixels, features)
    inputs = [h, weight] + ([torch.randn(pixels)] if with_bias else [])

    def call(impl, p):
        return (F.linear_bernoulli_log_prob(p[0], p[1], p[2] if with_bias else None, x.to(p[0].device), impl=impl),)

    return Problem(call, [t.requires_grad_() for t in inputs])


@every_impl
@every_shape
def test_forward_and_backward(shape, impl):
    check(lambda: problem(shape), impl, torch.float32)


@every_impl
@pytest.mark.parametrize("dtype", DTYPES)
def test_dtypes(dtype, impl):
    check(lambda: problem(((2, 20), (20,), 40, 12)), impl, dtype)


@every_impl
def test_without_bias(impl):
    check(lambda: problem(with_bias=False), impl, torch.float32)


@pytest.mark.parametrize("keeps", [True, False])
@pytest.mark.parametrize("isa", _C.available_isas())
def test_instruction_sets_and_chunks(isa, keeps, monkeypatch):
    """More rows than the weight's gradient takes at once; with what the forward pass keeps, and without."""
    monkeypatch.setattr(linear_bernoulli, "_MOST_KEPT_BYTES", 1 << 20 if keeps else 0)
    before = _C.isa()
    _C.set_isa(isa)
    try:
        check(lambda: problem(((40, 70), (70,), 11, 6)), "cpp", torch.float32)
    finally:
        _C.set_isa(before)


@kernels
@pytest.mark.parametrize("needs", [(True, False, False), (False, True, False), (False, False, True)])
def test_each_gradient_alone(needs, impl):
    made = problem(((3, 30), (30,), 10, 4)).to(torch.float32, device_of(impl))
    expected = torch.autograd.grad(made.outputs("reference")[0].sum(), made.inputs)
    inputs = [t.detach().requires_grad_(need) for t, need in zip(made.inputs, needs, strict=True)]
    made.call(impl, inputs)[0].sum().backward()
    for t, e, need in zip(inputs, expected, needs, strict=True):
        assert (t.grad is not None) == need
        if need:
            torch.testing.assert_close(t.grad, e, rtol=1e-4, atol=1e-4)


@given(
    samples=st.integers(1, 4), points=st.integers(1, 70), classes=st.integers(1, 3), pixels=st.integers(1, 40),
    features=st.integers(1, 20), strided=st.booleans(),
)  # fmt: skip
def test_random_shapes_and_strides(samples, points, classes, pixels, features, strided):
    h = torch.randn(samples, points, classes, features, dtype=torch.float64)
    weight, bias = torch.randn(pixels, features, dtype=torch.float64), torch.randn(2 * pixels, dtype=torch.float64)
    x = torch.rand(points, 1, pixels, dtype=torch.float64)
    if strided:
        h, weight, x = h.transpose(0, 1).contiguous().transpose(0, 1), weight.t().contiguous().t(), x.mT.contiguous().mT
    expected = F.linear_bernoulli_log_prob(h, weight, bias[::2], x, impl="reference")
    torch.testing.assert_close(F.linear_bernoulli_log_prob(h, weight, bias[::2], x, impl="cpp"), expected)


@every_impl
def test_is_the_layer_and_its_likelihood(impl):
    device = device_of(impl)
    h, weight, bias = (torch.randn(s, device=device) for s in ((5, 6, 8), (20, 8), (20,)))
    x = torch.randint(2, (6, 20), device=device)
    for data in (x, x.bool(), x.float(), 0.5 * x.double()):
        expected = bernoulli_log_prob(data, torch.nn.functional.linear(h, weight, bias))
        torch.testing.assert_close(F.linear_bernoulli_log_prob(h, weight, bias, data, impl=impl), expected)


@kernels
def test_sure_logits_keep_their_small_probabilities(impl):
    """One logit of 20 leaves e^-20 of doubt, which is not lost beside 1."""
    weight = torch.full((1, 1), 20.0, device=device_of(impl))
    h, x = torch.ones(1, 1, device=device_of(impl)), torch.ones(1, 1, device=device_of(impl))
    log_p = F.linear_bernoulli_log_prob(h, weight, None, x, impl=impl)
    torch.testing.assert_close(
        log_p.cpu().double(), -torch.tensor([20.0], dtype=torch.float64).neg().exp(), rtol=1e-5, atol=0.0
    )


@kernels
@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan"), 1e30])
def test_not_finite(value, impl):
    made = problem(((4, 20), (20,), 9, 3)).to(torch.float32, device_of(impl))
    with torch.no_grad():
        made.inputs[0][1, 2, 0] = value
    outputs = [made.outputs(i)[0] for i in (impl, "reference")]
    torch.testing.assert_close(*outputs, equal_nan=True, rtol=1e-4, atol=1e-4)
    got, expected = (torch.autograd.grad(o.sum(), made.inputs[0])[0] for o in outputs)
    torch.testing.assert_close(got, expected, equal_nan=True, rtol=1e-4, atol=1e-4)


@every_shape
def test_what_is_kept_is_what_would_be_computed_again(shape, monkeypatch):
    made, found = problem(shape), []
    for most in (0, 1 << 30):
        monkeypatch.setattr(linear_bernoulli, "_MOST_KEPT_BYTES", most)
        (log_p,) = made.outputs("cpp")
        found.append([log_p.detach(), *torch.autograd.grad(log_p, made.inputs, torch.ones_like(log_p))])
    assert all(map(torch.equal, *found))


def test_gradient_of_the_data_is_the_references():
    h, weight, x = torch.randn(3, 4), torch.randn(5, 4), torch.rand(3, 5, requires_grad=True)
    F.linear_bernoulli_log_prob(h, weight, None, x).sum().backward()
    torch.testing.assert_close(x.grad, h @ weight.t())
    with pytest.raises(RuntimeError, match="impl='cpp' cannot run here: x requires a gradient"):
        F.linear_bernoulli_log_prob(h, weight, None, x, impl="cpp")
    with backend.use("cpp"), pytest.raises(RuntimeError, match="x requires a gradient"):
        F.linear_bernoulli_log_prob(h, weight, None, x)


def test_autocast_computes_the_layer_in_its_dtype():
    h, weight, bias, x = torch.randn(6, 4), torch.randn(5, 4), torch.randn(5), torch.ones(6, 5)
    with torch.autocast("cpu", torch.bfloat16):
        got = F.linear_bernoulli_log_prob(h, weight, bias, x)
    expected = F.linear_bernoulli_log_prob(h.bfloat16(), weight.bfloat16(), bias.bfloat16(), x)
    assert got.dtype == torch.float32
    assert torch.equal(got, expected)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"h": torch.randn(3, 5)}, ValueError, r"h must have shape \(\*, 4\), got \(3, 5\)"),
        ({"weight": torch.randn(4)}, ValueError, r"weight must have shape \(P, H\) with P >= 1, got \(4,\)"),
        ({"bias": torch.randn(4)}, ValueError, r"bias must have shape \(5,\), got \(4,\)"),
        ({"x": torch.ones(2, 5)}, ValueError, r"x must have shape \(\*, P\) whose batch broadcasts to that of h"),
        ({"x": torch.ones(3, 4)}, ValueError, r"x must have shape \(\*, 5\), one value for each row of weight"),
        ({"x": torch.ones(3, 5, dtype=torch.complex64)}, TypeError, "x must be a bool, integer or floating-point"),
        ({"x": [1.0]}, TypeError, "x must be a bool, integer or floating-point tensor, got list"),
        ({"weight": torch.randn(5, 4).double()}, TypeError, "weight must have the dtype of h"),
        ({"x": torch.ones(3, 5, device="meta")}, ValueError, "x must be on the device of h"),
    ],
)  # fmt: skip
def test_refusals(change, error, message):
    given = {
        "h": torch.randn(3, 4),
        "weight": torch.randn(5, 4),
        "bias": torch.randn(5),
        "x": torch.ones(3, 5),
    } | change
    with pytest.raises(error, match=message):
        F.linear_bernoulli_log_prob(**given)
