import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import fastvae.functional as F
from fastvae import _C
from fastvae.reference.gated_activation import KINDS
from tests.support.implementations import DTYPES, IMPLEMENTATIONS, device_of
from tests.support.oracle import Problem, check_against_oracle

every_impl = pytest.mark.parametrize("impl", IMPLEMENTATIONS)
every_kind = pytest.mark.parametrize("kind", KINDS)
kernels = pytest.mark.parametrize("impl", ["cpp", "triton"])
conditions = pytest.mark.parametrize("condition", ["none", "features", "vector", "map"])

# Images, F, rows, columns, and why.
SHAPES = [
    (0, 3, 2, 2),  # no images
    (1, 1, 1, 1),  # one number
    (2, 5, 7, 9),  # planes of 63: one short of whole vectors
    (1, 16, 8, 8),  # whole vectors both ways
    (3, 17, 1, 5),  # one row
    (2, 3, 0, 4),  # no pixels
]
RELAYOUTS = {
    "channels_last": lambda t: t.contiguous(memory_format=torch.channels_last),
    "range of channels": lambda t: torch.cat([t, t], 1)[:, : t.shape[1]],
    "range of channels, channels_last": lambda t: torch.cat([t, t], 1)
    .contiguous(memory_format=torch.channels_last)[:, : t.shape[1]],
    "window": lambda t: nn.functional.pad(t, (1, 2, 1, 1))[:, :, 1:-1, 1:-2],
    "columns first": lambda t: t.transpose(2, 3).contiguous().transpose(2, 3),
    "every other number": lambda t: torch.stack([t, t], -1)[..., 1],
}  # fmt: skip


def draw_condition(condition, n, f, h, w):
    shape = {"features": (n, 2 * f), "vector": (n, 2 * f, 1, 1), "map": (n, 2 * f, h, w)}.get(condition)
    return [] if shape is None else [torch.randn(shape)]


def problem(shape, condition="none", kind="tanh"):
    n, f, h, w = shape
    inputs = [torch.randn(n, 2 * f, h, w), *draw_condition(condition, n, f, h, w)]
    return Problem(
        lambda impl, p: (F.gated_activation(*p, kind=kind, impl=impl),), [t.requires_grad_() for t in inputs]
    )


@every_impl
@conditions
@pytest.mark.parametrize("shape", SHAPES)
def test_forward_and_backward(shape, condition, impl):
    check_against_oracle(problem(shape, condition), impl, torch.float32)


@every_impl
@every_kind
@pytest.mark.parametrize("dtype", DTYPES)
def test_dtypes(dtype, kind, impl):
    check_against_oracle(problem((2, 3, 5, 4), "vector", kind), impl, dtype)


@given(
    shape=st.tuples(st.integers(0, 3), st.integers(1, 20), st.integers(1, 6), st.integers(1, 20)),
    condition=st.sampled_from(["none", "features", "vector", "map"]),
    kind=st.sampled_from(KINDS),
    channels_last=st.booleans(),
)
def test_any_shape(shape, condition, kind, channels_last):
    made = problem(shape, condition, kind)
    if channels_last:
        made.inputs[0] = RELAYOUTS["channels_last"](made.inputs[0].detach()).requires_grad_()
    check_against_oracle(made, "cpp", torch.float32)


@pytest.mark.parametrize("impl", ["reference", "cpp"])
@every_kind
@conditions
def test_gradcheck(condition, kind, impl):
    made = problem((2, 2, 2, 3), condition, kind).to(torch.float64, "cpu")
    assert torch.autograd.gradcheck(lambda *p: made.call(impl, list(p))[0], made.inputs)


@kernels
@every_kind
@conditions
@pytest.mark.parametrize("layout", RELAYOUTS)
def test_layouts(layout, condition, kind, impl):
    """Whatever the layout of inputs and of the upstream gradient, results are the same bits on a CPU."""
    device, relayout = device_of(impl), RELAYOUTS[layout]
    made = problem((3, 5, 4, 7), condition, kind).to(torch.float32, device)
    upstream = torch.randn(3, 5, 4, 7, device=device)
    (expected,) = made.outputs(impl)
    gradients = torch.autograd.grad(expected, made.inputs, upstream)
    moved = [relayout(t.detach()) if t.shape[2:] == (4, 7) else t.detach() for t in made.inputs]
    for inputs in (moved, [moved[0], *(t.detach() for t in made.inputs[1:])]):
        leaves = [t.requires_grad_() for t in inputs]
        (got,) = made.call(impl, leaves)
        exact = {"rtol": 0, "atol": 0} if impl == "cpp" else {}
        torch.testing.assert_close(got, expected, **exact)
        again = torch.autograd.grad(got, leaves, relayout(upstream))
        torch.testing.assert_close(again[0], gradients[0], **exact)
        torch.testing.assert_close(again[1:], gradients[1:])


