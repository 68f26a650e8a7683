"""Several steps in one autograd function, against one function for each step."""

from __future__ import annotations

from unittest import mock

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from fastvae.nn import InverseAutoregressiveFlow, MaskedAutoregressiveFlow
from fastvae.nn.flows import _AutoregressiveSteps
from tests.support.implementations import GPU

pytestmark = pytest.mark.skipif(GPU, reason="the steps are those of the C++ kernels")

NAME = "_AutoregressiveFlowSteps"
OPTIONS = {
    "plain": {},
    "context": {"context_features": 3},
    "weight norm": {"weight_norm": True},
    "residual": {"context_features": 2, "residual": True, "weight_norm": True},
    "location": {"kind": "location_only"},
}


def made(options, dtype=torch.float32, steps=3):
    flow = InverseAutoregressiveFlow(5, (9, 9, 9), steps=steps, **options).to(dtype)
    z = torch.randn(7, 5, dtype=dtype, requires_grad=True)
    features = options.get("context_features")
    context = torch.randn(7, features, dtype=dtype, requires_grad=True) if features else None
    with torch.no_grad():
        flow(z, context)  # data-dependent initialisation
        for p in flow.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return flow, z, context


def run(flow, z, context, **kwargs):
    """Outputs and gradients, of all steps at once and of one after another."""
    leaves = [t for t in (z, context, *flow.parameters()) if t is not None and t.requires_grad]

    def once():
        out, log_det = flow(z, context, **kwargs)
        gradients = torch.autograd.grad((out.square().sum() + log_det.square().sum()), leaves, allow_unused=True)
        return out.grad_fn, [out, log_det, *gradients]

    with mock.patch.object(_AutoregressiveSteps, "_at_once", return_value=None):
        expected = once()
    found = once()
    assert NAME in found[0].name()
    assert NAME not in expected[0].name()
    return found[1], expected[1]


@pytest.mark.parametrize("needs_z", [False, True])
@pytest.mark.parametrize("log_det_map", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_bits_are_those_of_single_steps(options, dtype, log_det_map, needs_z):
    flow, z, context = made(options, dtype)
    found, expected = run(flow, z.requires_grad_(needs_z), context, log_det_map=log_det_map)
    for actual, wanted in zip(found, expected, strict=True):
        assert torch.equal(actual, wanted)


def test_wide_rows_and_many_samples():
    flow = MaskedAutoregressiveFlow(33, (70, 50), steps=2, kind="exp", activation="relu")
    z = torch.randn(2 * 64 + 5, 40)[:, :33]
    with torch.no_grad():
        expected = flow.inverse(z)
    out, log_det = flow.inverse(z)
    assert NAME in out.grad_fn.name()
    assert torch.equal(out, expected[0])
    assert torch.equal(log_det, expected[1])


@pytest.mark.parametrize("frozen", [0, 1, 2])
def test_frozen_step_has_no_gradients(frozen):
    flow, z, context = made({})
    flow.networks[frozen].requires_grad_(False)
    found, expected = run(flow, z, context)
    for actual, wanted in zip(found, expected, strict=True):
        assert torch.equal(actual, wanted)
    out, log_det = flow(z.detach(), context)
    (out.sum() + log_det.sum()).backward()
    of_step = [[p.grad is None for p in network.parameters()] for network in flow.networks]
    assert [set(missing) for missing in of_step] == [{step == frozen} for step in range(3)]


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("used", ["both", "out", "log_det"])
def test_first_and_second_derivatives(options, used):
    flow, z, context = made(options, torch.float64, steps=2)
    leaves = [t for t in (z, context, *flow.parameters()) if t is not None]

    def function(*_):
        out, log_det = flow(z, context)
        assert NAME in out.grad_fn.name()
        return {"both": (out, log_det), "out": (out,), "log_det": (log_det,)}[used]

    assert torch.autograd.gradcheck(function, leaves, fast_mode=True)
    assert torch.autograd.gradgradcheck(function, leaves, fast_mode=True)


def test_one_step_and_no_gradients_need_no_function_for_all():
    flow, z, context = made({}, steps=1)
    assert NAME not in flow(z, context)[0].grad_fn.name()
    flow, z, context = made({})
    with torch.no_grad():
        assert flow(z, context)[0].grad_fn is None


def test_first_batch_of_normalised_weights_goes_step_by_step():
    flow = InverseAutoregressiveFlow(4, (6,), steps=2, weight_norm=True)
    z = torch.randn(50, 4)
    out, _ = flow(z)
    assert NAME not in out.grad_fn.name()
    again, _ = flow(z)
    assert NAME in again.grad_fn.name()
    assert torch.equal(out, again)


def test_hooks_see_every_step():
    flow, z, context = made({})
    seen = []
    flow.networks[1].register_forward_hook(lambda module, args, output: seen.append(module))
    out, _ = flow(z, context)
    assert seen == [flow.networks[1]]
    assert NAME not in out.grad_fn.name()


def test_a_counter_of_the_backward_pass_alone_changes_no_gradient():
    flow, z, context = made({})

    def counted():
        out, log_det = flow(z, context)
        counter = FlopCounterMode(display=False)
        with counter:
            gradients = torch.autograd.grad(out.square().sum() + log_det.sum(), [z, *flow.parameters()])
        return counter.get_total_flops(), gradients

    flops, gradients = counted()
    with mock.patch.object(_AutoregressiveSteps, "_at_once", return_value=None):
        expected, wanted = counted()
    assert flops == expected > 0
    assert all(map(torch.equal, gradients, wanted))


def test_outputs_and_gradients_outlive_their_graph():
    flow, z, context = made({})
    out, log_det = flow(z, context)
    first = torch.autograd.grad((out.sum() + log_det.sum()), z, retain_graph=True)[0].clone()
    assert torch.equal(torch.autograd.grad((out.sum() + log_det.sum()), z)[0], first)
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(log_det.sum(), z)
