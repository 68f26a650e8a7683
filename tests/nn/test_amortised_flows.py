"""Flows whose parameters are learned, or a linear map of a context: planar, Householder, Sylvester, linear IAF."""

import pytest
import torch
from torch.func import jacrev, vmap

from fastvae.nn import (
    FlowSequence,
    HouseholderFlow,
    LinearInverseAutoregressiveFlow,
    PlanarFlow,
    SylvesterFlow,
    check_autoregressive,
)
from fastvae.nn.sylvester import orthogonalise

FLOWS = {
    "planar": PlanarFlow,
    "planar-leaky": lambda d, c=0, **o: PlanarFlow(d, c, activation="leaky_relu", **o),
    "householder": lambda d, c=0, **o: HouseholderFlow(d, 3, c, **o),
    "sylvester-orthogonal": lambda d, c=0, **o: SylvesterFlow(d, "orthogonal", c, columns=max(d - 2, 1), **o),
    "sylvester-square": lambda d, c=0, **o: SylvesterFlow(d, "orthogonal", c, iterations=60, **o),
    "sylvester-householder": lambda d, c=0, **o: SylvesterFlow(d, "householder", c, reflections=4, **o),
    "sylvester-triangular": lambda d, c=0, **o: SylvesterFlow(d, "triangular", c, permutation=range(d)[::-1], **o),
    "linear-iaf": LinearInverseAutoregressiveFlow,
}
every_flow = pytest.mark.parametrize("name", FLOWS)
with_and_without_context = pytest.mark.parametrize("context_features", [0, 3])


def make_flow(name, features, context_features, **options):
    """A flow with parameters away from where they start."""
    flow = FLOWS[name](features, context_features, **options)
    with torch.no_grad():
        for p in flow.parameters():
            p.add_(0.4 * torch.randn_like(p))
    return flow


def inputs(flow, *batch, dtype=torch.float64):
    context = torch.randn(*batch, flow.context_features, dtype=dtype) if flow.context_features else None
    return torch.randn(*batch, flow.features, dtype=dtype), context


@every_flow
@with_and_without_context
@pytest.mark.parametrize("features", [1, 2, 7])
def test_log_det_is_that_of_the_jacobian(name, context_features, features):
    flow = make_flow(name, features, context_features, dtype=torch.float64)
    z, context = inputs(flow, 5)
    _, log_det = flow(z, context)

    def point(z, context):
        return flow(z, context)[0]

    jacobian = vmap(jacrev(point), in_dims=(0, None if context is None else 0))(z, context)
    torch.testing.assert_close(log_det, torch.linalg.slogdet(jacobian).logabsdet, atol=1e-8, rtol=1e-8)


@pytest.mark.parametrize("name", ["householder", "linear-iaf"])
@with_and_without_context
def test_inverse(name, context_features):
    flow = make_flow(name, 7, context_features, dtype=torch.float64)
    z, context = inputs(flow, 2, 5)
    out, log_det = flow(z, context)
    back, minus_log_det = flow.inverse(out, context)
    torch.testing.assert_close(back, z)
    assert log_det.shape == minus_log_det.shape == (2, 5)
    assert not log_det.any()
    assert not minus_log_det.any()
    assert not torch.allclose(out, z)


@every_flow
@with_and_without_context
def test_gradients(name, context_features):
    flow = make_flow(name, 4, context_features, dtype=torch.float64)
    names = [n for n, _ in flow.named_parameters()]
    z, context = inputs(flow, 3)
    arguments = [z] if context is None else [z, context]
    parameters = [p.detach().requires_grad_() for p in flow.parameters()]
    for t in arguments:
        t.requires_grad_()

    def call(*tensors):
        given, own = tensors[: len(arguments)], tensors[len(arguments) :]
        return torch.func.functional_call(flow, dict(zip(names, own, strict=True)), given)

    assert torch.autograd.gradcheck(call, (*arguments, *parameters))


@every_flow
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtypes(name, dtype):
    flow = make_flow(name, 6, 3).to(dtype)
    z, context = inputs(flow, 8, dtype=dtype)
    out, log_det = flow(z, context)
    full = torch.float64 if dtype == torch.float64 else torch.float32
    assert (out.dtype, log_det.dtype) == (dtype, full)
    oracle, oracle_log_det = flow.double()(z.double(), context.double())
    # Parameters come out of a linear layer in the flow's own dtype.
    tolerance = 20 * torch.finfo(dtype).eps
    torch.testing.assert_close(out.double(), oracle, atol=tolerance, rtol=tolerance)
    torch.testing.assert_close(log_det.double(), oracle_log_det, atol=tolerance, rtol=tolerance)


@every_flow
def test_autocast(name):
    flow = make_flow(name, 6, 3)
    z, context = inputs(flow, 8, dtype=torch.float32)
    expected, expected_log_det = flow(z, context)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out, log_det = flow(z, context)
    assert (out.dtype, log_det.dtype) == (torch.float32, torch.float32)
    torch.testing.assert_close(out, expected, atol=0.1, rtol=0.1)
    torch.testing.assert_close(log_det, expected_log_det, atol=0.1, rtol=0.1)


