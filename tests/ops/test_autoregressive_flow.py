import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastvae import _C
from fastvae.ops.affine_flow import affine_flow
from fastvae.ops.autoregressive_flow import autoregressive_flow, masked_network
from fastvae.reference.affine_flow import KINDS
from fastvae.reference.affine_flow import affine_flow as affine_reference
from fastvae.reference.masked_linear import ACTIVATIONS
from tests.support.implementations import DTYPES
from tests.support.networks import BATCHES, KERNELS, NETWORKS, network, params_of
from tests.support.oracle import check, jacobian
from tests.support.wrong_networks import WRONG_NETWORK, WRONG_STEP, right_arguments, small_form

ENTRY_POINTS = ("made", "flow")
every_entry = pytest.mark.parametrize("entry", ENTRY_POINTS)
every_impl = pytest.mark.parametrize("impl", ["reference", *KERNELS])
every_network = pytest.mark.parametrize("name", NETWORKS)
kernels = pytest.mark.parametrize("impl", KERNELS)


@every_impl
@every_entry
@every_network
def test_forward_and_backward(name, entry, impl):
    form = NETWORKS[name]
    check(lambda: form.problem(entry, form.tensors((6,))), impl, torch.float32)


@every_impl
@every_entry
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("name", ["around a vector", "everything"])
def test_batches(name, batch, entry, impl):
    form = NETWORKS[name]
    check(lambda: form.problem(entry, form.tensors(batch)), impl, torch.float32)


@every_impl
@pytest.mark.parametrize("kind", KINDS)
def test_kinds(kind, impl):
    form = network(6, (21, 18), params=params_of(kind), context=True)
    check(lambda: form.problem("flow", form.tensors((5,)), kind), impl, torch.float32)


@every_impl
@pytest.mark.parametrize("name", ["many features", "one feature", "shuffled order", "everything"])
def test_shares(name, impl):
    form = NETWORKS[name]
    check(lambda: form.problem("flow", form.tensors((6,)), log_det_map=True), impl, torch.float32)


@kernels
@pytest.mark.parametrize("batch", BATCHES)
def test_shares_of_batches(batch, impl):
    form = NETWORKS["everything"]
    check(lambda: form.problem("flow", form.tensors(batch), log_det_map=True), impl, torch.float32)


@kernels
@pytest.mark.parametrize("kind", KINDS)
def test_shares_are_those_of_the_affine_step(kind, impl):
    """The fused step has the shares of the step after its network, and their gradients."""
    form = network(70, (20, 31), params=params_of(kind), context=True)
    tensors = form.tensors((66,))
    z, term, parameters = form.unpack(tensors)
    out, shares = autoregressive_flow(z, term, parameters, form.structure, kind=kind, log_det_map=True, impl=impl)
    params = form.structure.split(masked_network(z, term, parameters, form.structure, impl=impl))
    scale_logit = None if kind == "location_only" else params[..., 1, :]
    expected = affine_flow(z, params[..., 0, :], scale_logit, kind=kind, log_det_map=True, impl=impl)
    torch.testing.assert_close((out, shares), expected)
    _, log_det = autoregressive_flow(z, term, parameters, form.structure, kind=kind, impl=impl)
    torch.testing.assert_close(shares.double().sum(-1), log_det.double(), rtol=1e-6, atol=1e-6)
    weights = torch.rand_like(shares)
    loss, unfused = ((s * weights).sum() + o.square().sum() for o, s in ((out, shares), expected))
    torch.testing.assert_close(torch.autograd.grad(loss, tensors), torch.autograd.grad(unfused, tensors))


@every_impl
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations(activation, residual, impl):
    form = network(5, (20,) * 3, activation=activation, residual=residual, weight_scale=True)
    check(lambda: form.problem("flow", form.tensors((7,))), impl, torch.float32)


@every_impl
@every_entry
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["plain", "around a vector", "everything"])
def test_dtypes(name, dtype, entry, impl):
    form = NETWORKS[name]
    check(lambda: form.problem(entry, form.tensors((9,))), impl, dtype)


@pytest.mark.parametrize("params", [1, 3])
@every_impl
@pytest.mark.parametrize("layout", ["blocked", "interleaved"])
def test_other_numbers_of_parameters(layout, impl, params):
    form = network(5, (16, 12), params=params, layout=layout)
    check(lambda: form.problem("made", form.tensors((4,))), impl, torch.float32)


@every_impl
@every_entry
@pytest.mark.parametrize(("batch", "context_batch"), [((4,), ()), ((4,), (1,)), ((), (3,)), ((2, 1), (3,))])
def test_context_broadcasts(batch, context_batch, entry, impl):
    """One context for many rows, many contexts for one row: the gradient of what is shared is summed."""
    form = NETWORKS["context"]
    check(lambda: form.problem(entry, form.tensors(batch, context_batch)), impl, torch.float32)


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
    if residual:
        hidden = hidden[:1] * 3
    order = range(features)[::-1] if reverse else None
    form = network(features, hidden, params=params_of(kind), residual=residual, order=order, **options)
    check(lambda: form.problem("flow", form.tensors(batch), kind), "cpp", torch.float32)


