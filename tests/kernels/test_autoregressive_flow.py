"""A network's step as one call of the Triton launchers: against the reference in float64, and as a compiler sees it."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from fastvae.kernels import autoregressive_flow_gradients as gradients
from fastvae.ops._network import structure_fields
from fastvae.ops.autoregressive_flow import FWD, autoregressive_flow
from fastvae.reference.affine_flow import KINDS
from tests.support.implementations import GPU
from tests.support.networks import NETWORKS, network, params_of
from tests.support.oracle import check, run_with_gradients

DTYPES = [torch.float32, torch.float64, torch.float16, *([torch.bfloat16] if GPU else [])]
FORMS = [
    "plain", "around a vector", "residual without blocks", "residual, two blocks, context", "interleaved", "no bias",
    "everything",
]  # fmt: skip


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("entry", ["flow", "made"])
def test_forward_and_backward(entry, name):
    form = NETWORKS[name]
    check(lambda: form.problem(entry, form.tensors((6,))), "triton", torch.float32)


@pytest.mark.parametrize("kind", KINDS)
def test_kinds(kind):
    form = network(6, (21, 18), params=params_of(kind), context=True, layout="interleaved")
    check(lambda: form.problem("flow", form.tensors((5,)), kind), "triton", torch.float32)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["around a vector", "everything"])
def test_dtypes(name, dtype):
    """In half types pre-activations are kept in float32 beside values of half the size."""
    form = NETWORKS[name]
    check(lambda: form.problem("flow", form.tensors((9,))), "triton", dtype)


@pytest.mark.parametrize("kind", ["gated", "exp", "location_only"])
def test_shares(kind):
    form = network(6, (21, 18), params=params_of(kind), context=True, layout="interleaved")
    check(lambda: form.problem("flow", form.tensors((5,)), kind, log_det_map=True), "triton", torch.float32)


@pytest.mark.parametrize("batch", [(0,), (), (2, 3)])
def test_batches(batch):
    form = NETWORKS["everything"]
    check(lambda: form.problem("flow", form.tensors(batch)), "triton", torch.float32)


@pytest.mark.parametrize("weight_scale", [False, True])
def test_rows_that_are_split(weight_scale, monkeypatch):
    """Parts of gradients are summed, those of biases too; with four layers the weights take two launches."""
    monkeypatch.setattr(gradients, "_LEAST_ROWS", 16)
    form = network(5, (9, 8, 7), weight_scale=weight_scale)
    check(lambda: form.problem("flow", form.tensors((40,))), "triton", torch.float32)


@pytest.mark.parametrize("wanted", [0, 1, 3])
def test_only_some_gradients_wanted(wanted):
    form = NETWORKS["context"]
    tensors = form.tensors((4,))
    loss = sum(o.square().sum() for o in form.problem("flow", tensors).outputs("triton"))
    expected = torch.autograd.grad(loss, tensors)
    alone = [t.detach().requires_grad_(i == wanted) for i, t in enumerate(tensors)]
    loss = sum(o.square().sum() for o in form.problem("flow", alone).outputs("triton"))
    assert torch.equal(torch.autograd.grad(loss, alone[wanted])[0], expected[wanted])


def test_weights_are_multiplied_only_for_their_gradients(monkeypatch):
    monkeypatch.setattr(gradients, "_multiply_all_gradients", lambda *_: pytest.fail("nobody asked for them"))
    form = NETWORKS["plain"]
    z, *weights = form.tensors((4,))
    out, _ = form.problem("flow", [z, *(t.detach() for t in weights)]).outputs("triton")
    assert torch.autograd.grad(out.sum(), z)[0].isfinite().all()


@pytest.mark.parametrize("output", [0, 1], ids=["out", "log_det"])
def test_only_one_output_used(output):
    form = NETWORKS["plain"]
    problem = form.problem("flow", form.tensors((4,)))
    expected = torch.autograd.grad(problem.outputs("reference")[output].sum(), problem.inputs)
    got = torch.autograd.grad(problem.outputs("triton")[output].sum(), problem.inputs)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


def test_second_derivative_is_that_of_the_reference():
    form = network(3, (6,), activation="tanh")
    problem = form.problem("flow", form.tensors((2,)))
    found = []
    for impl in ("triton", "reference"):
        out, _ = problem.outputs(impl)
        (first,) = torch.autograd.grad(out.square().sum(), problem.inputs[0], create_graph=True)
        found.append(torch.autograd.grad(first.square().sum(), problem.inputs))
    torch.testing.assert_close(*found)


def test_gains_go_through_norms():
    """The gradients of normalised weights and of their gains, one row of a weight being 0."""
    form = network(5, (9, 8), weight_scale=True)
    tensors = form.tensors((4,))
    with torch.no_grad():
        tensors[1][2] = 0.0
    results = []
    for impl in ("triton", "reference"):
        z, term, parameters = form.unpack(tensors)
        outputs = autoregressive_flow(z, term, parameters._replace(normalized=True), form.structure, impl=impl)
        results.append(torch.autograd.grad([o.square().sum() for o in outputs], tensors))
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["plain", "residual", "everything"])
@pytest.mark.parametrize(("kind", "shares"), [(None, False), ("gated", False), ("gated", True)])
def test_shapes_of_the_op_are_those_of_the_launcher(kind, shares, name, dtype):
    """What a compiler is told of the GPU's op: all but the numbers."""
    form = NETWORKS[name]
    z, term, (weights, biases, scales, *_) = form.unpack([t.detach().to(dtype) for t in form.tensors((7,))])
    optional = (term, *biases, *scales)
    tensors, present = [*weights, *(t for t in optional if t is not None)], [t is not None for t in optional]
    fields, degrees = structure_fields(form.structure, kind), form.structure.degree_tensors()
    with FakeTensorMode() as mode:
        there = [torch.empty_like(mode.from_tensor(t), device="cuda") for t in (z, *tensors, *degrees)]
        told = FWD.dispatched(there[0], there[1 : -len(degrees)], present, there[-len(degrees) :], fields, True, shares)
    launched = FWD.triton(z, tensors, present, degrees, fields, True, shares)
    assert [(t.shape, t.dtype) for t in told] == [(t.shape, t.dtype) for t in launched]
    assert all(t.is_cuda for t in told)


