import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastvae import _C
from fastvae.ops.autoregressive_flow import autoregressive_flow
from fastvae.ops.autoregressive_inverse import autoregressive_inverse
from fastvae.reference.affine_flow import KINDS
from fastvae.reference.masked_linear import ACTIVATIONS
from tests.support.implementations import DTYPES
from tests.support.networks import BATCHES, KERNELS, NETWORKS, network, params_of, repeated_passes
from tests.support.oracle import check, jacobian
from tests.support.wrong_networks import WRONG_STEP, right_arguments, small_form

every_impl = pytest.mark.parametrize("impl", ["reference", *KERNELS])
every_kind = pytest.mark.parametrize("kind", KINDS)
every_network = pytest.mark.parametrize("name", NETWORKS)
kernels = pytest.mark.parametrize("impl", KERNELS)


def total(outputs):
    return sum(o.square().sum() for o in outputs)


@every_impl
@every_network
def test_forward_and_backward(name, impl):
    form = NETWORKS[name]
    check(lambda: form.problem("inverse", form.tensors((6,))), impl, torch.float32)


@every_impl
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("name", ["around a vector", "everything"])
def test_batches(name, batch, impl):
    form = NETWORKS[name]
    check(lambda: form.problem("inverse", form.tensors(batch)), impl, torch.float32)


@every_impl
@every_kind
def test_kinds(kind, impl):
    form = network(6, (21, 18), params=params_of(kind), context=True)
    check(lambda: form.problem("inverse", form.tensors((5,)), kind), impl, torch.float32)


@every_impl
@pytest.mark.parametrize("name", ["many features", "one feature", "shuffled order", "everything"])
def test_shares(name, impl):
    form = NETWORKS[name]
    check(lambda: form.problem("inverse", form.tensors((6,)), log_det_map=True), impl, torch.float32)


@kernels
@pytest.mark.parametrize("batch", BATCHES)
def test_shares_of_batches(batch, impl):
    form = NETWORKS["everything"]
    check(lambda: form.problem("inverse", form.tensors(batch), log_det_map=True), impl, torch.float32)


@every_impl
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations(activation, residual, impl):
    form = network(5, (20,) * 3, activation=activation, residual=residual, weight_scale=True)
    check(lambda: form.problem("inverse", form.tensors((7,))), impl, torch.float32)


@every_impl
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["plain", "around a vector", "everything"])
def test_dtypes(name, dtype, impl):
    form = NETWORKS[name]
    check(lambda: form.problem("inverse", form.tensors((9,))), impl, dtype)


@pytest.mark.parametrize("differentiable", [False, True], ids=["no grad", "grad"])
@every_impl
@pytest.mark.parametrize(("batch", "context_batch"), [((4,), ()), ((4,), (1,)), ((), (3,)), ((2, 1), (3,))])
def test_context_broadcasts(batch, context_batch, impl, differentiable):
    form = NETWORKS["context"]
    if differentiable:
        check(lambda: form.problem("inverse", form.tensors(batch, context_batch)), impl, torch.float32)
        return
    z, *rest = (t.detach() for t in form.tensors(batch, context_batch))
    joint = torch.broadcast_shapes(batch, context_batch)
    with torch.no_grad():
        got = form.problem("inverse", []).call(impl, [z, *rest])
        expected = form.problem("inverse", []).call("reference", [z.expand(*joint, 5).clone(), *rest])
    torch.testing.assert_close(got, expected)