@every_impl
@every_entry
@pytest.mark.parametrize("name", ["plain", "one feature, context", "everything", "no bias", "shuffled degrees"])
def test_gradcheck(name, entry, impl):
    form = NETWORKS[name]
    made = form.problem(entry, form.tensors((2,))).to(torch.float64, "cpu")
    assert torch.autograd.gradcheck(lambda *p: made.call(impl, list(p)), made.inputs, fast_mode=True)


@every_impl
@every_network
def test_jacobian_is_autoregressive(name, impl):
    """Parameters depend on the features before theirs in the order: elsewhere exactly zero; forwards, all connected."""
    form = NETWORKS[name]
    z, *rest = (t.detach() for t in form.tensors(()))
    found = jacobian(lambda x: form.structure.split(form.problem("made", []).call(impl, [x, *rest])[0]), z)
    place = torch.tensor(form.structure.order)
    allowed = place < place.unsqueeze(-1)  # (feature of the parameter, feature of the input)
    assert (found[:, ~allowed] == 0).all()
    # Inputs from which some path of unmasked weights leads to an output: (inputs, outputs) as (params, feature, input).
    paths = torch.linalg.multi_dot([mask.double() for mask in reversed(form.masks)]).T
    assert (found[form.structure.split(paths > 0).permute(1, 2, 0)] != 0).all()


@every_impl
@every_network
def test_log_det_is_that_of_the_jacobian(name, impl):
    form = NETWORKS[name]
    z, *rest = (t.detach().double() for t in form.tensors(()))
    flow = form.problem("flow", [])
    found = jacobian(lambda z: flow.call(impl, [z, *rest])[0], z)
    _, log_det = flow.call(impl, [z, *rest])
    torch.testing.assert_close(torch.linalg.slogdet(found).logabsdet, log_det)
    place = torch.tensor(form.structure.order)
    assert (found[place > place.unsqueeze(-1)] == 0).all()


@every_impl
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layout", ["blocked", "interleaved"])
def test_flow_is_the_affine_step_of_its_network(layout, kind, impl):
    form = network(7, (20, 31), params=params_of(kind), layout=layout)
    z, term, parameters = form.unpack(form.tensors((8,)))
    params = form.structure.split(masked_network(z, term, parameters, form.structure, impl=impl))
    scale_logit = None if kind == "location_only" else params[..., 1, :]
    expected = affine_reference(z, params[..., 0, :], scale_logit, kind)
    got = autoregressive_flow(z, term, parameters, form.structure, kind=kind, impl=impl)
    torch.testing.assert_close(got, expected)


@every_impl
@every_entry
@every_network
def test_masked_gradients_are_exactly_zero(name, entry, impl):
    form = NETWORKS[name]
    problem = form.problem(entry, form.tensors((5,)))
    gradients = torch.autograd.grad(sum(o.square().sum() for o in problem.outputs(impl)), problem.inputs)
    for gradient, mask in zip(gradients[form.first_weight() :], form.masks, strict=False):
        assert (gradient[~mask] == 0).all()


@kernels
@every_entry
@every_network
def test_masked_weights_reach_nothing(name, entry, impl):
    """Neither outputs nor gradients read the value of a masked weight."""
    form = NETWORKS[name]
    tensors = form.tensors((6,))
    spoilt = [t.detach().clone() for t in tensors]
    first = form.first_weight()
    for i, mask in enumerate(form.masks):
        spoilt[first + i][~mask] = float("nan")
    results = []
    for leaves in (tensors, [t.requires_grad_() for t in spoilt]):
        outputs = form.problem(entry, leaves).outputs(impl)
        results.append((*outputs, *torch.autograd.grad(sum(o.square().sum() for o in outputs), leaves)))
    torch.testing.assert_close(*results, rtol=0, atol=0)


@every_impl
def test_nan_in_one_row_stays_there(impl):
    form = NETWORKS["everything"]
    z, *rest = (t.detach() for t in form.tensors((70,)))
    z[40] = float("nan")
    out, log_det = form.problem("flow", []).call(impl, [z, *rest])
    others = torch.arange(70) != 40
    assert torch.isfinite(out[others]).all()
    assert torch.isfinite(log_det[others]).all()
    assert out[40].isnan().any()


@every_impl
@pytest.mark.parametrize("kind", [k for k in KINDS if k != "location_only"])
@pytest.mark.parametrize("sign", [-1, 1])
def test_extreme_scale_logits(sign, kind, impl):
    """Biases of ±1e4 in the last layer: saturated, finite, and no gradient is NaN."""
    form = network(5, (16,))
    tensors = form.tensors((4,))
    with torch.no_grad():
        tensors[-1][5:] = sign * 1e4
    outputs = form.problem("flow", tensors, kind).outputs(impl)
    for t in (*outputs, *torch.autograd.grad([o.sign() * o for o in outputs], tensors, map(torch.ones_like, outputs))):
        assert torch.isfinite(t).all()


