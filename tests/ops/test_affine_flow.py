import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import fastvae.functional as F
from fastvae import _C
from fastvae.reference.affine_flow import CLAMPED_EXP, EXP_BOUND, GATE_BOUND, KINDS, LEAST_SCALE, RELEASE_BOUND
from tests.support.implementations import DTYPES, IMPLEMENTATIONS, SHAPES, device_of
from tests.support.oracle import Problem, check_against_oracle, jacobian

DIRECTIONS = pytest.mark.parametrize("inverse", [False, True], ids=["forward", "inverse"])
every_impl = pytest.mark.parametrize("impl", IMPLEMENTATIONS)
every_kind = pytest.mark.parametrize("kind", KINDS)
kernels = pytest.mark.parametrize("impl", ["cpp", "triton"])
FAR = 1e4


def problem(batch, features, kind="gated", inverse=False, log_det_map=False):
    """z, shift and, unless the kind has none, scale logits, small enough that the inverse is well conditioned."""
    inputs = [torch.randn(*batch, features), torch.randn(*batch, features)]
    if kind != "location_only":
        inputs.append(torch.randn(*batch, features))

    def call(impl, p):
        outputs = F.affine_flow(*p, kind=kind, inverse=inverse, log_det_map=log_det_map, impl=impl)
        # The log-determinant of location_only is a constant.
        return outputs[:1] if kind == "location_only" else outputs

    return Problem(call, [t.requires_grad_() for t in inputs])


@DIRECTIONS
@every_impl
@pytest.mark.parametrize(("batch", "features"), SHAPES)
def test_forward_and_backward(batch, features, impl, inverse):
    check_against_oracle(problem(batch, features, "gated", inverse), impl, torch.float32)


@DIRECTIONS
@every_impl
@every_kind
def test_kinds(kind, impl, inverse):
    check_against_oracle(problem((6,), 21, kind, inverse), impl, torch.float32)


@DIRECTIONS
@every_impl
@every_kind
def test_shares(kind, impl, inverse):
    check_against_oracle(problem((6,), 21, kind, inverse, log_det_map=True), impl, torch.float32)


@kernels
@pytest.mark.parametrize("batch", [(0,), (1,), (65,), (2, 3), ()])
def test_shares_of_batches(batch, impl):
    check_against_oracle(problem(batch, 65, log_det_map=True), impl, torch.float32)


@DIRECTIONS
@every_impl
@every_kind
@pytest.mark.parametrize("dtype", DTYPES)
def test_dtypes(dtype, kind, impl, inverse):
    check_against_oracle(problem((5,), 34, kind, inverse), impl, dtype)


@every_impl
def test_long_rows(impl):
    check_against_oracle(problem((2,), 2100), impl, torch.float32)


@given(
    batch=st.lists(st.integers(0, 5), max_size=3).map(tuple),
    features=st.integers(1, 80),
    kind=st.sampled_from(KINDS),
    inverse=st.booleans(),
)
def test_any_shape(batch, features, kind, inverse):
    check_against_oracle(problem(batch, features, kind, inverse), "cpp", torch.float32)


@DIRECTIONS
@pytest.mark.parametrize("impl", ["reference", "cpp"])
@every_kind
def test_gradcheck(kind, impl, inverse):
    made = problem((3,), 5, kind, inverse).to(torch.float64, "cpu")
    assert torch.autograd.gradcheck(lambda *p: made.call(impl, list(p)), made.inputs)


@DIRECTIONS
@kernels
def test_strides(impl, inverse):
    """Shift and scale as the two halves of one network's output, or every other of its outputs."""
    device = device_of(impl)
    made = problem((6,), 20, "gated", inverse).to(torch.float32, device)
    upstream = [torch.randn(6, 20, device=device), torch.randn(6, device=device)]
    expected = made.outputs(impl)
    gradients = torch.autograd.grad(expected, made.inputs, upstream)
    for relayout in (
        lambda t: torch.cat([t, t], -1).chunk(2, -1)[0],
        lambda t: t.transpose(0, -1).contiguous().transpose(0, -1),
        lambda t: torch.stack([t, t], -1)[..., 1],
    ):
        strided = [relayout(t.detach()).requires_grad_() for t in made.inputs]
        got = made.call(impl, strided)
        torch.testing.assert_close(got, expected)
        again = torch.autograd.grad(got, strided, [relayout(upstream[0]), upstream[1]])
        torch.testing.assert_close(again, gradients)


