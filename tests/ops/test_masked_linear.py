import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import fastvae.functional as F
from fastvae import _C
from fastvae.ops.masked_linear import masked_norm
from fastvae.reference.masked_linear import ACTIVATIONS, mask_of
from fastvae.structure import ACTIVATION_NAMES
from tests.support.implementations import DTYPES, GPU, IMPLEMENTATIONS, device_of
from tests.support.masked_layers import DEGREES, layer_inputs, layer_problem, norm_problem
from tests.support.oracle import check, jacobian

ALL_ACTIVATIONS = (None, *ACTIVATIONS)
# Rows, inputs, outputs, and why.
SHAPES = [
    ((0,), 5, 7),  # no rows
    ((1,), 1, 1),  # one of everything
    ((1,), 130, 33),  # one row: a matrix-vector product
    ((63,), 17, 64),  # one row short of a block
    ((64,), 64, 64),  # whole blocks only
    ((65,), 33, 63),  # one row, input or output beyond or short of a block
    ((5,), 63, 65),
    ((4,), 65, 1),  # one output
    ((4,), 1, 65),  # one input
    ((4,), 0, 7),  # none: biases alone
    ((2, 3), 20, 18),  # two batch dimensions
    ((), 12, 10),  # no batch dimension
    ((2, 0, 3), 4, 4),  # no rows among several dimensions
]
# The interpreter's matrix product of bfloat16 is wrong.
IMPLEMENTATION_DTYPES = [
    (impl, dtype) for impl in IMPLEMENTATIONS for dtype in DTYPES if GPU or (impl, dtype) != ("triton", torch.bfloat16)
]
every_impl = pytest.mark.parametrize("impl", IMPLEMENTATIONS)
kernels = pytest.mark.parametrize("impl", ["cpp", "triton"])


def problem(batch, in_features, out_features, degrees="unsorted", *, bias=True, weight_scale=False, activation=None):
    inputs = layer_inputs(batch, in_features, out_features, bias=bias, weight_scale=weight_scale)
    chosen = DEGREES[degrees](in_features, out_features)
    return layer_problem(inputs, chosen, bias=bias, weight_scale=weight_scale, activation=activation)


@every_impl
@pytest.mark.parametrize(("batch", "in_features", "out_features"), SHAPES)
def test_forward_and_backward(batch, in_features, out_features, impl):
    check(lambda: problem(batch, in_features, out_features, activation="elu"), impl, torch.float32)


@every_impl
@pytest.mark.parametrize("degrees", DEGREES)
def test_degrees(degrees, impl):
    check(lambda: problem((7,), 35, 40, degrees), impl, torch.float32)


@every_impl
@pytest.mark.parametrize("activation", ALL_ACTIVATIONS)
def test_activations(activation, impl):
    def draw():
        made = problem((9,), 20, 30, activation=activation)
        with torch.no_grad():
            made.inputs[0].mul_(4.0)  # into the tails
        return made

    check(draw, impl, torch.float32)


@every_impl
@pytest.mark.parametrize("bias", [False, True], ids=["no bias", "bias"])
@pytest.mark.parametrize("weight_scale", [False, True], ids=["no scale", "scale"])
def test_optional_tensors(weight_scale, bias, impl):
    check(lambda: problem((6,), 19, 23, bias=bias, weight_scale=weight_scale, activation="tanh"), impl, torch.float32)


@pytest.mark.parametrize(("impl", "dtype"), IMPLEMENTATION_DTYPES)
@pytest.mark.parametrize("weight_scale", [False, True], ids=["no scale", "scale"])
def test_dtypes(weight_scale, impl, dtype):
    check(lambda: problem((10,), 34, 45, weight_scale=weight_scale, activation="silu"), impl, dtype)