@every_flow
@pytest.mark.parametrize("batch", [(), (0,), (4,), (2, 3, 4)])
def test_batches(name, batch):
    flow = make_flow(name, 5, 3, dtype=torch.float64)
    z, context = inputs(flow, *batch)
    out, log_det = flow(z, context)
    assert (out.shape, log_det.shape) == ((*batch, 5), batch)
    rows = [flow(row, c) for row, c in zip(z.reshape(-1, 5), context.reshape(-1, 3), strict=True)]
    for row, single, single_log_det in zip(out.reshape(-1, 5), *zip(*rows, strict=True), strict=True) if rows else []:
        torch.testing.assert_close(row, single)
        assert single_log_det.shape == ()


@every_flow
def test_batches_broadcast(name):
    flow = make_flow(name, 5, 3, dtype=torch.float64)
    z, context = torch.randn(4, 1, 5).double(), torch.randn(6, 3).double()
    out, log_det = flow(z, context)
    expected, expected_log_det = flow(z.expand(4, 6, 5), context.expand(4, 6, 3))
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(log_det, expected_log_det)
    assert log_det.shape == (4, 6)


@every_flow
@with_and_without_context
def test_vmap(name, context_features):
    flow = make_flow(name, 5, context_features, dtype=torch.float64)
    z, context = inputs(flow, 2, 4)
    dims = (0, None if context is None else 0)
    for actual, expected in zip(vmap(vmap(flow, dims), dims)(z, context), flow(z, context), strict=True):
        torch.testing.assert_close(actual, expected)
    if hasattr(flow, "inverse"):
        for actual, expected in zip(vmap(flow.inverse, dims)(z, context), flow.inverse(z, context), strict=True):
            torch.testing.assert_close(actual, expected)


@every_flow
def test_one_graph(name):
    flow = make_flow(name, 5, 3)
    z, context = inputs(flow, 4, dtype=torch.float32)
    compiled = torch.compile(flow, backend="eager", fullgraph=True)
    for actual, expected in zip(compiled(z, context), flow(z, context), strict=True):
        torch.testing.assert_close(actual, expected)


@every_flow
def test_starts_near_the_identity(name):
    flow = FLOWS[name](6)
    z = torch.randn(100, 6)
    out, log_det = flow(z)
    assert log_det.abs().max() < 0.1
    if name != "householder":
        assert (out - z).abs().mean() < 0.1


@every_flow
def test_every_input_reaches_every_parameter(name):
    flow = FLOWS[name](4, 3, dtype=torch.float64)
    z, context = inputs(flow, 50)
    out, log_det = flow(z, context)
    (out.square().sum() + log_det.square().sum() + out.sum()).backward()
    unused = {p for p, t in flow.named_parameters() if t.grad is None or not t.grad.any()}
    assert not unused


