"""Autoregressive flows as modules."""

import copy
import math
import pickle

import pytest
import torch

from fastvae.nn import InverseAutoregressiveFlow, MaskedAutoregressiveFlow
from fastvae.ops.autoregressive_flow import autoregressive_flow
from fastvae.reference.affine_flow import KINDS
from tests.support.oracle import jacobian

FLOWS = (InverseAutoregressiveFlow, MaskedAutoregressiveFlow)
FORMS = {
    "one step": {},
    "three steps": {"steps": 3},
    "same order": {"steps": 2, "reverse": False},
    "given order": {"steps": 2, "order": [2, 0, 3, 1]},
    "context": {"steps": 2, "context_features": 3},
    "residual": {"steps": 2, "hidden_features": (16, 16, 16), "residual": True},
    "exp": {"steps": 2, "kind": "exp", "activation": "relu"},
    "location_only": {"steps": 2, "kind": "location_only"},
}
every_flow = pytest.mark.parametrize("flow_class", FLOWS)
every_form = pytest.mark.parametrize("name", FORMS)
every_impl = pytest.mark.parametrize("impl", ["reference", "auto"])


def flow_of(flow_class, name="one step", features=4, **options):
    return flow_class(features, **{"hidden_features": (16, 20), **FORMS[name], **options})


def inputs_of(flow, batch, dtype=torch.float64):
    context = torch.randn(*batch, flow.context_features, dtype=dtype) if flow.context_features else None
    return torch.randn(*batch, flow.features, dtype=dtype), context