@kernels
@every_entry
def test_strides(entry, impl):
    form = NETWORKS["everything"]
    problem = form.problem(entry, form.tensors((6,)))
    outputs = problem.outputs(impl)
    gradients = torch.autograd.grad(sum(o.square().sum() for o in outputs), problem.inputs)
    for relayout in (
        lambda t: torch.cat([t, t], -1).chunk(2, -1)[0],
        lambda t: t.transpose(0, -1).contiguous().transpose(0, -1),
        lambda t: torch.stack([t, t], -1)[..., 1],
    ):
        strided = [relayout(t.detach()).requires_grad_() for t in problem.inputs]
        got = problem.call(impl, strided)
        torch.testing.assert_close(got, outputs)
        again = torch.autograd.grad(sum(o.square().sum() for o in got), strided)
        torch.testing.assert_close(again, gradients, rtol=1e-4, atol=1e-5)


@every_impl
@every_entry
def test_only_some_gradients_wanted(entry, impl):
    """Frozen weights, a constant input, a learned context alone: what is wanted does not depend on the rest."""
    form = NETWORKS["everything"]
    tensors = form.tensors((4,))
    loss = sum(o.square().sum() for o in form.problem(entry, tensors).outputs(impl))
    expected = torch.autograd.grad(loss, tensors)
    for wanted in range(len(tensors)):
        alone = [t.detach().requires_grad_(i == wanted) for i, t in enumerate(tensors)]
        loss = sum(o.square().sum() for o in form.problem(entry, alone).outputs(impl))
        torch.testing.assert_close(torch.autograd.grad(loss, alone[wanted])[0], expected[wanted])


@every_impl
@pytest.mark.parametrize("output", [0, 1], ids=["out", "log_det"])
def test_only_one_output_used(output, impl):
    form = NETWORKS["plain"]
    problem = form.problem("flow", form.tensors((4,)))
    expected = torch.autograd.grad(problem.outputs("reference")[output].sum(), problem.inputs)
    got = torch.autograd.grad(problem.outputs(impl)[output].sum(), problem.inputs)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


@every_impl
@every_entry
def test_without_gradients_the_values_are_the_same(entry, impl):
    form = NETWORKS["everything"]
    problem = form.problem(entry, form.tensors((5,)))
    expected = problem.outputs(impl)
    with torch.no_grad():
        got = problem.outputs(impl)
    assert not any(o.requires_grad for o in got)
    torch.testing.assert_close(got, expected)


@kernels
@every_entry
@pytest.mark.parametrize("name", ["plain", "everything"])
def test_compile_fullgraph(name, entry, impl):
    form = NETWORKS[name]

    def loss(*p):
        return sum(o.square().sum() for o in form.problem(entry, []).call(impl, list(p)))

    torch._dynamo.reset()
    compiled = torch.compile(loss, fullgraph=True, dynamic=True, backend="aot_eager")
    for rows in (4, 6):
        tensors = form.tensors((rows,))
        expected = torch.autograd.grad(loss(*tensors), tensors)
        torch.testing.assert_close(torch.autograd.grad(compiled(*tensors), tensors), expected)


@every_entry
def test_second_derivative_of_the_reference(entry):
    form = network(3, (6,), activation="tanh")
    problem = form.problem(entry, form.tensors((2,))).to(torch.float64, "cpu")
    function = problem.call
    assert torch.autograd.gradgradcheck(lambda *p: function("reference", list(p)), problem.inputs, fast_mode=True)


@pytest.mark.parametrize("isa", _C.available_isas())
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["widths of no vector", "around a vector", "everything"])
def test_every_instruction_set(name, dtype, isa):
    form, before = NETWORKS[name], _C.isa()
    _C.set_isa(isa)
    try:
        check(lambda: form.problem("flow", form.tensors((17,))), "cpp", dtype)
    finally:
        _C.set_isa(before)


@pytest.mark.parametrize(("changed", "error", "name"), WRONG_NETWORK)
def test_errors_of_made_name_the_argument(changed, error, name):
    arguments = right_arguments() | changed
    arguments["x"] = arguments.pop("z")
    with pytest.raises(error, match=rf"\b({name})(\b|\[)"):
        masked_network(**arguments)


@pytest.mark.parametrize(("changed", "error", "name"), WRONG_STEP)
def test_errors_of_a_flow_name_the_argument(changed, error, name):
    with pytest.raises(error, match=rf"\b({name})(\b|\[)"):
        autoregressive_flow(**right_arguments() | changed)


def test_meta_tensors():
    form = small_form()
    arguments = form.unpack([t.detach().to("meta") for t in form.tensors((2,))])
    out, log_det = autoregressive_flow(*arguments, form.structure)
    assert (out.shape, log_det.shape, out.device.type) == ((2, 4), (2,), "meta")
    with pytest.raises(RuntimeError, match="impl='cpp' cannot run on meta tensors"):
        autoregressive_flow(*arguments, form.structure, impl="cpp")
