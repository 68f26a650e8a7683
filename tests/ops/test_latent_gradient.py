import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

import fastvae.functional as F
from fastvae import _C
from fastvae.ops import _decoder
from fastvae.reference.latent_gradient import LIKELIHOODS
from fastvae.reference.masked_linear import ACTIVATIONS
from fastvae.structure import ACTIVATION_NAMES
from tests.support.decoders import Decoder
from tests.support.implementations import DTYPES, IMPLEMENTATIONS, device_of
from tests.support.oracle import Problem, check

every_impl = pytest.mark.parametrize("impl", IMPLEMENTATIONS)
kernels = pytest.mark.parametrize("impl", ["cpp", "triton"])
every_activation = pytest.mark.parametrize("activation", ACTIVATION_NAMES)
every_likelihood = pytest.mark.parametrize("likelihood", LIKELIHOODS)

# Batch of z, batch of x, widths, and why.
SHAPES = [
    ((1,), (1,), (4, 9, 7)),  # one row
    ((15,), (15,), (3, 17, 20)),  # a few rows, ragged vectors
    ((25,), (25,), (5, 16, 33)),  # the first number of rows whose samples are in lanes, with AVX-512
    ((65,), (65,), (2, 6, 5)),  # more than a block
    ((2, 30), (30,), (4, 5, 6, 9)),  # samples of data points, two hidden layers
    ((2, 3, 5), (3, 1), (5, 8, 9)),  # classes, in several samples
    ((6,), (), (3, 7, 17)),  # one data point
    ((), (), (3, 7, 13)),  # no batch
    ((0,), (0,), (4, 3, 5)),  # no rows
    ((3,), (3,), (5, 130)),  # no hidden layer
    ((2,), (2,), (1, 1, 1)),  # one unit each
    ((3,), (3,), (130, 130, 130, 130)),  # three products
]
every_shape = pytest.mark.parametrize("shape", SHAPES)


def rows_of(impl):
    """Few rows and, in C++, enough to be in lanes."""
    return (3,) if impl == "triton" else (3, 26)


def gradient_problem(shape, only_z=True, **options):
    of_z, of_x, widths = shape
    decoder = Decoder(widths, **options)
    x = torch.rand(*of_x, widths[-1]) < 0.4

    def call(impl, p):
        z, *layers = p if not only_z else (*p, *(t.to(p[0]) for t in decoder.tensors))
        return F.latent_gradient(z, *decoder.split(layers), x.to(z.device), **decoder.named, impl=impl)

    z = torch.randn(*of_z, widths[0])
    inputs = [z] if only_z else [z, *decoder.tensors]
    return Problem(call, [t.requires_grad_() for t in inputs])


def product_problem(shape, **options):
    of_z, of_x, widths = shape
    decoder = Decoder(widths, **options)
    x = torch.rand(*of_x, widths[-1]) < 0.4

    def call(impl, p):
        layers = [t.to(p[0]) for t in decoder.tensors]
        return F.latent_hessian_product(*p, *decoder.split(layers), x.to(p[0].device), **decoder.named, impl=impl)

    return Problem(call, [torch.randn(*of_z, widths[0]).requires_grad_() for _ in range(2)])


@every_impl
@every_shape
def test_gradient(shape, impl):
    """Forward, and the backward pass with its Hessian product."""
    check(lambda: gradient_problem(shape), impl, torch.float32)


@every_impl
@every_shape
def test_product(shape, impl):
    check(lambda: product_problem(shape, activation="silu"), impl, torch.float32)


@every_impl
@every_likelihood
@every_activation
def test_activations(activation, likelihood, impl):
    options = {"activation": activation, "likelihood": likelihood}
    for rows in rows_of(impl):
        check(lambda rows=rows: product_problem(((rows,), (), (3, 9, 5, 7)), **options), impl, torch.float32)


@every_impl
@pytest.mark.parametrize("dtype", DTYPES)
def test_dtypes(dtype, impl):
    for rows in rows_of(impl):
        check(lambda rows=rows: gradient_problem(((2, rows), (rows,), (4, 20, 40)), activation="elu"), impl, dtype)


@pytest.mark.parametrize("isa", _C.available_isas())
@pytest.mark.parametrize("rows", [9, 150])
def test_instruction_sets(rows, isa):
    before = _C.isa()
    _C.set_isa(isa)
    try:
        check(lambda: product_problem(((rows,), (rows,), (7, 70, 37)), activation="tanh"), "cpp", torch.float32)
    finally:
        _C.set_isa(before)


