from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

import fastvae.functional as F
from fastvae import _C
from fastvae.likelihoods import bernoulli_log_prob
from fastvae.ops import mlp_bernoulli
from fastvae.structure import ACTIVATION_NAMES
from tests.support.decoders import Decoder
from tests.support.implementations import DTYPES, IMPLEMENTATIONS, device_of
from tests.support.oracle import Problem, check

every_impl = pytest.mark.parametrize("impl", IMPLEMENTATIONS)

# Batch of z, batch of x, widths, and why.
SHAPES = [
    ((64,), (64,), (4, 9, 7)),  # one whole block
    ((71,), (71,), (3, 17, 20)),  # a ragged block
    ((63,), (63,), (5, 16, 33)),  # layer by layer: less than a block
    ((3, 100), (100,), (4, 5, 6, 9)),  # samples of more data points than a block has lanes, two hidden layers
    ((40, 3), (3,), (4, 8, 17)),  # samples of few data points
    ((2, 40, 3), (40, 1), (5, 8, 9)),  # classes, in several samples
    ((80,), (), (3, 7, 17)),  # one data point
    ((2, 40), (2, 1), (3, 7, 17)),  # a batch that does not broadcast from its ends alone
    ((), (), (3, 7, 13)),  # no batch
    ((0,), (0,), (4, 3, 5)),  # no rows
    ((70,), (70,), (5, 130)),  # no hidden layer
    ((70,), (70,), (1, 1, 1)),  # one unit each
    ((65,), (65,), (130, 30, 140, 130)),  # three products, narrow and wide
    ((2, 64), (64,), (9, 33, 20)),  # two whole blocks
    ((127,), (127,), (5, 17, 9, 33)),  # a lane empty
    ((190,), (190,), (5, 17, 9, 33)),  # three blocks, two lanes empty
    ((3, 120), (120,), (4, 70)),  # no hidden layer, samples of blocks with empty lanes
    ((64, 2, 3), (2, 1), (3, 7, 17)),  # classes, of few data points
]
every_shape = pytest.mark.parametrize("shape", SHAPES)


def problem(shape=((2, 64), (64,), (4, 9, 13)), differentiated=False, activation="relu"):
    """Without a gradient, unless ``differentiated``."""
    of_z, of_x, widths = shape
    decoder = Decoder(widths, activation)
    x = torch.rand(*of_x, widths[-1]) < 0.4

    def call(impl, p):
        layers = decoder.split(p[1:])
        return (F.mlp_bernoulli_log_prob(p[0], *layers, x.to(p[0].device), activation=activation, impl=impl),)

    inputs = [torch.randn(*of_z, widths[0]), *decoder.tensors]
    return Problem(call, [t.requires_grad_(differentiated) for t in inputs])


@every_impl
@every_shape
@pytest.mark.parametrize("differentiated", [False, True])
def test_forward_and_backward(shape, differentiated, impl):
    check(lambda: problem(shape, differentiated), impl, torch.float32)


@every_impl
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("differentiated", [False, True])
def test_dtypes(differentiated, dtype, impl):
    check(lambda: problem(differentiated=differentiated), impl, dtype)


@every_impl
@pytest.mark.parametrize("activation", ACTIVATION_NAMES)
@pytest.mark.parametrize("differentiated", [False, True])
def test_activations(differentiated, activation, impl):
    check(lambda: problem(differentiated=differentiated, activation=activation), impl, torch.float32)


@pytest.mark.parametrize("isa", _C.available_isas())
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_instruction_sets(isa, dtype):
    before = _C.isa()
    _C.set_isa(isa)
    try:
        for differentiated in (False, True):
            check(partial(problem, ((3, 60), (60,), (7, 20, 50)), differentiated), "cpp", dtype)
    finally:
        _C.set_isa(before)


@given(
    samples=st.integers(1, 4), points=st.integers(1, 70), classes=st.integers(1, 3),
    widths=st.lists(st.integers(1, 20), min_size=2, max_size=4), strided=st.booleans(),
)  # fmt: skip
def test_random_shapes_and_strides(samples, points, classes, widths, strided):
    decoder = Decoder(widths, "elu").to(torch.float64)
    z = torch.randn(samples, points, classes, widths[0], dtype=torch.float64)
    x = torch.rand(points, 1, widths[-1], dtype=torch.float64)
    weights, biases = decoder.layers
    if strided:
        z, x = z.transpose(0, 1).contiguous().transpose(0, 1), x.mT.contiguous().mT
        weights = [w.t().contiguous().t() for w in weights]
    expected = F.mlp_bernoulli_log_prob(z, weights, biases, x, activation="elu", impl="reference")
    got = F.mlp_bernoulli_log_prob(z, weights, biases, x, activation="elu", impl="cpp")
    torch.testing.assert_close(got, expected)