@settings(max_examples=60)
@given(
    batch=st.lists(st.integers(0, 5), max_size=3).map(tuple),
    in_features=st.integers(1, 70),
    out_features=st.integers(1, 70),
    degrees=st.sampled_from(list(DEGREES)),
    bias=st.booleans(),
    weight_scale=st.booleans(),
    activation=st.sampled_from(ALL_ACTIVATIONS),
)
def test_any_shape(batch, in_features, out_features, degrees, bias, weight_scale, activation):
    options = {"bias": bias, "weight_scale": weight_scale, "activation": activation}
    check(lambda: problem(batch, in_features, out_features, degrees, **options), "cpp", torch.float32)


@pytest.mark.parametrize("impl", ["reference", "cpp"])
@pytest.mark.parametrize("activation", ALL_ACTIVATIONS)
def test_gradcheck(activation, impl):
    made = problem((3,), 5, 6, weight_scale=True, activation=activation).to(torch.float64, "cpu")
    assert torch.autograd.gradcheck(lambda *p: made.call(impl, list(p)), made.inputs)


@kernels
def test_strides(impl):
    """Halves of a wider tensor, transposed, sliced, expanded: the values of contiguous inputs."""
    made = problem((6,), 20, 20, weight_scale=True, activation="elu").to(torch.float32, device_of(impl))
    upstream = torch.randn(6, 20, device=device_of(impl))
    (expected,) = made.outputs(impl)
    gradients = torch.autograd.grad(expected, made.inputs, upstream)
    for relayout in (
        lambda t: torch.cat([t, t], -1).chunk(2, -1)[0],
        lambda t: t.transpose(0, -1).contiguous().transpose(0, -1),
        lambda t: torch.stack([t, t], -1)[..., 1],
    ):
        strided = [relayout(t.detach()).requires_grad_() for t in made.inputs]
        (got,) = made.call(impl, strided)
        torch.testing.assert_close(got, expected)
        again = torch.autograd.grad(got, strided, relayout(upstream))
        torch.testing.assert_close(again, gradients)


@every_impl
def test_expanded_rows_and_expanded_upstream(impl):
    """Strides of zero, as ``expand`` and ``sum().backward()`` make them."""
    made = problem((1,), 12, 9).to(torch.float32, device_of(impl))
    x, weight, bias = made.inputs
    (rows,) = made.call(impl, [x.expand(5, 12), weight, bias])
    (once,) = made.outputs(impl)
    torch.testing.assert_close(rows, once.expand(5, 9))
    got = torch.autograd.grad(rows.sum(), made.inputs)
    expected = torch.autograd.grad(5 * once.sum(), made.inputs)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


@every_impl
@pytest.mark.parametrize("wanted", range(4), ids=["x", "weight", "bias", "weight_scale"])
def test_only_one_gradient_wanted(wanted, impl):
    made = problem((5,), 11, 13, weight_scale=True, activation="relu").to(torch.float32, device_of(impl))
    (y,) = made.outputs(impl)
    expected = torch.autograd.grad(y.square().sum(), made.inputs)[wanted]
    alone = [t.detach().requires_grad_(i == wanted) for i, t in enumerate(made.inputs)]
    (y,) = made.call(impl, alone)
    (got,) = torch.autograd.grad(y.square().sum(), alone[wanted])
    torch.testing.assert_close(got, expected)


@every_impl
@pytest.mark.parametrize("degrees", DEGREES)
def test_masked_gradients_are_exactly_zero(degrees, impl):
    ins, outs = DEGREES[degrees](31, 26)
    made = layer_problem(
        layer_inputs((9,), 31, 26, weight_scale=True), (ins, outs), weight_scale=True, activation="tanh"
    ).to(torch.float32, device_of(impl))
    (y,) = made.outputs(impl)
    (d_weight,) = torch.autograd.grad(y.square().sum(), made.inputs[1])
    mask = mask_of(ins, outs)
    assert (d_weight.cpu()[~mask] == 0).all()
    assert (d_weight.cpu()[mask] != 0).all()