@DIRECTIONS
@every_impl
def test_broadcast(impl, inverse):
    """Parameters shared by rows get summed gradients; log_det has the joint batch shape."""
    device = device_of(impl)
    leaves = [torch.randn(*shape, 7, device=device, requires_grad=True) for shape in ((5, 1), (3,), ())]
    whole = [t.detach().expand(5, 3, 7).clone().requires_grad_() for t in leaves]
    out, log_det = F.affine_flow(*leaves, inverse=inverse, impl=impl)
    expected, expected_log_det = F.affine_flow(*whole, inverse=inverse, impl="reference")
    assert log_det.shape == (5, 3)
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(log_det, expected_log_det)
    got = torch.autograd.grad(out.square().sum() + log_det.sum(), leaves)
    gradients = torch.autograd.grad(expected.square().sum() + expected_log_det.sum(), whole)
    sums = [g.sum_to_size(t.shape) for g, t in zip(gradients, leaves, strict=True)]
    torch.testing.assert_close(got, sums, rtol=1e-5, atol=1e-5)


@every_impl
@every_kind
def test_only_one_gradient_wanted(kind, impl):
    made = problem((4,), 9, kind).to(torch.float32, device_of(impl))

    def loss(outputs):
        return sum(o.square().sum() for o in outputs)

    expected = torch.autograd.grad(loss(made.outputs(impl)), made.inputs)
    for wanted in range(len(made.inputs)):
        alone = [t.detach().requires_grad_(i == wanted) for i, t in enumerate(made.inputs)]
        (got,) = torch.autograd.grad(loss(made.call(impl, alone)), alone[wanted])
        torch.testing.assert_close(got, expected[wanted])


@every_impl
@pytest.mark.parametrize("output", [0, 1], ids=["out", "log_det"])
def test_only_one_output_used(output, impl):
    made = problem((4,), 9).to(torch.float32, device_of(impl))
    expected = torch.autograd.grad(made.outputs("reference")[output].sum(), made.inputs, materialize_grads=True)
    got = torch.autograd.grad(made.outputs(impl)[output].sum(), made.inputs, materialize_grads=True)
    torch.testing.assert_close(got, expected)


@DIRECTIONS
@every_impl
@every_kind
def test_log_det_is_that_of_the_jacobian(kind, impl, inverse):
    """Elementwise: nothing off the diagonal, and the logarithms of the diagonal sum up to log_det."""
    made = problem((), 9, kind, inverse).to(torch.float64, device_of(impl))
    z, *parameters = (t.detach() for t in made.inputs)
    found = jacobian(lambda z: made.call(impl, [z, *parameters])[0], z)
    assert (found[~torch.eye(9, dtype=torch.bool, device=z.device)] == 0).all()
    _, log_det = F.affine_flow(z, *parameters, kind=kind, inverse=inverse, impl=impl)
    torch.testing.assert_close(torch.linalg.slogdet(found).logabsdet, log_det)


@every_impl
@every_kind
@pytest.mark.parametrize("dtype", DTYPES)
def test_inverse_undoes_forward(dtype, kind, impl):
    """To 4 roundings of the larger of input and output, over the scale: what one step loses and one takes back."""
    made = problem((50,), 13, kind).to(dtype, device_of(impl))
    z, *parameters = (t.detach() for t in made.inputs)
    out, log_det = F.affine_flow(z, *parameters, kind=kind, impl=impl)
    back, minus_log_det = F.affine_flow(out, *parameters, kind=kind, inverse=True, impl=impl)
    # Rounding of the output is divided by the least scale that a logit of the sample gives.
    least = math.exp(-_largest_log(kind, parameters))
    size = max(z.abs().max().item(), out.abs().max().item())
    bound = 4 * torch.finfo(dtype).eps * size / least
    assert (back.double() - z.double()).abs().max() <= bound
    torch.testing.assert_close(minus_log_det, -log_det)


def _largest_log(kind, parameters):
    """The largest |log a| among the elements, at least 0."""
    if kind == "location_only":
        return 0.0
    shift, scale_logit = (p.double()[..., None].cpu() for p in parameters)
    _, log_a = F.affine_flow(shift, shift, scale_logit, kind=kind, impl="reference")
    return log_a.abs().max().item()


LIMITS = {
    "gated": (-GATE_BOUND, -math.log1p(math.exp(-GATE_BOUND))),
    "exp": (-FAR / (1 + FAR / EXP_BOUND), FAR / (1 + FAR / EXP_BOUND)),
    "clamped_exp": CLAMPED_EXP,
    "softplus": (math.log(LEAST_SCALE), math.log(FAR + LEAST_SCALE)),
    "sigmoid": (math.log(LEAST_SCALE), math.log(1 + LEAST_SCALE)),
    "iaf_release": (0.1 * RELEASE_BOUND, -0.1 * RELEASE_BOUND),
}