def plain(z, decoder, x):
    """The log-likelihood as users write it."""
    h, (weights, biases) = z, decoder.split(decoder.tensors)
    for i, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        h = functional.linear(ACTIVATIONS[decoder.activation](h) if i else h, weight, bias)
    if decoder.likelihood == "gaussian":
        return -0.5 * (x - h).square().sum(-1)
    return -functional.binary_cross_entropy_with_logits(h, x.expand(h.shape), reduction="none").sum(-1)


@every_impl
@every_likelihood
@every_activation
def test_is_what_autograd_finds(activation, likelihood, impl):
    """In float64: values, gradient, and a Hessian product by differentiating twice."""
    decoder = Decoder((4, 11, 8, 9), activation, likelihood).to(torch.float64)
    x, device = torch.rand(5, 9).double().round(), device_of(impl)
    z, v = torch.randn(3, 5, 4).double().requires_grad_(), torch.randn(3, 5, 4).double()
    log_p = plain(z, decoder, x)
    (gradient,) = torch.autograd.grad(log_p.sum(), z, create_graph=True)
    product = torch.zeros_like(z)
    if gradient.requires_grad:
        (product,) = torch.autograd.grad((gradient * v).sum(), z)
    layers = decoder.split([t.to(device) for t in decoder.tensors])
    given = [t.detach().to(device) for t in (z, v)]
    found = F.latent_hessian_product(*given, *layers, x.to(device), **decoder.named, impl=impl)
    for got, expected in zip(found, (log_p, gradient, product), strict=True):
        torch.testing.assert_close(got.cpu(), expected.detach(), rtol=1e-9, atol=1e-9)
    alone = F.latent_gradient(given[0], *layers, x.to(device), **decoder.named, impl=impl)
    for got, expected in zip(alone, found, strict=False):
        torch.testing.assert_close(got, expected)


@every_activation
def test_gradcheck(activation):
    for impl, rows in (("reference", 2), ("cpp", 2), ("cpp", 26)):
        made = gradient_problem(((rows,), (), (2, 3, 4)), activation=activation).to(torch.float64, "cpu")
        assert torch.autograd.gradcheck(lambda z, made=made, impl=impl: made.call(impl, [z]), made.inputs)


@kernels
@every_likelihood
def test_hessian_is_symmetric(likelihood, impl):
    decoder, device = Decoder((5, 40, 60), "gelu", likelihood).to(torch.float64, device_of(impl)), device_of(impl)
    z, x = torch.randn(5, device=device).double().expand(5, 5), torch.rand(60, device=device)
    identity = torch.eye(5, device=device).double()
    hessian = F.latent_hessian_product(z, identity, *decoder.layers, x, **decoder.named, impl=impl)[2]
    torch.testing.assert_close(hessian, hessian.mT)


@kernels
def test_decoder_and_data_have_gradients(impl):
    """By the reference: of weights, biases and data, beside that of the point."""
    made = gradient_problem(((4,), (4,), (3, 7, 9)), only_z=False).to(torch.float32, device_of(impl))
    upstream = [torch.randn_like(o) for o in made.outputs("reference")]
    found, expected = (torch.autograd.grad(made.outputs(i), made.inputs, upstream) for i in (impl, "reference"))
    for got, e in zip(found, expected, strict=True):
        torch.testing.assert_close(got, e, rtol=1e-4, atol=1e-4)
    decoder = Decoder((3, 7, 9)).to(torch.float32, device_of(impl))
    x = torch.rand(4, 9, device=device_of(impl), requires_grad=True)
    of_data = []
    for i in (impl, "reference"):
        log_p, gradient = F.latent_gradient(made.inputs[0], *decoder.layers, x, impl=i)
        of_data.append(torch.autograd.grad(log_p.sum() + gradient.sum(), x)[0])
    torch.testing.assert_close(*of_data)