@every_impl
@pytest.mark.parametrize("degrees", ["unsorted", "staircase", "lonely rows"])
def test_forbidden_jacobian_entries_are_exactly_zero(degrees, impl):
    ins, outs = DEGREES[degrees](11, 9)
    inputs = [t.detach().to(device_of(impl)) for t in layer_inputs((), 11, 9)]
    made = layer_problem(inputs, (ins, outs), activation="elu")
    found = jacobian(lambda x: made.call(impl, [x, *inputs[1:]])[0], inputs[0]).cpu()
    assert (found[~mask_of(ins, outs)] == 0).all()
    assert (found[mask_of(ins, outs)] != 0).all()


@kernels
@pytest.mark.parametrize("degrees", DEGREES)
def test_masked_weights_reach_nothing(degrees, impl):
    """Neither outputs nor gradients read the value of a masked weight."""
    device = device_of(impl)
    ins, outs = DEGREES[degrees](37, 34)
    inputs = [t.detach().to(device) for t in layer_inputs((10,), 37, 34, weight_scale=True)]
    spoilt = list(inputs)
    spoilt[1] = inputs[1].masked_fill(~mask_of(ins, outs).to(device), float("nan"))
    results = []
    for leaves in (inputs, spoilt):
        leaves = [t.clone().requires_grad_() for t in leaves]
        made = layer_problem(leaves, (ins, outs), weight_scale=True, activation="silu")
        (y,) = made.outputs(impl)
        results.append((y, *torch.autograd.grad(y.square().sum(), leaves)))
    torch.testing.assert_close(*results, rtol=0, atol=0)


@every_impl
def test_a_row_without_connections_is_its_bias(impl):
    device = device_of(impl)
    x, weight, bias = (t.to(device) for t in layer_inputs((4,), 6, 3))
    ins, outs = torch.arange(1, 7, device=device), torch.tensor([0, 6, -2], device=device)
    y = F.masked_linear(x, weight, bias, in_degrees=ins, out_degrees=outs, impl=impl)
    assert torch.equal(y[:, [0, 2]], bias[[0, 2]].expand(4, 2))
    y = F.masked_linear(x, weight, in_degrees=ins, out_degrees=outs, impl=impl)
    assert (y[:, [0, 2]] == 0).all()


@every_impl
def test_nan_in_one_input_spoils_only_the_outputs_it_reaches(impl):
    device = device_of(impl)
    x, weight, bias = (t.detach().to(device) for t in layer_inputs((4,), 9, 8))
    ins, outs = DEGREES["unsorted"](9, 8)
    x[2, 3] = float("nan")
    y = F.masked_linear(x, weight, bias, in_degrees=ins.to(device), out_degrees=outs.to(device), impl=impl).cpu()
    reached = ins[3] <= outs
    assert torch.isfinite(y[[0, 1, 3]]).all()
    assert torch.isnan(y[2, reached]).all()
    if impl != "reference":  # which multiplies the NaN by the mask's zero
        assert torch.isfinite(y[2, ~reached]).all()


@every_impl
def test_activations_saturate_without_nan(impl):
    device = device_of(impl)
    ins, outs = torch.zeros(1, dtype=torch.int64, device=device), torch.zeros(1, dtype=torch.int64, device=device)
    weight = torch.ones(1, 1, device=device)
    x = torch.tensor([[-1e4], [-90.0], [0.0], [90.0], [1e4]], device=device, requires_grad=True)
    for activation in ACTIVATIONS:
        y = F.masked_linear(x, weight, in_degrees=ins, out_degrees=outs, activation=activation, impl=impl)
        (d_x,) = torch.autograd.grad(y.sum(), x)
        expected = ACTIVATIONS[activation](x)
        torch.testing.assert_close(y, expected)
        torch.testing.assert_close(d_x, torch.autograd.grad(expected.sum(), x)[0])