@settings(max_examples=30)
@given(
    features=st.integers(1, 12),
    hidden=st.lists(st.integers(1, 40), min_size=1, max_size=3),
    batch=st.lists(st.integers(0, 5), max_size=2).map(tuple),
    kind=st.sampled_from(KINDS),
    context=st.booleans(),
    bias=st.booleans(),
    weight_scale=st.booleans(),
    residual=st.booleans(),
    layout=st.sampled_from(["blocked", "interleaved"]),
    activation=st.sampled_from(list(ACTIVATIONS)),
    reverse=st.booleans(),
)
def test_any_network(features, hidden, batch, kind, reverse, residual, **options):
    """The inverse, in float64, of what the reference's forward makes of any z."""
    if residual:
        hidden = hidden[:1] * 3
    order = range(features)[::-1] if reverse else None
    form = network(features, hidden, params=params_of(kind), residual=residual, order=order, **options)
    z, *rest = (t.detach().double() for t in form.tensors(batch))
    z, term, parameters = form.unpack([z, *rest])
    out, log_det = autoregressive_flow(z, term, parameters, form.structure, kind=kind, impl="reference")
    back, minus_log_det = autoregressive_inverse(out, term, parameters, form.structure, kind=kind, impl="cpp")
    torch.testing.assert_close(back, z, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(minus_log_det, -log_det, rtol=1e-9, atol=1e-9)


@every_impl
@every_network
def test_agrees_with_repeated_passes(name, impl):
    """Values and gradients of one sweep are those of autograd through D passes of the whole network, in float64."""
    form = NETWORKS[name]
    tensors = [t.detach().double().requires_grad_() for t in form.tensors((4,))]
    outputs = form.problem("inverse", tensors).outputs(impl)
    expected = repeated_passes(form, "gated", tensors)
    torch.testing.assert_close(outputs, expected)
    upstream = [torch.randn_like(o) for o in outputs]
    gradients, oracle = (torch.autograd.grad(o, tensors, upstream) for o in (outputs, expected))
    torch.testing.assert_close(gradients, oracle, rtol=1e-8, atol=1e-10)


@every_impl
@every_kind
def test_every_kind_agrees_with_repeated_passes(kind, impl):
    form = network(6, (15, 14, 13), params=params_of(kind), context=True, layout="interleaved")
    tensors = [t.detach().double().requires_grad_() for t in form.tensors((3,))]
    outputs = form.problem("inverse", tensors, kind).outputs(impl)
    expected = repeated_passes(form, kind, tensors)[: len(outputs)]
    torch.testing.assert_close(outputs, expected)
    upstream = [torch.randn_like(o) for o in outputs]
    gradients, oracle = (torch.autograd.grad(o, tensors, upstream) for o in (outputs, expected))
    torch.testing.assert_close(gradients, oracle, rtol=1e-8, atol=1e-10)


@every_impl
@every_network
def test_undoes_the_flow(name, impl):
    """Both ways round, in float64, to the last few digits; the log-determinants cancel."""
    form = NETWORKS[name]
    z, term, parameters = form.unpack([t.detach().double() for t in form.tensors((5,))])
    for first, second in (
        (autoregressive_flow, autoregressive_inverse),
        (autoregressive_inverse, autoregressive_flow),
    ):
        out, log_det = first(z, term, parameters, form.structure, impl=impl)
        back, minus_log_det = second(out, term, parameters, form.structure, impl=impl)
        torch.testing.assert_close(back, z, rtol=1e-11, atol=1e-11)
        torch.testing.assert_close(minus_log_det, -log_det, rtol=1e-11, atol=1e-11)


# Of inverse(forward(z)) - z, in roundings of the largest number: each of 20 features inherits the errors of those
# before it. In half types the forward's result is itself rounded, and so is every layer of the reference.
ROUND_TRIP_ROUNDINGS = 4


@every_impl
@every_kind
@pytest.mark.parametrize("dtype", DTYPES)
def test_round_trip_of_every_dtype(dtype, kind, impl):
    form = network(20, (40, 40), params=params_of(kind))
    z, term, parameters = form.unpack([t.detach().to(dtype) for t in form.tensors((30,))])
    out, log_det = autoregressive_flow(z, term, parameters, form.structure, kind=kind, impl=impl)
    back, minus_log_det = autoregressive_inverse(out, term, parameters, form.structure, kind=kind, impl=impl)
    largest = max(z.abs().max(), out.abs().max(), out.abs().max() * (-log_det / 20).exp().max()).item()
    bound = ROUND_TRIP_ROUNDINGS * torch.finfo(dtype).eps * largest
    assert (back.double() - z.double()).abs().max() <= bound
    assert (minus_log_det.double() + log_det.double()).abs().max() <= 20 * bound


@every_impl
@every_network
def test_jacobian_is_triangular_and_gives_log_det(name, impl):
    form = NETWORKS[name]
    z, *rest = (t.detach().double() for t in form.tensors(()))
    inverse = form.problem("inverse", [])
    found = jacobian(lambda z: inverse.call(impl, [z, *rest])[0], z)
    place = torch.tensor(form.structure.order)
    assert (found[place > place.unsqueeze(-1)] == 0).all()
    _, log_det = inverse.call(impl, [z, *rest])
    torch.testing.assert_close(torch.linalg.slogdet(found).logabsdet, log_det)


@every_impl
@pytest.mark.parametrize("name", ["plain", "one feature, context", "everything", "no bias", "shuffled degrees"])
def test_gradcheck(name, impl):
    form = NETWORKS[name]
    problem = form.problem("inverse", form.tensors((2,))).to(torch.float64, "cpu")
    assert torch.autograd.gradcheck(lambda *p: problem.call(impl, list(p)), problem.inputs, fast_mode=True)


@every_impl
@every_network
def test_masked_gradients_are_exactly_zero(name, impl):
    form = NETWORKS[name]
    problem = form.problem("inverse", form.tensors((5,)))
    gradients = torch.autograd.grad(total(problem.outputs(impl)), problem.inputs)
    for gradient, mask in zip(gradients[form.first_weight() :], form.masks, strict=False):
        assert (gradient[~mask] == 0).all()


@kernels
@every_network
def test_masked_weights_reach_nothing(name, impl):
    """Neither outputs nor gradients read the value of a masked weight."""
    form = NETWORKS[name]
    tensors = form.tensors((6,))
    spoilt = [t.detach().clone() for t in tensors]
    first = form.first_weight()
    for i, mask in enumerate(form.masks):
        spoilt[first + i][~mask] = float("nan")
    results = []
    for leaves in (tensors, [t.requires_grad_() for t in spoilt]):
        outputs = form.problem("inverse", leaves).outputs(impl)
        results.append((*outputs, *torch.autograd.grad(total(outputs), leaves)))
    torch.testing.assert_close(*results, rtol=0, atol=0)


@every_impl
@pytest.mark.parametrize("kind", [k for k in KINDS if k != "location_only"])
@pytest.mark.parametrize("sign", [-1, 1])
def test_extreme_scale_logits(sign, kind, impl):
    """Biases of ±1e4 in the last layer: each feature saturates, and nothing becomes NaN forward or backward.

    The first feature alone is followed: errors of e^30 in it are all that the next ones see.
    """
    form = network(1, (16,))
    tensors = form.tensors((4,))
    with torch.no_grad():
        tensors[-1][1] = sign * 1e4
    outputs = form.problem("inverse", tensors, kind).outputs(impl)
    assert all(torch.isfinite(o).all() for o in outputs)
    for gradient in torch.autograd.grad(outputs, tensors, [o.sign() for o in outputs]):
        assert torch.isfinite(gradient).all()
    form = network(5, (16,), activation="tanh")
    tensors = form.tensors((4,))
    with torch.no_grad():
        tensors[-1][5:] = sign * 1e4
    outputs = form.problem("inverse", tensors, kind).outputs(impl)
    assert not any(o.isnan().any() for o in outputs)


@every_impl
def test_nan_in_one_row_stays_there(impl):
    form = NETWORKS["everything"]
    z, *rest = (t.detach() for t in form.tensors((70,)))
    z[40] = float("nan")
    out, log_det = form.problem("inverse", []).call(impl, [z, *rest])
    others = torch.arange(70) != 40
    assert torch.isfinite(out[others]).all()
    assert torch.isfinite(log_det[others]).all()
    assert out[40].isnan().any()


@kernels
def test_strides(impl):
    form = NETWORKS["everything"]
    problem = form.problem("inverse", form.tensors((6,)))
    outputs = problem.outputs(impl)
    gradients = torch.autograd.grad(total(outputs), problem.inputs)
    for relayout in (
        lambda t: torch.cat([t, t], -1).chunk(2, -1)[0],
        lambda t: t.transpose(0, -1).contiguous().transpose(0, -1),
        lambda t: torch.stack([t, t], -1)[..., 1],
    ):
        strided = [relayout(t.detach()).requires_grad_() for t in problem.inputs]
        got = problem.call(impl, strided)
        torch.testing.assert_close(got, outputs)
        again = torch.autograd.grad(total(got), strided)
        torch.testing.assert_close(again, gradients, rtol=1e-4, atol=1e-5)


@every_impl
def test_only_some_gradients_wanted(impl):
    form = NETWORKS["everything"]
    tensors = form.tensors((4,))
    expected = torch.autograd.grad(total(form.problem("inverse", tensors).outputs(impl)), tensors)
    for wanted in range(len(tensors)):
        alone = [t.detach().requires_grad_(i == wanted) for i, t in enumerate(tensors)]
        (got,) = torch.autograd.grad(total(form.problem("inverse", alone).outputs(impl)), alone[wanted])
        torch.testing.assert_close(got, expected[wanted], rtol=1e-5, atol=1e-5)


@every_impl
@pytest.mark.parametrize("output", [0, 1], ids=["x", "log_det"])
def test_only_one_output_used(output, impl):
    form = NETWORKS["plain"]
    problem = form.problem("inverse", form.tensors((4,)))
    expected = torch.autograd.grad(problem.outputs("reference")[output].sum(), problem.inputs)
    got = torch.autograd.grad(problem.outputs(impl)[output].sum(), problem.inputs)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


@every_impl
@pytest.mark.parametrize("name", ["plain", "residual, shuffled degrees", "everything"])
def test_without_gradients_the_values_are_the_same(name, impl):
    form = NETWORKS[name]
    problem = form.problem("inverse", form.tensors((5,)))
    expected = problem.outputs(impl)
    with torch.no_grad():
        got = problem.outputs(impl)
    assert not any(o.requires_grad for o in got)
    torch.testing.assert_close(got, expected)


@kernels
@pytest.mark.parametrize("name", ["plain", "everything"])
def test_compile_fullgraph(name, impl):
    """The sweep is one op: a graph of constant size, for two batch sizes under one dynamic compilation."""
    form = NETWORKS[name]

    def loss(*p):
        return total(form.problem("inverse", []).call(impl, list(p)))

    torch._dynamo.reset()
    compiled = torch.compile(loss, fullgraph=True, dynamic=True, backend="aot_eager")
    for rows in (4, 6):
        tensors = form.tensors((rows,))
        expected = torch.autograd.grad(loss(*tensors), tensors)
        torch.testing.assert_close(torch.autograd.grad(compiled(*tensors), tensors), expected)


def test_second_derivative_of_the_reference():
    form = network(3, (6,), activation="tanh")
    problem = form.problem("inverse", form.tensors((2,))).to(torch.float64, "cpu")
    assert torch.autograd.gradgradcheck(lambda *p: problem.call("reference", list(p)), problem.inputs, fast_mode=True)


@pytest.mark.parametrize("isa", _C.available_isas())
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["widths of no vector", "around a vector", "everything"])
def test_every_instruction_set(name, dtype, isa):
    form, before = NETWORKS[name], _C.isa()
    _C.set_isa(isa)
    try:
        check(lambda: form.problem("inverse", form.tensors((17,))), "cpp", dtype)
    finally:
        _C.set_isa(before)


@pytest.mark.parametrize(("changed", "error", "name"), WRONG_STEP)
def test_errors_name_the_argument(changed, error, name):
    with pytest.raises(error, match=rf"\b({name})(\b|\[)"):
        autoregressive_inverse(**right_arguments() | changed)


def test_meta_tensors():
    form = small_form()
    arguments = form.unpack([t.detach().to("meta") for t in form.tensors((2,))])
    with pytest.raises(RuntimeError, match="impl='cpp' cannot run on meta tensors"):
        autoregressive_inverse(*arguments, form.structure, impl="cpp")