@kernels
def test_output_is_laid_out_as_the_input(impl):
    x = torch.randn(2, 6, 4, 5, device=device_of(impl))
    last = x.contiguous(memory_format=torch.channels_last)
    for t, layout in ((x, torch.contiguous_format), (last, torch.channels_last)):
        leaf = t.clone().requires_grad_()
        y = F.gated_activation(leaf, impl=impl)
        assert y.is_contiguous(memory_format=layout)
        (d_x,) = torch.autograd.grad(y.sum(), leaf)
        assert d_x.is_contiguous(memory_format=layout)


@pytest.mark.parametrize("isa", _C.available_isas())
@every_kind
@conditions
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_single_pixels_give_the_same_bits(dtype, condition, kind, isa):
    """What a sampler relies on: a number does not depend on its place in a vector, nor on the layout."""
    before = _C.isa()
    _C.set_isa(isa)
    try:
        x, *rest = (t.detach() for t in problem((2, 19, 5, 7), condition, kind).to(dtype, "cpu").inputs)
        whole = F.gated_activation(x, *rest, kind=kind, impl="cpp")
        for row in range(5):
            for column in range(7):
                one = [t[:, :, row : row + 1, column : column + 1] if t.shape == x.shape else t for t in (x, *rest)]
                for inputs in (one, [t.contiguous() for t in one]):
                    got = F.gated_activation(*inputs, kind=kind, impl="cpp")
                    assert torch.equal(got[..., 0, 0], whole[..., row, column])
    finally:
        _C.set_isa(before)


@pytest.mark.parametrize("isa", _C.available_isas())
@every_kind
def test_every_instruction_set(kind, isa):
    before = _C.isa()
    _C.set_isa(isa)
    try:
        for dtype in (torch.float32, torch.float64):
            for condition in ("none", "vector", "map"):
                check_against_oracle(problem((2, 3, 3, 11), condition, kind), "cpp", dtype)
    finally:
        _C.set_isa(before)


@every_impl
@every_kind
def test_only_one_gradient_wanted(kind, impl):
    made = problem((2, 3, 2, 4), "vector", kind).to(torch.float32, device_of(impl))
    expected = torch.autograd.grad(made.outputs(impl)[0].square().sum(), made.inputs)
    for wanted in range(2):
        alone = [t.detach().requires_grad_(i == wanted) for i, t in enumerate(made.inputs)]
        (got,) = torch.autograd.grad(made.call(impl, alone)[0].square().sum(), alone[wanted])
        torch.testing.assert_close(got, expected[wanted])


@every_impl
@every_kind
@pytest.mark.parametrize("dtype", DTYPES)
def test_extreme_inputs(dtype, kind, impl):
    """Saturated gates are exact and pass no gradient; nothing is NaN."""
    x = torch.tensor([[-1e4, 1e4, 1e4, -1e4]], device=device_of(impl)).to(dtype).view(1, 4, 1, 1).requires_grad_()
    y = F.gated_activation(x, kind=kind, impl=impl)
    size = 1.0 if kind == "tanh" else float(x.detach()[0, 1, 0, 0])
    torch.testing.assert_close(y.flatten(), torch.tensor([-1.0 * size, 0.0], device=y.device, dtype=dtype))
    (d_x,) = torch.autograd.grad(y.sum(), x)
    assert d_x.flatten()[1:].abs().max() == 0
    assert d_x.isfinite().all()


@every_impl
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_propagates_as_in_the_reference(value, impl):
    x = torch.randn(1, 6, 2, 3, device=device_of(impl))
    for channel in (1, 4):
        wrong = x.clone()
        wrong[0, channel, 1, 1] = value
        expected = F.gated_activation(wrong, impl="reference")
        torch.testing.assert_close(F.gated_activation(wrong, impl=impl), expected, equal_nan=True)


@pytest.mark.parametrize("shape", [(2, 6), (2, 6, 4, 4)], ids=["vector", "map"])
def test_backward_keeps_its_inputs_only(shape):
    """Of a map of conditions, whose size is that of the input, their sum."""
    x, condition = torch.randn(2, 6, 4, 4, requires_grad=True), torch.randn(shape, requires_grad=True)
    kept = []

    def pack(t):
        kept.append(t)
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        F.gated_activation(x, condition, impl="cpp")
    assert sum(t.numel() for t in kept) == x.numel() + (condition.numel() if condition.dim() == 2 else 0)