@kernels
@every_likelihood
@every_activation
def test_trained_decoder(activation, likelihood, impl):
    """In float64, of every output alone and of both: the gradients of point, weights and biases."""
    options = {"only_z": False, "activation": activation, "likelihood": likelihood}
    made = gradient_problem(((2, 3), (3,), (4, 11, 8, 9)), **options).to(torch.float64, device_of(impl))
    upstream = [torch.randn_like(o) for o in made.outputs("reference")]
    for used in (slice(0, 1), slice(1, 2), slice(0, 2)):
        found, expected = (
            torch.autograd.grad(made.outputs(i)[used], made.inputs, upstream[used], allow_unused=True)
            for i in (impl, "reference")
        )
        for got, e in zip(found, expected, strict=True):
            if got is not None or e is not None:
                torch.testing.assert_close(got, torch.zeros_like(got) if e is None else e, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("rows", [0, 1, 63])
def test_trained_decoder_of_rows(rows):
    """The gradients of some layers alone, and through a gradient."""
    made = gradient_problem(((rows,), (), (3, 7, 9)), only_z=False, activation="tanh").to(torch.float64, "cpu")
    for wanted in (made.inputs[1:2], made.inputs[3:]):
        kept = [t if any(t is w for w in wanted) else t.detach() for t in made.inputs]
        sums = [sum(o.square().sum() for o in made.call(impl, kept)) for impl in ("cpp", "reference")]
        found, expected = (torch.autograd.grad(total, wanted, create_graph=True) for total in sums)
        torch.testing.assert_close(found, expected)
        twice = [torch.autograd.grad(first[0].square().sum(), wanted) for first in (found, expected)]
        torch.testing.assert_close(*twice)


@kernels
def test_further_derivatives(impl):
    """The third derivative, and the gradient of a product."""
    made = gradient_problem(((4,), (4,), (3, 7, 9)), activation="tanh").to(torch.float64, device_of(impl))
    twice = []
    for i in (impl, "reference"):
        (first,) = torch.autograd.grad(made.outputs(i)[1].square().sum(), made.inputs, create_graph=True)
        twice.append(torch.autograd.grad(first.square().sum(), made.inputs)[0])
    torch.testing.assert_close(*twice)
    product = product_problem(((4,), (4,), (3, 7, 9)), activation="tanh").to(torch.float64, device_of(impl))
    once = [torch.autograd.grad(product.outputs(i)[2].square().sum(), product.inputs) for i in (impl, "reference")]
    for got, expected in zip(*once, strict=True):
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("used", [0, 1])
def test_one_output_alone(used):
    """An unused output takes no part: zero times infinity would be NaN."""
    for rows in (2, 26):
        made = gradient_problem(((rows,), (), (3, 5, 4)), activation="elu")
        found = [torch.autograd.grad(made.outputs(i)[used].sum(), made.inputs)[0] for i in ("cpp", "reference")]
        torch.testing.assert_close(*found)


@given(
    samples=st.integers(1, 4), points=st.integers(1, 30), classes=st.integers(1, 3), hidden=st.integers(1, 40),
    pixels=st.integers(1, 40), features=st.integers(1, 20), strided=st.booleans(),
)  # fmt: skip
def test_random_shapes_and_strides(samples, points, classes, hidden, pixels, features, strided):
    z, v = torch.randn(2, samples, points, classes, features, dtype=torch.float64)
    weights = [torch.randn(s, dtype=torch.float64) for s in ((hidden, features), (pixels, hidden))]
    biases, x = [torch.randn(2 * hidden).double()[::2], None], torch.rand(points, 1, pixels)
    if strided:
        z, v, x = z.transpose(0, 1).contiguous().transpose(0, 1), v.mT.contiguous().mT, x.mT.contiguous().mT
        weights = [w.t().contiguous().t() for w in weights]
    found, expected = (F.latent_hessian_product(z, v, weights, biases, x, impl=i) for i in ("cpp", "reference"))
    for got, e in zip(found, expected, strict=True):
        torch.testing.assert_close(got, e)


@kernels
@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan"), 1e30])
def test_not_finite(value, impl):
    cases = [(6, "relu"), (26, "softplus"), (6, "tanh"), (26, "relu")]
    for rows, activation in cases if impl == "cpp" else cases[::2]:
        made = product_problem(((rows,), (rows,), (3, 5, 9)), activation=activation)
        made = made.to(torch.float32, device_of(impl))
        with torch.no_grad():
            made.inputs[0][1, 0] = value
            made.inputs[1][2, 1] = value
            for got, expected in zip(made.outputs(impl), made.outputs("reference"), strict=True):
                torch.testing.assert_close(got, expected, equal_nan=True, rtol=1e-4, atol=1e-4)


def test_recognised_calls_are_those_of_the_checks():
    """What the extension recognises at once is what the checks find, and it recognises nothing else."""
    decoder, z, x = Decoder((4, 6, 5)), torch.randn(7, 4), torch.ones(7, 5)
    rest = "relu", "bernoulli"

    def recognise(z=z, weights=decoder.layers[0], biases=decoder.layers[1], x=x, impl="auto"):
        return _decoder.recognise(impl, (z,), weights, biases, x, *rest)

    for data in (x, x[:1]):
        found, expected = recognise(x=data), _decoder.prepare("auto", {"z": z}, *decoder.layers, data, *rest)
        assert found[0]._replace(route=None) == expected[0]._replace(route=None)
        assert all(map(torch.equal, (*found[1], found[2], *found[3]), (*expected[1], expected[2], *expected[3])))
    weights, biases = decoder.layers
    others = [
        {"z": z[0]}, {"z": z.double()}, {"z": z[:, :3]}, {"z": z.t().contiguous().t()}, {"x": x.bool()}, {"x": x[:2]},
        {"x": None}, {"weights": weights[:1]}, {"weights": [weights[0], weights[0]]}, {"biases": [biases[0][:5], None]},
        {"biases": biases[:1]}, {"impl": "reference"}, {"weights": tuple(w.half() for w in weights)},
    ]  # fmt: skip
    for other in others:
        assert recognise(**other) is None, other
    with torch.autocast("cpu", torch.bfloat16):
        assert recognise() is None


def test_autocast_computes_all_layers_in_its_dtype():
    decoder, z, x = Decoder((4, 6, 5)), torch.randn(7, 4), torch.ones(7, 5)
    with torch.autocast("cpu", torch.bfloat16):
        got = F.latent_gradient(z, *decoder.layers, x)
    expected = F.latent_gradient(z.bfloat16(), *decoder.to(torch.bfloat16).layers, x)
    assert [t.dtype for t in got] == [torch.float32, torch.bfloat16]
    assert all(map(torch.equal, got, expected))


def test_compiler_takes_the_reference_where_the_decoder_has_gradients():
    decoder, z, x = Decoder((4, 6, 5)), torch.randn(7, 4), torch.ones(7, 5)
    for t in decoder.tensors:
        t.requires_grad_()

    def run(z, impl="auto"):
        return F.latent_gradient(z, *decoder.layers, x, impl=impl)

    torch.testing.assert_close(torch.compile(run, fullgraph=True, backend="aot_eager")(z), run(z))
    message = "under a compiler only the reference gives gradients of the decoder"
    # The compiler of torch 2.6 keeps the sentences of errors to itself.
    message = "Observed exception" if torch.__version__ < "2.7" else message
    with pytest.raises(Exception, match=message):
        torch.compile(run, fullgraph=True, backend="aot_eager")(z, "cpp")


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"z": torch.randn(3, 5)}, ValueError, r"z must have shape \(\*, 4\), got \(3, 5\)"),
        ({"v": torch.randn(4)}, ValueError, r"v must have the shape of z, \(3, 4\), got \(4,\)"),
        ({"weights": []}, ValueError, "weights and biases must be as many, one or more, got 0 and 2"),
        ({"weights": [torch.randn(6), torch.randn(5, 6)]}, ValueError, r"weights\[0\] must have shape \(out, in\)"),
        ({"weights": [torch.randn(6, 4), torch.randn(5, 7)]}, ValueError,
         r"weights\[1\] must have shape \(5, 6\), as wide as weights\[0\] is long, got \(5, 7\)"),
        ({"weights": [torch.randn(6, 4), None]}, TypeError, r"weights\[1\] must be a tensor, got NoneType"),
        ({"biases": [torch.randn(5), None]}, ValueError, r"biases\[0\] must have shape \(6,\), got \(5,\)"),
        ({"biases": [None]}, ValueError, "weights and biases must be as many"),
        ({"x": torch.ones(2, 5)}, ValueError, r"x must have shape \(\*, P\) whose batch broadcasts to that of z"),
        ({"x": torch.ones(3, 4)}, ValueError, r"x must have shape \(\*, 5\), one value for each row of weight"),
        ({"x": [1.0]}, TypeError, "x must be a bool, integer or floating-point tensor, got list"),
        ({"v": torch.randn(3, 4).double()}, TypeError, "v must have the dtype of z"),
        ({"activation": "sine"}, ValueError, "activation must be None or one of identity, relu"),
        ({"likelihood": "poisson"}, ValueError, "likelihood must be one of bernoulli, gaussian, got 'poisson'"),
    ],
)  # fmt: skip
def test_refusals(change, error, message):
    weights, biases = Decoder((4, 6, 5)).layers
    given = {
        "z": torch.randn(3, 4),
        "v": torch.randn(3, 4),
        "weights": weights,
        "biases": biases,
        "x": torch.ones(3, 5),
    }
    with pytest.raises(error, match=message):
        F.latent_hessian_product(**given | change)