@with_and_without_context
@pytest.mark.parametrize("negative_slope", [0.0, 0.2, 1.0])
@pytest.mark.parametrize("features", [1, 2, 7])
def test_inverse_of_leaky_planar(features, negative_slope, context_features):
    flow = PlanarFlow(
        features, context_features, activation="leaky_relu", negative_slope=negative_slope, dtype=torch.float64
    )
    with torch.no_grad():
        flow.bias.add_(torch.randn_like(flow.bias))
    z, context = inputs(flow, 2, 50)
    out, log_det = flow(z, context)
    back, minus_log_det = flow.inverse(out, context)
    torch.testing.assert_close(back, z, atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(minus_log_det, -log_det, atol=1e-9, rtol=1e-9)
    # Both branches are there.
    assert negative_slope == 1.0 or len(log_det.unique()) >= 2


def test_gradients_of_the_inverse_of_leaky_planar():
    flow = make_flow("planar-leaky", 4, 3, dtype=torch.float64)
    z, context = inputs(flow, 5)
    assert torch.autograd.gradcheck(lambda *a: flow.inverse(*a), (z.requires_grad_(), context.requires_grad_()))


def test_leaky_planar_without_direction_is_a_translation():
    flow = PlanarFlow(3, activation="leaky_relu")
    with torch.no_grad():
        flow.bias.copy_(torch.tensor([0.0, 0.0, 0.0, 1.0, 2.0, 3.0, -0.5]))
    flow, z = flow.double(), torch.randn(4, 3).double()
    out, log_det = flow(z)
    shift = 0.1 * torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    torch.testing.assert_close(out, z - shift, atol=1e-14, rtol=0.0)
    torch.testing.assert_close(flow.inverse(out)[0], z)
    assert not log_det.any()


def test_only_leaky_planar_has_an_inverse():
    tanh, leaky, z = PlanarFlow(4), PlanarFlow(4, activation="leaky_relu"), torch.randn(5, 4)
    assert not hasattr(tanh, "inverse")
    with pytest.raises(NotImplementedError, match=r"no inverse: flow 1 \(PlanarFlow\) has none"):
        FlowSequence(leaky, tanh).inverse(z)
    chain = FlowSequence(leaky, make_flow("planar-leaky", 4, 0))
    torch.testing.assert_close(chain.inverse(chain(z)[0])[0], z, atol=1e-4, rtol=1e-4)


def test_planar_errors():
    with pytest.raises(ValueError, match="activation must be one of tanh, leaky_relu, got 'relu'"):
        PlanarFlow(4, activation="relu")
    with pytest.raises(ValueError, match=r"negative_slope must be from 0 to 1, got 1\.5"):
        PlanarFlow(4, activation="leaky_relu", negative_slope=1.5)


def test_planar_without_direction_is_a_translation():
    flow = PlanarFlow(3)
    with torch.no_grad():
        flow.bias.copy_(torch.tensor([0.0, 0.0, 0.0, 1.0, 2.0, 3.0, 0.5]))
    z = torch.randn(4, 3)
    out, log_det = flow(z)
    torch.testing.assert_close(out, z + torch.tensor(0.5).tanh() * torch.tensor([1.0, 2.0, 3.0]))
    assert not log_det.any()


@pytest.mark.parametrize("scale", [1.0, 10.0, 100.0])
def test_extreme_parameters_stay_finite(scale):
    for name in FLOWS:
        if name == "linear-iaf":
            continue
        flow = FLOWS[name](5, dtype=torch.float32)
        with torch.no_grad():
            flow.bias.copy_(scale * torch.randn_like(flow.bias))
        out, log_det = flow(torch.randn(50, 5))
        (out.sum() + log_det.sum()).backward()
        assert out.isfinite().all(), name
        assert log_det.isfinite().all(), name
        assert flow.bias.grad.isfinite().all(), name


def test_orthogonalise():
    columns = orthogonalise(torch.randn(10, 16, 8, dtype=torch.float64), 30)
    torch.testing.assert_close(columns.mT @ columns, torch.eye(8).double().expand(10, 8, 8))


def test_linear_iaf_is_autoregressive():
    report = check_autoregressive(LinearInverseAutoregressiveFlow(5), 5, diagonal="required")
    assert (report.forbidden, report.used) == (10, 15)


def test_linear_iaf_in_packed_row_major_order():
    flow = LinearInverseAutoregressiveFlow(3)
    with torch.no_grad():
        flow.bias.copy_(torch.tensor([2.0, 3.0, 5.0]))
    out, _ = flow(torch.eye(3))
    assert out.T.tolist() == [[1.0, 0.0, 0.0], [2.0, 1.0, 0.0], [3.0, 5.0, 1.0]]


@every_flow
def test_errors(name):
    plain, conditional = FLOWS[name](4), FLOWS[name](4, 3)
    with pytest.raises(ValueError, match=r"z must have shape \(\*, 4\), got \(2, 5\)"):
        plain(torch.randn(2, 5))
    with pytest.raises(ValueError, match="context must be None"):
        plain(torch.randn(2, 4), torch.randn(2, 3))
    with pytest.raises(ValueError, match=r"context must be given, shape \(\*, 3\)"):
        conditional(torch.randn(2, 4))
    with pytest.raises(ValueError, match=r"context must have shape \(\*, 3\), got \(2, 4\)"):
        conditional(torch.randn(2, 4), torch.randn(2, 4))
    with pytest.raises(ValueError, match="batch shapes of z and context must broadcast"):
        conditional(torch.randn(2, 4), torch.randn(5, 3))
    with pytest.raises(ValueError, match="features must be >= 1, got 0"):
        FLOWS[name](0)
    with pytest.raises(ValueError, match="context_features must be >= 0, got -1"):
        FLOWS[name](4, -1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "diagonal"}, "kind must be one of orthogonal, householder, triangular, got 'diagonal'"),
        ({"kind": "householder", "columns": 2}, "columns must be None with kind='householder', got 2"),
        ({"columns": 5}, "columns must be between 1 and features, 4, got 5"),
        ({"permutation": [1, 0, 2, 3]}, "permutation must be None with kind='orthogonal'"),
        ({"kind": "triangular", "permutation": [1, 1, 2, 3]}, "permutation must be one of 0, ..., 3"),
        ({"iterations": 0}, "iterations must be >= 1, got 0"),
        ({"kind": "householder", "reflections": 0}, "reflections must be >= 1, got 0"),
    ],
)
def test_sylvester_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        SylvesterFlow(4, **arguments)


def test_householder_errors():
    with pytest.raises(ValueError, match="reflections must be >= 1, got 0"):
        HouseholderFlow(4, 0)


def test_a_chain_of_all():
    chain = FlowSequence(*(make_flow(name, 5, 3, dtype=torch.float64) for name in FLOWS))
    z, context = torch.randn(2, 5).double(), torch.randn(2, 3).double()
    out, log_det = chain(z, context)
    jacobian = vmap(jacrev(lambda z, c: chain(z, c)[0]))(z, context)
    torch.testing.assert_close(log_det, torch.linalg.slogdet(jacobian).logabsdet, atol=1e-7, rtol=1e-7)
    assert out.shape == (2, 5)