@pytest.mark.parametrize("impl", ["reference", "cpp"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype, impl):
    """A half-precision map and a float32 condition are promoted under autocast, and refused outside."""
    x = torch.randn(2, 6, 3, 3).to(dtype).requires_grad_()
    condition = torch.randn(2, 6, requires_grad=True)
    with torch.autocast("cpu", dtype=dtype):
        y = F.gated_activation(x, condition, impl=impl)
    assert y.dtype == torch.float32
    torch.testing.assert_close(y, F.gated_activation(x.float(), condition, impl="reference"))
    assert [g.dtype for g in torch.autograd.grad(y.sum(), (x, condition))] == [dtype, torch.float32]
    with pytest.raises(TypeError, match="condition must have the dtype of x"):
        F.gated_activation(x, condition, impl=impl)


@pytest.mark.parametrize("impl", ["reference", "cpp", "triton"])
@pytest.mark.parametrize("shape", [(1, 4), (1, 4, 1, 1), (1, 4, 3, 3)], ids=str)
@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
def test_condition_of_all_images(impl, shape, last):
    device = device_of(impl)
    x, one = torch.randn(2, 4, 3, 3, device=device), torch.randn(shape, device=device)
    if last:
        x = x.contiguous(memory_format=torch.channels_last)
    results = []
    for condition in (one, one.repeat(2, *[1] * (one.dim() - 1))):
        leaves = [t.clone(memory_format=torch.preserve_format).requires_grad_() for t in (x, condition)]
        y = F.gated_activation(*leaves, impl=impl)
        d_x, d_condition = torch.autograd.grad(y.square().sum(), leaves)
        results.append((y, d_x, d_condition.sum_to_size(shape)))
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("name", ["fwd", "bwd"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("condition", ["none", "vector", "map"])
def test_opcheck(condition, layout, name):
    x = torch.randn(2, 6, 3, 4).contiguous(memory_format=layout)
    upstream = torch.randn(2, 3, 3, 4).contiguous(memory_format=layout)
    inputs = (x, *draw_condition(condition, 2, 3, 3, 4), None)[:2]
    op = getattr(torch.ops.fastvae, f"gated_activation_{name}").default
    torch.library.opcheck(op, ((upstream, *inputs) if name == "bwd" else inputs) + ("tanh",))


@pytest.mark.parametrize("impl", ["reference", "cpp"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@conditions
def test_compile_fullgraph(condition, layout, impl):
    def loss(*p):
        return made.call(impl, list(p))[0].square().sum()

    torch._dynamo.reset()
    compiled = torch.compile(loss, fullgraph=True, dynamic=True, backend="aot_eager")
    for n in (2, 4):
        made = problem((n, 3, 4, 5), condition)
        made.inputs[0] = made.inputs[0].detach().contiguous(memory_format=layout).requires_grad_()
        expected = torch.autograd.grad(loss(*made.inputs), made.inputs)
        torch.testing.assert_close(torch.autograd.grad(compiled(*made.inputs), made.inputs), expected)


@every_kind
def test_second_derivative_of_the_reference(kind):
    made = problem((1, 1, 2, 2), "vector", kind).to(torch.float64, "cpu")
    assert torch.autograd.gradgradcheck(lambda *p: made.call("reference", list(p))[0], made.inputs)


def test_functional_transforms():
    """auto falls to the reference, which has every rule; an explicit kernel says that it has none."""
    x = torch.randn(3, 2, 4, 2, 2)
    expected = torch.stack([F.gated_activation(one, impl="reference") for one in x])
    torch.testing.assert_close(torch.func.vmap(F.gated_activation)(x), expected)
    with pytest.raises(RuntimeError, match="impl='reference'"):
        torch.func.vmap(lambda one: F.gated_activation(one, impl="cpp"))(x)


X = torch.zeros(2, 4, 3, 3)
ERRORS = [
    (lambda: F.gated_activation([0.0]), TypeError, "x must be a tensor, got list"),
    (lambda: F.gated_activation(X.long()), TypeError, "x must be float16"),
    (lambda: F.gated_activation(X[0]), ValueError, r"x must have shape \(N, 2F, H, W\).*got \(4, 3, 3\)"),
    (lambda: F.gated_activation(X[:, :3]), ValueError, r"x must have shape \(N, 2F, H, W\).*got \(2, 3, 3, 3\)"),
    (lambda: F.gated_activation(X[:, :0]), ValueError, "F >= 1"),
    (lambda: F.gated_activation(X, X[:, :2]), ValueError, r"condition must have shape \(2, 4\).*got \(2, 2, 3, 3\)"),
    (lambda: F.gated_activation(X, X.repeat(2, 1, 1, 1)), ValueError, "condition must have shape"),
    (lambda: F.gated_activation(X, torch.zeros(4)), ValueError, "condition must have shape"),
    (lambda: F.gated_activation(X, 1.0), TypeError, "condition must be a tensor, got float"),
    (lambda: F.gated_activation(X, X.double()), TypeError, "condition must have the dtype of x"),
    (lambda: F.gated_activation(X, X.to("meta")), ValueError, "condition must be on the device of x"),
    (lambda: F.gated_activation(X, kind="relu"), ValueError, "kind must be one of tanh, linear, got 'relu'"),
    (lambda: F.gated_activation(X, impl="cuda"), ValueError, "impl must be one of"),
]


@pytest.mark.parametrize(("wrong", "error", "message"), ERRORS)
def test_errors_name_the_argument(wrong, error, message):
    with pytest.raises(error, match=message):
        wrong()


def test_meta_tensors():
    y = F.gated_activation(torch.empty(2**12, 512, 64, 64, device="meta"))
    assert (y.shape, y.device.type) == ((2**12, 256, 64, 64), "meta")
    with pytest.raises(RuntimeError, match="impl='cpp' cannot run on meta tensors"):
        F.gated_activation(X.to("meta"), impl="cpp")