@every_impl
@every_flow
@every_form
@pytest.mark.parametrize("batch", [(7,), (2, 3), (), (0,)])
def test_both_directions(batch, name, flow_class, impl):
    """Shapes, inverse of forward, log-determinants that cancel, and a gradient for every parameter."""
    flow = flow_of(flow_class, name, impl=impl, dtype=torch.float64)
    z, context = inputs_of(flow, batch)
    for first, second in ((flow, flow.inverse), (flow.inverse, flow)):
        out, log_det = first(z, context)
        assert (out.shape, log_det.shape) == ((*batch, 4), batch)
        back, minus_log_det = second(out, context)
        torch.testing.assert_close(back, z, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(minus_log_det, -log_det, rtol=1e-10, atol=1e-10)
        flow.zero_grad()
        (out.square().sum() + log_det.sum()).backward()
        for parameter in flow.parameters():
            assert parameter.grad is not None
            assert torch.isfinite(parameter.grad).all()


@every_impl
@every_flow
@every_form
def test_log_det_is_that_of_the_jacobian(name, flow_class, impl):
    flow = flow_of(flow_class, name, impl=impl, dtype=torch.float64)
    z, context = inputs_of(flow, ())
    for direction in (flow, flow.inverse):
        found = jacobian(lambda z, direction=direction: direction(z, context)[0], z)
        _, log_det = direction(z, context)
        torch.testing.assert_close(torch.linalg.slogdet(found).logabsdet, log_det)


@every_flow
@pytest.mark.parametrize("name", ["one step", "same order"])
def test_jacobian_of_one_order_is_triangular(name, flow_class):
    flow = flow_of(flow_class, name, dtype=torch.float64)
    z, _ = inputs_of(flow, ())
    for direction in (flow, flow.inverse):
        found = jacobian(lambda z, direction=direction: direction(z)[0], z)
        assert (found.triu(1) == 0).all()
        assert (found[torch.ones(4, 4, dtype=torch.bool).tril()] != 0).all()


def test_every_other_step_reverses_the_order():
    flow = flow_of(InverseAutoregressiveFlow, "three steps")
    assert [net.structure.order for net in flow.steps()] == [(0, 1, 2, 3), (3, 2, 1, 0), (0, 1, 2, 3)]
    flow = flow_of(InverseAutoregressiveFlow, "given order")
    assert [net.structure.order for net in flow.steps()] == [(2, 0, 3, 1), (1, 3, 0, 2)]


@every_impl
@every_flow
@pytest.mark.parametrize("kind", KINDS)
def test_kinds(kind, flow_class, impl):
    flow = flow_of(flow_class, steps=2, kind=kind, impl=impl, dtype=torch.float64)
    z, _ = inputs_of(flow, (9,))
    out, log_det = flow(z)
    back, minus_log_det = flow.inverse(out)
    torch.testing.assert_close(back, z, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(minus_log_det, -log_det, rtol=1e-10, atol=1e-10)
    if kind == "location_only":
        assert (log_det == 0).all()


@every_impl
def test_log_det_adds_up_over_steps(impl):
    flow = flow_of(InverseAutoregressiveFlow, "three steps", impl=impl)
    z = torch.randn(6, 4)
    out, total = flow(z)
    log_dets = []
    for net in flow.steps():
        z, log_det = autoregressive_flow(z, None, net.fused_parameters(), net.structure, impl=impl)
        log_dets.append(log_det)
    torch.testing.assert_close(out, z)
    torch.testing.assert_close(total, torch.stack(log_dets).sum(0))


@every_form
def test_each_flow_is_the_other_run_backwards(name):
    iaf = flow_of(InverseAutoregressiveFlow, name, dtype=torch.float64)
    maf = flow_of(MaskedAutoregressiveFlow, name, dtype=torch.float64)
    maf.load_state_dict(iaf.state_dict())
    z, context = inputs_of(iaf, (5,))
    torch.testing.assert_close(maf.inverse(z, context), iaf(z, context))
    torch.testing.assert_close(maf(z, context), iaf.inverse(z, context))


@pytest.mark.parametrize("kind", ["gated", "softplus", "sigmoid", "exp"])
def test_starts_near_the_identity(kind):
    """The scale of a fresh step: the paper's sigmoid of a logit near 2, and about 1 for the others."""
    flow = flow_of(InverseAutoregressiveFlow, kind=kind, features=6)
    _, log_det = flow(torch.randn(500, 6))
    expected = {"gated": math.log(1 / (1 + math.exp(-2))), "sigmoid": math.log(1 / (1 + math.exp(-2)) + 1e-3)}
    assert abs(log_det.mean().item() / 6 - expected.get(kind, 0.0)) < 0.1


def test_biases_of_the_shift_are_left_alone():
    """Only the scale's bias starts elsewhere than nn.Linear puts it."""
    torch.manual_seed(1)
    gated = flow_of(InverseAutoregressiveFlow).steps()[0].masked_layers()[-1].bias
    torch.manual_seed(1)
    exp = flow_of(InverseAutoregressiveFlow, kind="exp").steps()[0].masked_layers()[-1].bias
    assert torch.equal(gated[:4], exp[:4])
    torch.testing.assert_close(gated[4:], exp[4:] + 2.0)


@every_flow
def test_context_reaches_the_first_feature(flow_class):
    flow = flow_of(flow_class, "context", steps=1, dtype=torch.float64)
    z, context = inputs_of(flow, ())
    for direction in (flow, flow.inverse):
        found = jacobian(lambda context, direction=direction: direction(z, context)[0], context)
        assert (found != 0).all()


@every_flow
@every_impl
def test_context_broadcasts(impl, flow_class):
    flow = flow_of(flow_class, "context", impl=impl, dtype=torch.float64)
    z, context = inputs_of(flow, (6,))
    for direction in (flow, flow.inverse):
        torch.testing.assert_close(direction(z, context[0]), direction(z, context[:1].expand(6, 3)))


@every_flow
def test_density_integrates_to_one(flow_class):
    """Of two features, on a grid that holds all but a trace of the mass."""
    flow = flow_of(flow_class, "three steps", features=2, kind="exp", dtype=torch.float64)
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.mul_(1.5)
        axis = torch.linspace(-12, 12, 400, dtype=torch.float64)
        points = torch.cartesian_prod(axis, axis)
        z, log_det = flow.inverse(points)
    log_density = log_det - 0.5 * z.square().sum(-1) - math.log(2 * math.pi)
    torch.testing.assert_close(
        log_density.exp().sum() * (axis[1] - axis[0]) ** 2, torch.tensor(1.0).double(), rtol=1e-3, atol=0
    )


@every_flow
def test_initialisation_from_data(flow_class):
    """The direction that computes all features at once initialises, in training mode, from its first batch."""
    flow = flow_of(flow_class, "three steps", weight_norm=True)
    parallel = flow if flow_class is InverseAutoregressiveFlow else flow.inverse
    x = 2 * torch.randn(300, 4) + 1
    out, log_det = parallel(x)
    assert all(net.initialized for net in flow.steps())
    # Scale logits have mean 2 and a standard deviation of 0.1 at most.
    expected = 3 * 4 * math.log(1 / (1 + math.exp(-2)))
    assert abs(log_det.mean().item() - expected) < 0.1
    again, _ = parallel(x)
    torch.testing.assert_close(again, out)
    (flow.inverse if parallel is flow else flow)(out)[0].sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in flow.parameters())


@every_flow
def test_no_initialisation_outside_training(flow_class):
    flow = flow_of(flow_class, weight_norm=True).eval()
    before = copy.deepcopy(flow.state_dict())
    flow(torch.randn(5, 4))
    flow.inverse(torch.randn(5, 4))
    assert all(torch.equal(value, flow.state_dict()[name]) for name, value in before.items())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_dtypes_of_results(dtype):
    flow = flow_of(InverseAutoregressiveFlow, dtype=dtype)
    for direction in (flow, flow.inverse):
        out, log_det = direction(torch.randn(5, 4, dtype=dtype))
        assert (out.dtype, log_det.dtype) == (dtype, torch.float32)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype):
    flow, z = flow_of(InverseAutoregressiveFlow), torch.randn(5, 4)
    expected = flow(z)
    with torch.autocast("cpu", dtype):
        out, log_det = flow(z)
    torch.testing.assert_close((out.float(), log_det.float()), expected, rtol=0.05, atol=0.05)
    (out.float().sum() + log_det.sum()).backward()
    assert all(p.grad.dtype == torch.float32 for p in flow.parameters())