@DIRECTIONS
@every_impl
@pytest.mark.parametrize("kind", LIMITS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_extreme_scale_logits(dtype, kind, impl, inverse):
    """At ±1e4 the scale is that of the table; nothing is NaN forward, inverse or backward."""
    device = device_of(impl)
    z, shift = (torch.randn(2, 1, device=device).to(dtype).requires_grad_() for _ in range(2))
    scale_logit = torch.tensor([[-FAR], [FAR]], device=device, dtype=dtype, requires_grad=True)
    out, log_det = F.affine_flow(z, shift, scale_logit, kind=kind, inverse=inverse, impl=impl)
    eps = torch.finfo(log_det.dtype).eps
    expected = torch.tensor(LIMITS[kind], dtype=log_det.dtype, device=device) * (-1 if inverse else 1)
    torch.testing.assert_close(log_det, expected, rtol=1e-2 if dtype.itemsize < 4 else 1e-6, atol=2 * eps)
    assert not out.isnan().any()
    for gradient in torch.autograd.grad((out, log_det), (z, shift, scale_logit), (out.sign(), log_det.sign())):
        assert not gradient.isnan().any()
    if dtype.itemsize >= 4:
        assert torch.isfinite(out).all()


@every_impl
@pytest.mark.parametrize("kind", ["gated", "clamped_exp", "iaf_release"])
def test_clamped_logits_get_no_gradient(kind, impl):
    device = device_of(impl)
    z, shift = torch.randn(2, 2, 3, device=device)
    scale_logit = torch.tensor([[-FAR, 0.5, FAR]] * 2, device=device, requires_grad=True)
    out, log_det = F.affine_flow(z, shift, scale_logit, kind=kind, impl=impl)
    (gradient,) = torch.autograd.grad(out.sum() + log_det.sum(), scale_logit)
    assert (gradient[:, [0, 2]] == 0).all()
    assert (gradient[:, 1] != 0).all()


@DIRECTIONS
@every_impl
@every_kind
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_propagates_as_in_the_reference(value, kind, impl, inverse):
    made = problem((3,), 6, kind, inverse).to(torch.float32, device_of(impl))
    # An infinite logit is outside every kind's contract; a NaN must show.
    for position in range(2 if math.isinf(value) else len(made.inputs)):
        inputs = [t.detach().clone() for t in made.inputs]
        inputs[position][1, 2] = value
        expected = made.call("reference", inputs)
        torch.testing.assert_close(made.call(impl, inputs), expected, equal_nan=True, rtol=1e-5, atol=1e-5)


def test_log_det_of_location_only_is_zero():
    _, log_det = F.affine_flow(torch.randn(3, 2, 5), torch.randn(3, 2, 5), kind="location_only")
    assert log_det.shape == (3, 2)
    assert (log_det == 0).all()


@every_impl
def test_log_det_adds_up_over_steps(impl):
    """Two steps are one map: its Jacobian's log-determinant is the sum of theirs."""
    device = device_of(impl)
    made = [problem((), 6, kind).to(torch.float64, device) for kind in ("gated", "exp")]
    parameters = [[t.detach() for t in p.inputs[1:]] for p in made]

    def both(z):
        z, first = made[0].call(impl, [z, *parameters[0]])
        z, second = made[1].call(impl, [z, *parameters[1]])
        return z, first + second

    z = torch.randn(6, dtype=torch.float64, device=device)
    found = jacobian(lambda z: both(z)[0], z)
    torch.testing.assert_close(torch.linalg.slogdet(found).logabsdet, both(z)[1])


@pytest.mark.parametrize("impl", ["reference", "cpp"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype, impl):
    """A network's half-precision shift and scale beside a float32 z are promoted, and get gradients of their own."""
    z, shift, scale_logit = problem((4,), 6).inputs
    half = [t.detach().to(dtype).requires_grad_() for t in (shift, scale_logit)]
    with torch.autocast("cpu", dtype=dtype):
        out, log_det = F.affine_flow(z, *half, impl=impl)
    expected = F.affine_flow(z, *(t.float() for t in half), impl="reference")
    torch.testing.assert_close((out.float(), log_det), expected, rtol=1e-2, atol=1e-2)
    assert log_det.dtype == torch.float32
    gradients = torch.autograd.grad(out.float().sum() + log_det.sum(), (z, *half))
    assert [g.dtype for g in gradients] == [torch.float32, dtype, dtype]


@DIRECTIONS
@pytest.mark.parametrize("kind", ["gated", "location_only"])
@pytest.mark.parametrize("impl", ["cpp"])
def test_compile_fullgraph(impl, kind, inverse):
    def loss(*p):
        return sum(o.square().sum() for o in made.call(impl, list(p)))

    torch._dynamo.reset()
    compiled = torch.compile(loss, fullgraph=True, dynamic=True, backend="aot_eager")
    for rows in (4, 6):
        made = problem((rows,), 8, kind, inverse).to(torch.float32, "cpu")
        expected = torch.autograd.grad(loss(*made.inputs), made.inputs)
        torch.testing.assert_close(torch.autograd.grad(compiled(*made.inputs), made.inputs), expected)


@DIRECTIONS
@every_kind
def test_second_derivative_of_the_reference(kind, inverse):
    made = problem((2,), 3, kind, inverse).to(torch.float64, "cpu")
    assert torch.autograd.gradgradcheck(lambda *p: made.call("reference", list(p)), made.inputs)


@pytest.mark.parametrize("isa", _C.available_isas())
@every_kind
def test_every_instruction_set(kind, isa):
    before = _C.isa()
    _C.set_isa(isa)
    try:
        for dtype in (torch.float32, torch.float64):
            for features in (1, 17, 64, 79):
                for inverse in (False, True):
                    check_against_oracle(problem((3,), features, kind, inverse), "cpp", dtype)
    finally:
        _C.set_isa(before)


ONE = torch.zeros(2, 4)
ERRORS = [
    (lambda: F.affine_flow([0.0], ONE, ONE), TypeError, "z"),
    (lambda: F.affine_flow(ONE.long(), ONE, ONE), TypeError, "z"),
    (lambda: F.affine_flow(ONE[0, 0], ONE, ONE), ValueError, "z"),
    (lambda: F.affine_flow(ONE[:, :0], ONE[:, :0], ONE[:, :0]), ValueError, "z"),
    (lambda: F.affine_flow(ONE, None, ONE), TypeError, "shift"),
    (lambda: F.affine_flow(ONE, ONE.double(), ONE), TypeError, "shift"),
    (lambda: F.affine_flow(ONE, ONE[:, :3], ONE), ValueError, "shift"),
    (lambda: F.affine_flow(ONE, ONE[:, :1], ONE), ValueError, "shift"),
    (lambda: F.affine_flow(ONE, torch.zeros(3, 4), ONE), ValueError, "shift"),
    (lambda: F.affine_flow(ONE, ONE.to("meta"), ONE), ValueError, "shift"),
    (lambda: F.affine_flow(ONE, ONE), (TypeError, ValueError), "scale_logit"),
    (lambda: F.affine_flow(ONE, ONE, kind="exp", inverse=True), (TypeError, ValueError), "scale_logit"),
    (lambda: F.affine_flow(ONE, ONE, ONE, kind="location_only"), ValueError, "scale_logit"),
    (lambda: F.affine_flow(ONE, ONE, ONE.half()), TypeError, "scale_logit"),
    (lambda: F.affine_flow(ONE, ONE, ONE[:, :3]), ValueError, "scale_logit"),
    (lambda: F.affine_flow(ONE, ONE, torch.zeros(3, 4)), ValueError, "scale_logit"),
    (lambda: F.affine_flow(ONE, ONE, ONE.to("meta")), ValueError, "scale_logit"),
    (lambda: F.affine_flow(ONE, ONE, ONE, kind="affine"), ValueError, "kind"),
    (lambda: F.affine_flow(ONE, ONE, ONE, impl="cuda"), ValueError, "impl"),
]


@pytest.mark.parametrize(("wrong", "error", "name"), ERRORS)
def test_errors_name_the_argument(wrong, error, name):
    with pytest.raises(error, match=rf"\b{name}\b"):
        wrong()


def test_meta_tensors():
    meta = torch.empty(2**21, 1024, device="meta")
    out, log_det = F.affine_flow(meta, meta, meta)
    assert (out.shape, log_det.shape, log_det.device.type) == ((2**21, 1024), (2**21,), "meta")
    with pytest.raises(RuntimeError, match="impl='cpp' cannot run on meta tensors"):
        F.affine_flow(meta, meta, meta, impl="cpp")