@every_impl
@pytest.mark.parametrize("degrees", DEGREES)
def test_norm(degrees, impl):
    chosen = DEGREES[degrees](38, 25)
    check(lambda: norm_problem(torch.randn(25, 38, requires_grad=True), chosen), impl, torch.float32)
    leaf = torch.randn(25, 38, device=device_of(impl), requires_grad=True)
    (norm,) = norm_problem(leaf, chosen).outputs(impl)
    (d_weight,) = torch.autograd.grad(norm.sum(), leaf)
    mask = mask_of(*chosen)
    assert (norm.cpu()[~mask.any(-1)] == 0).all()
    assert (d_weight.cpu()[~mask] == 0).all()


@pytest.mark.parametrize(("impl", "dtype"), IMPLEMENTATION_DTYPES)
def test_norm_dtypes(impl, dtype):
    check(lambda: norm_problem(torch.randn(9, 30, requires_grad=True), DEGREES["unsorted"](30, 9)), impl, dtype)


@kernels
def test_norm_reads_no_masked_weight(impl):
    ins, outs = DEGREES["unsorted"](20, 15)
    weight = torch.randn(15, 20)
    expected = (weight * mask_of(ins, outs)).norm(dim=-1)
    spoilt = weight.masked_fill(~mask_of(ins, outs), float("nan")).to(device_of(impl)).requires_grad_()
    (norm,) = norm_problem(spoilt, (ins, outs)).outputs(impl)
    torch.testing.assert_close(norm.cpu(), expected)
    assert torch.isfinite(torch.autograd.grad(norm.sum(), spoilt)[0]).all()


@pytest.mark.parametrize("impl", ["reference", "cpp"])
def test_norm_gradcheck(impl):
    made = norm_problem(torch.randn(4, 6, dtype=torch.float64, requires_grad=True), DEGREES["staircase"](6, 4))
    assert torch.autograd.gradcheck(lambda w: made.call(impl, [w]), made.inputs)


