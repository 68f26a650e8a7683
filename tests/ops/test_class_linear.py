"""The first layer of a network that is given a class: products once, sums over classes before products."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

import fastvae.functional as F
from fastvae import _C, nn
from fastvae.reference.masked_linear import ACTIVATIONS
from tests.support.implementations import DTYPES, IMPLEMENTATIONS, device_of
from tests.support.oracle import Problem, check

every_impl = pytest.mark.parametrize("impl", IMPLEMENTATIONS)
kernels = pytest.mark.parametrize("impl", ["cpp", "triton"])

# Batches of the inputs, the shape of the labels (None for all classes), classes, features, and why.
SHAPES = [
    ([(5,)], None, 3, 7),  # one input
    ([(4, 9), (9,)], None, 3, 33),  # samples of one input, the other broadcast over them
    ([()], None, 2, 5),  # no batch
    ([(0,)], None, 3, 4),  # no rows
    ([(2, 0)], None, 3, 4),
    ([(300,)], None, 2, 3),  # more rows than a block of sums
    ([(3,)], None, 1, 64),  # one class, whole vectors
    ([(3,)], None, 11, 65),  # one more than whole vectors
    ([(6,), (6,)], (6,), 4, 5),  # a label of each row
    ([(3, 6), (6,)], (6,), 4, 5),  # in several samples
    ([(6,)], (), 4, 5),  # one label for all
    ([()], (6,), 4, 5),  # one row under several labels
    ([(5, 3)], (3,), 3, 4),  # rows that differ from class to class
    ([(5, 3), (5, 1)], (3,), 3, 4),  # beside an input that does not
    ([(2, 5, 3), (5, 1), (2, 1, 1)], (3,), 3, 17),
    ([(5, 1)], (3,), 3, 4),  # all classes by their labels
    ([(5, 4)], (4,), 3, 6),  # more labels than classes
    ([(0, 3)], (3,), 3, 6),
]
every_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)


def problem(shape=([(4,), (4,)], None, 3, 6), activation="softplus", with_bias=True):
    batches, of_labels, classes, width = shape
    sizes = range(3, 3 + len(batches))
    inputs = [torch.randn(*batch, size) for batch, size in zip(batches, sizes, strict=True)]
    inputs += [torch.randn(width, size) for size in sizes]
    inputs += [torch.randn(width, classes)] + ([torch.randn(width)] if with_bias else [])
    labels = None if of_labels is None else torch.randint(classes, of_labels)
    count = len(batches)

    def call(impl, p):
        own = None if labels is None else labels.to(p[0].device)
        others = p[2 * count :]
        return (F.class_linear(p[:count], p[count : 2 * count], *others, labels=own, activation=activation, impl=impl),)

    return Problem(call, [t.requires_grad_() for t in inputs])


@every_impl
@every_shape
def test_forward_and_backward(shape, impl):
    check(lambda: problem(shape), impl, torch.float32)


@every_impl
@pytest.mark.parametrize("activation", [None, *ACTIVATIONS])
@pytest.mark.parametrize("shape", [SHAPES[1], SHAPES[14]], ids=["all", "each"])
def test_activations(shape, activation, impl):
    check(lambda: problem(shape, activation), impl, torch.float32)


@every_impl
@pytest.mark.parametrize("activation", ["softplus", "silu"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_dtypes(dtype, activation, impl):
    check(lambda: problem(SHAPES[1], activation), impl, dtype)


@every_impl
def test_without_bias(impl):
    check(lambda: problem(with_bias=False), impl, torch.float32)


@pytest.mark.parametrize("isa", _C.available_isas())
@pytest.mark.parametrize("activation", ["softplus", "gelu"])
def test_instruction_sets(isa, activation):
    before = _C.isa()
    _C.set_isa(isa)
    try:
        for shape in (SHAPES[7], SHAPES[14]):
            check(lambda shape=shape: problem(shape, activation), "cpp", torch.float32)
    finally:
        _C.set_isa(before)


@every_impl
@pytest.mark.parametrize("labelled", [False, True])
def test_is_a_layer_of_the_input_and_the_class_joined(labelled, impl):
    """The usual way: x repeated for each class, its one-hot code beside it."""
    device, classes = device_of(impl), 3
    x, a = torch.randn(6, 4, device=device), torch.randn(6, 2, device=device)
    joined = torch.nn.Linear(6 + classes, 5, device=device)
    parts = joined.weight.split([4, 2, classes], 1)
    labels = torch.randint(classes, (6,), device=device)
    if labelled:
        usual = joined(torch.cat([x, a, functional.one_hot(labels, classes)], 1))
    else:
        codes = torch.eye(classes, device=device).repeat(6, 1)
        usual = joined(torch.cat([x.repeat_interleave(classes, 0), a.repeat_interleave(classes, 0), codes], 1))
        usual = usual.view(6, classes, 5)
    options = {"labels": labels} if labelled else {}
    ours = F.class_linear((x, a), parts[:2], parts[2], joined.bias, **options, activation="elu", impl=impl)
    torch.testing.assert_close(ours, functional.elu(usual))
    upstream = torch.randn_like(ours)
    expected = torch.autograd.grad(functional.elu(usual), joined.parameters(), upstream)
    torch.testing.assert_close(torch.autograd.grad(ours, joined.parameters(), upstream), expected)


@every_impl
def test_all_classes_are_each_label(impl):
    made = problem().to(torch.float32, device_of(impl))
    x, weights, others = made.inputs[:2], made.inputs[2:4], made.inputs[4:]
    whole = F.class_linear(x, weights, *others, impl=impl)
    for y in range(3):
        labels = torch.full((4,), y, device=whole.device)
        torch.testing.assert_close(F.class_linear(x, weights, *others, labels=labels, impl=impl), whole[:, y])
    order = torch.tensor([2, 0, 1], device=whole.device)
    turned = F.class_linear(x, weights, others[0][:, order], others[1], impl=impl)
    torch.testing.assert_close(turned, whole[:, order])


@kernels
@pytest.mark.parametrize("shape", [SHAPES[0], SHAPES[8], SHAPES[13]], ids=["all", "row", "each"])
def test_each_gradient_alone(shape, impl):
    made = problem(shape, "silu").to(torch.float32, device_of(impl))
    expected = torch.autograd.grad(made.outputs("reference")[0].square().sum(), made.inputs)
    for wanted in range(len(made.inputs)):
        inputs = [t.detach().requires_grad_(i == wanted) for i, t in enumerate(made.inputs)]
        (got,) = torch.autograd.grad(made.call(impl, inputs)[0].square().sum(), inputs[wanted])
        torch.testing.assert_close(got, expected[wanted], rtol=1e-4, atol=1e-4)


@given(
    rows=st.integers(0, 5), classes=st.integers(1, 4), width=st.integers(1, 40), form=st.sampled_from(["all", "each"]),
    activation=st.sampled_from(list(ACTIVATIONS)), strided=st.booleans(),
)  # fmt: skip
def test_random_shapes_and_strides(rows, classes, width, form, activation, strided):
    z = torch.randn(rows, classes, 3, dtype=torch.float64)
    weight, table = torch.randn(width, 3, dtype=torch.float64), torch.randn(width, classes, dtype=torch.float64)
    bias = torch.randn(2 * width, dtype=torch.float64)[::2]
    if strided:
        z, weight, table = z.transpose(0, 2).contiguous().transpose(0, 2), weight.t().contiguous().t(), table[:, :]
        table = table.t().contiguous().t()
    x, labels = (z, torch.arange(classes)) if form == "each" else (z[:, 0], None)
    options = {"labels": labels, "activation": activation}
    expected = F.class_linear(x, weight, table, bias, **options, impl="reference")
    torch.testing.assert_close(F.class_linear(x, weight, table, bias, **options, impl="cpp"), expected)


@pytest.mark.parametrize("impl", ["reference", "cpp"])
@pytest.mark.parametrize("shape", [SHAPES[0], SHAPES[8], SHAPES[14]], ids=["all", "row", "each"])
def test_gradcheck(shape, impl):
    made = problem(shape).to(torch.float64, "cpu")
    assert torch.autograd.gradcheck(lambda *p: made.call(impl, list(p))[0], made.inputs)


def test_second_derivative_is_the_references():
    made = problem(([(2,)], None, 2, 3), "tanh").to(torch.float64, "cpu")
    assert torch.autograd.gradgradcheck(lambda *p: made.call("cpp", list(p))[0], made.inputs)


@every_impl
@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan"), 1e30])
def test_not_finite(value, impl):
    made = problem(SHAPES[0]).to(torch.float32, device_of(impl))
    with torch.no_grad():
        made.inputs[0][1, 0] = value
    outputs = [made.outputs(i)[0] for i in (impl, "reference")]
    torch.testing.assert_close(*outputs, equal_nan=True)
    got, expected = (torch.autograd.grad(o.sum(), made.inputs[0])[0] for o in outputs)
    torch.testing.assert_close(got, expected, equal_nan=True, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("impl", ["reference", "cpp"])
@pytest.mark.parametrize("shape", [SHAPES[1], SHAPES[8], SHAPES[13]], ids=["all", "row", "each"])
def test_compile_fullgraph(shape, impl):
    made = problem(shape)

    def loss(*p):
        return made.call(impl, list(p))[0].square().sum()

    expected = torch.autograd.grad(loss(*made.inputs), made.inputs)
    compiled = torch.compile(loss, fullgraph=True, dynamic=True, backend="aot_eager")
    torch.testing.assert_close(torch.autograd.grad(compiled(*made.inputs), made.inputs), expected)


@pytest.mark.parametrize("impl", ["reference", "cpp"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_computes_the_layer_in_its_dtype(dtype, impl):
    made = problem()
    with torch.autocast("cpu", dtype):
        y = made.outputs(impl)[0]
    expected = made.call(impl, [t.to(dtype) for t in made.inputs])[0]
    assert y.dtype == dtype
    assert torch.equal(y, expected)
    assert {g.dtype for g in torch.autograd.grad(y.sum(), made.inputs)} == {torch.float32}


def test_module():
    layer = nn.ClassLinear([4, 2], 3, 5, activation="tanh")
    x, a = torch.randn(6, 4), torch.randn(6, 2)
    expected = F.class_linear((x, a), list(layer.weights), layer.class_weight, layer.bias, activation="tanh")
    assert torch.equal(layer(x, a), expected)
    each = nn.ClassLinear(4, 3, 5, bias=False)
    z = torch.randn(6, 3, 4)
    assert torch.equal(each(z, labels=each.classes)[:, 2], each(z[:, 2], labels=torch.tensor(2)))
    bound = (6 + 3) ** -0.5
    assert all(0.5 * bound < p.abs().max() <= bound for p in layer.parameters())
    assert "in_features=(4, 2), num_classes=3, out_features=5, bias=True, activation=tanh" in repr(layer)


X, W, V = torch.zeros(3, 4), torch.zeros(5, 4), torch.zeros(5, 2)
LABELS = torch.tensor([0, 1, 1])
ERRORS = [
    (lambda: F.class_linear([], [], V), ValueError, "inputs and weights must be as many, one or more, got 0 and 0"),
    (lambda: F.class_linear((X, X), W, V), ValueError, "inputs and weights must be as many.*got 2 and 1"),
    (lambda: F.class_linear([0.0], [W], V), TypeError, r"inputs\[0\] must be a tensor, got float"),
    (lambda: F.class_linear(None, W, V), TypeError, "inputs must be a tensor, got NoneType"),
    (lambda: F.class_linear(X.long(), W, V), TypeError, "inputs must be float16"),
    (lambda: F.class_linear(X, W.double(), V), TypeError, "weights must have the dtype of inputs"),
    (lambda: F.class_linear((X, X), (W, W[:4]), V), ValueError, r"weights\[1\] must have shape \(5, D\).*got \(4, 4\)"),
    (lambda: F.class_linear(X, W[0], V), ValueError, r"weights must have shape \(5, D\), as many rows as class_weight"),
    (lambda: F.class_linear(X[:, :3], W, V), ValueError, r"inputs must have shape \(\*, 4\) for weights \(5, 4\), got"),
    (lambda: F.class_linear(X[0, 0], W, V), ValueError, r"inputs must have shape \(\*, 4\)"),
    (lambda: F.class_linear(X, W, V[0]), ValueError, r"class_weight must have shape \(H, C\), both >= 1, got \(2,\)"),
    (lambda: F.class_linear(X, W, V[:, :0]), ValueError, r"class_weight must have shape .* got \(5, 0\)"),
    (lambda: F.class_linear(X, W, V, W[:4, 0]), ValueError, r"bias must have shape \(5,\), got \(4,\)"),
    (lambda: F.class_linear((X, X[:2]), (W, W), V), ValueError, r"the batch shapes of inputs\[0\], inputs\[1\] must"),
    (lambda: F.class_linear(X, W, V, labels=LABELS[:2]), ValueError, r"the batch shapes of inputs, labels must"),
    (lambda: F.class_linear(X, W, V, labels=LABELS + 1), ValueError, r"labels must lie in \[0, 2\), got .* 1 to 2"),
    (lambda: F.class_linear(X, W, V, labels=LABELS - 1), ValueError, r"labels must lie in \[0, 2\), got .* -1 to 0"),
    (lambda: F.class_linear(X, W, V, labels=LABELS.float()), TypeError, "labels must be a tensor of integers, got"),
    (lambda: F.class_linear(X, W, V, labels=[0, 1, 1]), TypeError, "labels must be a tensor of integers, got list"),
    (lambda: F.class_linear(X, W, V, labels=LABELS.to("meta")), ValueError, "labels must be on the device of the"),
    (lambda: F.class_linear(X, W.to("meta"), V), ValueError, "weights must be on the device of inputs"),
    (lambda: F.class_linear(X, W, V, activation="sine"), ValueError, "activation must be None or one of identity"),
    (lambda: F.class_linear(X, W, V, impl="cuda"), ValueError, "impl must be one of"),
    (lambda: nn.ClassLinear([], 2, 3), ValueError, "in_features must hold one size or more"),
    (lambda: nn.ClassLinear([4, 0], 2, 3), ValueError, r"in_features\[1\] must be >= 1, got 0"),
    (lambda: nn.ClassLinear(4, 0, 3), ValueError, "num_classes must be >= 1, got 0"),
    (lambda: nn.ClassLinear(4, 2, 3.0), TypeError, "out_features must be an integer, got 3.0"),
    (lambda: nn.ClassLinear(4, 2, 3, activation="sine"), ValueError, "activation must be None or one of"),
    (lambda: nn.ClassLinear([4, 2], 2, 3)(X), ValueError, "inputs and weights must be as many.*got 1 and 2"),
]  # fmt: skip


@pytest.mark.parametrize(("wrong", "error", "message"), ERRORS)
def test_errors_name_the_argument(wrong, error, message):
    with pytest.raises(error, match=message):
        wrong()


def test_meta_tensors():
    x, weight, table = (torch.empty(s, device="meta") for s in ((2**20, 64), (512, 64), (512, 10)))
    y = F.class_linear(x, weight, table, activation="relu")
    assert (y.shape, y.device.type) == ((2**20, 10, 512), "meta")