@every_impl
def test_is_the_decoder_and_its_likelihood(impl):
    decoder = Decoder((4, 8, 20), "tanh").to(torch.float32, device_of(impl))
    (first, last), (bias, _) = decoder.layers
    z, x = torch.randn(5, 30, 4, device=device_of(impl)), torch.randint(2, (30, 20), device=device_of(impl))
    logits = functional.linear(functional.linear(z, first, bias).tanh(), last)
    for data in (x, x.bool(), x.float()):
        got = F.mlp_bernoulli_log_prob(z, *decoder.layers, data, activation="tanh", impl=impl)
        torch.testing.assert_close(got, bernoulli_log_prob(data, logits))


def test_blocks_are_one_call(monkeypatch):
    calls = []
    monkeypatch.setattr(mlp_bernoulli.FWD.__class__, "on", lambda op, route: calls.append(op) or op.cpu)
    for rows, differentiated, expected in (
        (64, False, 1),
        (63, False, 0),
        (64, True, 1),
        (63, True, 0),
        (128, True, 1),
        (150, True, 0),
    ):
        calls.clear()
        problem(((rows,), (rows,), (3, 5, 7)), differentiated).outputs("cpp")
        assert calls.count(mlp_bernoulli.FWD) == expected


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan"), 1e30])
def test_not_finite(value):
    """In one row: no other row changes."""
    made = problem(((4, 20), (20,), (3, 6, 9)), activation="elu").to(torch.float32, "cpu")
    before = made.outputs("cpp")[0].clone()
    made.inputs[0][1, 2, 0] = value
    got, expected = (made.outputs(i)[0] for i in ("cpp", "reference"))
    torch.testing.assert_close(got, expected, equal_nan=True, rtol=1e-4, atol=1e-4)
    others = torch.ones(4, 20, dtype=torch.bool)
    others[1, 2] = False
    assert torch.equal(got[others], before[others])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"z": torch.ones(70, 3)}, r"z must have shape \(\*, 4\), got \(70, 3\)"),
        ({"weights": []}, "weights and biases must be as many, one or more, got 0 and 2"),
        ({"x": torch.ones(70, 12)}, "x must have"),
        ({"activation": "step"}, "activation must be"),
        ({"impl": "cuda"}, "impl must be one of"),
    ],
)
def test_wrong_calls(change, message):
    weights, biases = Decoder((4, 9, 13)).layers
    call = {"z": torch.ones(70, 4), "weights": weights, "biases": biases, "x": torch.ones(70, 13), **change}
    with pytest.raises(ValueError, match=message):
        F.mlp_bernoulli_log_prob(**call)


def test_compiled():
    decoder, x = Decoder((4, 9, 13), "elu"), torch.rand(64, 13).round()

    @torch.compile(fullgraph=True, backend="aot_eager")
    def log_prob(z):
        return F.mlp_bernoulli_log_prob(z, *decoder.layers, x, activation="elu")

    z = torch.randn(3, 64, 4)
    assert torch.equal(log_prob(z), F.mlp_bernoulli_log_prob(z, *decoder.layers, x, activation="elu"))
    z.requires_grad_()
    (expected,) = torch.autograd.grad(F.mlp_bernoulli_log_prob(z, *decoder.layers, x, activation="elu").sum(), z)
    torch.testing.assert_close(torch.autograd.grad(log_prob(z).sum(), z)[0], expected)


@pytest.mark.parametrize("wanted", ["z", "a bias", "all"])
def test_derivatives_of_gradients(wanted):
    """Those that a kernel has computed: a second derivative is the reference's."""
    decoder = Decoder((3, 5, 4), "softplus").to(torch.float64)
    z, x = torch.randn(128, 3, dtype=torch.float64), torch.rand(128, 4).round()
    tensors = [z, *decoder.tensors]
    chosen = {"z": tensors[:1], "a bias": tensors[3:4], "all": tensors}[wanted]
    for t in tensors:
        t.requires_grad_(any(t is c for c in chosen))

    def second(impl):
        log_p = F.mlp_bernoulli_log_prob(z, *decoder.layers, x, activation="softplus", impl=impl)
        first = torch.autograd.grad(log_p.square().sum(), chosen, create_graph=True)
        return *first, *torch.autograd.grad(sum(g.square().sum() for g in first), chosen)

    torch.testing.assert_close(second("cpp"), second("reference"))