def test_training_fits_a_density():
    """A few steps of maximum likelihood on correlated data beat the best diagonal Gaussian."""
    flow = MaskedAutoregressiveFlow(2, (32,), kind="exp")
    first = torch.randn(512)
    data = torch.stack([first, first.square() - 1 + 0.2 * torch.randn(512)], -1)
    optimizer = torch.optim.Adam(flow.parameters(), lr=0.02)
    for _ in range(80):
        optimizer.zero_grad()
        z, log_det = flow.inverse(data)
        loss = -(log_det - 0.5 * z.square().sum(-1) - math.log(2 * math.pi)).mean()
        loss.backward()
        optimizer.step()
    diagonal = (data.std(0).log() + 0.5 + 0.5 * math.log(2 * math.pi)).sum()
    assert loss < diagonal - 0.5


@every_flow
def test_compile(flow_class):
    """The parallel direction, the one that networks train through, in one graph."""
    flow = flow_of(flow_class, "context")
    z, context = inputs_of(flow, (7,), torch.float32)
    parallel = flow.forward if flow_class is InverseAutoregressiveFlow else flow.inverse

    def loss(z, context):
        out, log_det = parallel(z, context)
        return out.square().sum() + log_det.sum()

    torch._dynamo.reset()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(z, context), loss(z, context))
    actual, expected = (torch.autograd.grad(f(z, context), list(flow.parameters())) for f in (compiled, loss))
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


@every_flow
@every_form
def test_pickle_deepcopy_and_state_dict(name, flow_class):
    flow, fresh = flow_of(flow_class, name), flow_of(flow_class, name)
    fresh.load_state_dict(flow.state_dict())
    z, context = inputs_of(flow, (7,), torch.float32)
    for twin in (pickle.loads(pickle.dumps(flow)), copy.deepcopy(flow), fresh):
        assert torch.equal(twin(z, context)[0], flow(z, context)[0])
        assert repr(twin) == repr(flow)


FLOW, CONDITIONED = MaskedAutoregressiveFlow(4, (8,)), InverseAutoregressiveFlow(4, (8,), context_features=3)
Z = torch.zeros(2, 4)


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: InverseAutoregressiveFlow(0), ValueError, "features must be >= 1, got 0"),
        (lambda: InverseAutoregressiveFlow(4, steps=0), ValueError, "steps must be >= 1, got 0"),
        (lambda: InverseAutoregressiveFlow(4, kind="affine"), ValueError, "kind must be one of .*'affine'"),
        (lambda: MaskedAutoregressiveFlow(4, (8,), activation="swish"), ValueError, "activation must be one of"),
        (lambda: MaskedAutoregressiveFlow(4, (8,), order=[0, 1]), ValueError, "order must be a permutation"),
        (lambda: MaskedAutoregressiveFlow(4, (8,), order=[0, 1, 1, 3]), ValueError, "order must be a permutation"),
        (lambda: MaskedAutoregressiveFlow(4, (8, 8), residual=True), ValueError, "hidden_features must be"),
        (lambda: MaskedAutoregressiveFlow(4, (8,), context_features=-2), ValueError, "context_features must be >= 0"),
        (lambda: FLOW(Z[:, :3]), ValueError, r"must have shape \(\*, 4\), got \(2, 3\)"),
        (lambda: FLOW.inverse(Z[:, :3]), ValueError, r"must have shape \(\*, 4\), got \(2, 3\)"),
        (lambda: FLOW(Z, torch.zeros(2, 3)), ValueError, "context must be None"),
        (lambda: CONDITIONED(Z), ValueError, "context must be given"),
        (lambda: CONDITIONED.inverse(Z), ValueError, "context must be given"),
        (lambda: CONDITIONED(Z, torch.zeros(2, 4)), ValueError, r"context must have shape \(\*, 3\), got \(2, 4\)"),
        (lambda: CONDITIONED(Z, torch.zeros(5, 3)), ValueError, r"\b(context|context_term)\b"),
        (lambda: FLOW(Z.double()), TypeError, r"\b(x|z|weights?)\b"),
        (lambda: InverseAutoregressiveFlow(4, (8,), impl="cuda")(Z), ValueError, "impl must be one of"),
    ],
)
def test_bad_arguments(call, error, match):
    with pytest.raises(error, match=match):
        call()