@pytest.mark.parametrize("impl", ["reference", "cpp"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype, impl):
    """A preceding layer hands out half precision, parameters stay float32, and so do their gradients."""
    made = problem((8,), 20, 16, activation="elu").to(torch.float32, "cpu")
    x, weight, bias = made.inputs
    (expected,) = made.outputs("reference")
    with torch.autocast("cpu", dtype=dtype):
        (y,) = made.call(impl, [x.to(dtype), weight, bias])
    torch.testing.assert_close(y.float(), expected, rtol=0.03, atol=0.03)
    for gradient, leaf in zip(torch.autograd.grad(y.float().sum(), made.inputs), made.inputs, strict=True):
        assert gradient.dtype == leaf.dtype
        assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("impl", ["cpp"])
@pytest.mark.parametrize("activation", [None, "gelu"])
def test_compile_fullgraph(activation, impl):
    """Forward and backward in one graph each, for two batch sizes under one dynamic compilation."""

    def loss(*p):
        return made.call(impl, list(p))[0].square().sum()

    torch._dynamo.reset()
    compiled = torch.compile(loss, fullgraph=True, dynamic=True, backend="aot_eager")
    for rows in (4, 6):
        made = problem((rows,), 10, 12, "staircase", weight_scale=True, activation=activation)
        expected = torch.autograd.grad(loss(*made.inputs), made.inputs)
        torch.testing.assert_close(torch.autograd.grad(compiled(*made.inputs), made.inputs), expected)


def test_second_derivative_of_the_reference():
    made = problem((2,), 4, 3, activation="tanh").to(torch.float64, "cpu")
    assert torch.autograd.gradgradcheck(lambda *p: made.call("reference", list(p)), made.inputs)


@pytest.mark.parametrize("isa", _C.available_isas())
@pytest.mark.parametrize(("in_features", "out_features"), [(1, 1), (17, 79), (64, 64), (79, 17)])
def test_every_instruction_set(in_features, out_features, isa):
    before = _C.isa()
    _C.set_isa(isa)
    try:
        for dtype in (torch.float32, torch.float64):
            check(lambda: problem((9,), in_features, out_features, activation="softplus"), "cpp", dtype)
            check(lambda: problem((9,), in_features, out_features, weight_scale=True), "cpp", dtype)
    finally:
        _C.set_isa(before)


X, WEIGHT, BIAS = torch.zeros(2, 4), torch.zeros(3, 4), torch.zeros(3)
INS, OUTS = torch.arange(4), torch.arange(3)


def call(x=X, weight=WEIGHT, bias=BIAS, in_degrees=INS, out_degrees=OUTS, **options):
    return F.masked_linear(x, weight, bias, in_degrees=in_degrees, out_degrees=out_degrees, **options)


def norm(weight=WEIGHT, in_degrees=INS, out_degrees=OUTS, **options):
    return masked_norm(weight, in_degrees=in_degrees, out_degrees=out_degrees, **options)


ERRORS = [
    (lambda: call(x=[0.0]), TypeError, "x"),
    (lambda: call(x=X.long()), TypeError, "x"),
    (lambda: call(x=X[:, :3]), ValueError, "x"),
    (lambda: call(x=X[0, 0]), ValueError, "x"),
    (lambda: call(weight=WEIGHT.double()), TypeError, "weight"),
    (lambda: call(weight=WEIGHT[0]), ValueError, "weight"),
    (lambda: call(weight=torch.zeros(3, 4, 1)), ValueError, "weight"),
    (lambda: call(weight=WEIGHT.to("meta")), ValueError, "weight"),
    (lambda: call(bias=BIAS[:2]), ValueError, "bias"),
    (lambda: call(bias=BIAS.half()), TypeError, "bias"),
    (lambda: call(bias=BIAS.to("meta")), ValueError, "bias"),
    (lambda: call(in_degrees=INS[:3]), ValueError, "in_degrees"),
    (lambda: call(in_degrees=INS.float()), (TypeError, ValueError), "in_degrees"),
    (lambda: call(in_degrees=INS.to("meta")), ValueError, "in_degrees"),
    (lambda: call(in_degrees=None), (TypeError, ValueError), "in_degrees"),
    (lambda: call(out_degrees=OUTS[:1]), ValueError, "out_degrees"),
    (lambda: call(out_degrees=OUTS.view(3, 1)), ValueError, "out_degrees"),
    (lambda: call(out_degrees=OUTS.double()), (TypeError, ValueError), "out_degrees"),
    (lambda: call(activation="swish"), ValueError, "activation"),
    (lambda: call(weight_scale=torch.ones(4)), ValueError, "weight_scale"),
    (lambda: call(weight_scale=torch.ones(3).double()), TypeError, "weight_scale"),
    (lambda: call(impl="cuda"), ValueError, "impl"),
    (lambda: norm(weight=WEIGHT[0]), ValueError, "weight"),
    (lambda: norm(weight=WEIGHT.long()), TypeError, "weight"),
    (lambda: norm(in_degrees=INS[:3]), ValueError, "in_degrees"),
    (lambda: norm(out_degrees=OUTS.float()), (TypeError, ValueError), "out_degrees"),
    (lambda: norm(impl="cuda"), ValueError, "impl"),
]


@pytest.mark.parametrize(("wrong", "error", "name"), ERRORS)
def test_errors_name_the_argument(wrong, error, name):
    with pytest.raises(error, match=rf"\b{name}\b"):
        wrong()


def test_meta_tensors():
    y = call(*(t.to("meta") for t in (X, WEIGHT, BIAS, INS, OUTS)))
    assert (y.device.type, y.shape) == ("meta", (2, 3))
    with pytest.raises(RuntimeError, match="impl='cpp' cannot run on meta tensors"):
        call(*(t.to("meta") for t in (X, WEIGHT, BIAS, INS, OUTS)), impl="cpp")


def test_every_activation_has_its_name_in_the_structure():
    assert tuple(ACTIVATIONS) == ACTIVATION_NAMES