@pytest.mark.parametrize("entry", ["made", "flow", "inverse"])
def test_a_compiler_sees_one_op(entry):
    form = NETWORKS["everything"]
    with FakeTensorMode() as mode, torch.no_grad():
        tensors = [torch.empty_like(mode.from_tensor(t.detach()), device="cuda") for t in form.tensors((4,))]
        graph = make_fx(lambda *p: form.problem(entry, []).call("triton", list(p)))(*tensors)
    ours = [node.target.__name__ for node in graph.graph.nodes if str(node.target).startswith("fastvae")]
    assert ours == [f"autoregressive_{'inverse' if entry == 'inverse' else 'flow'}_fwd.default"]


def test_autocast_multiplies_in_its_dtype():
    """The network in half precision, the affine map in float32."""
    form = NETWORKS["plain"]
    z, term, parameters = form.unpack([t.detach() for t in form.tensors((6,))])
    with torch.autocast("cpu", dtype=torch.float16):
        out, log_det = autoregressive_flow(z, term, parameters, form.structure, impl="triton")
    assert (out.dtype, log_det.dtype) == (torch.float32, torch.float32)
    expected = autoregressive_flow(z, term, parameters, form.structure, impl="reference")
    torch.testing.assert_close((out, log_det), expected, rtol=1e-2, atol=1e-2)


def test_results_are_those_without_gradients():
    form = NETWORKS["everything"]
    problem = form.problem("flow", form.tensors((5,)))
    with torch.no_grad():
        without = problem.outputs("triton")
    assert all(torch.equal(a, b) for a, b in zip(problem.outputs("triton"), without, strict=True))


def test_runs_are_repeatable():
    form = NETWORKS["everything"]
    problem = form.problem("flow", form.tensors((5,)))
    upstream = [torch.randn_like(o) for o in problem.outputs("triton")]
    first, second = (run_with_gradients(problem, "triton", upstream) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
