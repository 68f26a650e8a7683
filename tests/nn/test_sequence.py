"""Chains of flows."""

from collections import OrderedDict

import pytest
import torch
from torch import nn

from fastvae.nn import (
    FlowSequence,
    HouseholderFlow,
    InverseAutoregressiveFlow,
    LinearInverseAutoregressiveFlow,
    MaskedAutoregressiveFlow,
    PlanarFlow,
)


def chain():
    return FlowSequence(
        InverseAutoregressiveFlow(4, (8,), context_features=3),
        HouseholderFlow(4, 2),
        FlowSequence(LinearInverseAutoregressiveFlow(4, 3), MaskedAutoregressiveFlow(4, (8,))),
    ).double()


def test_forward_goes_through_all():
    flows, z, context = chain(), torch.randn(5, 4).double(), torch.randn(5, 3).double()
    out, log_det = flows(z, context)
    expected, first = flows[0](z, context)
    expected, second = flows[1](expected)
    expected, third = flows[2][0](expected, context)
    expected, fourth = flows[2][1](expected)
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(log_det, first + second + third + fourth)


def test_inverse():
    flows, z, context = chain(), torch.randn(2, 5, 4).double(), torch.randn(5, 3).double()
    out, log_det = flows(z, context)
    back, minus_log_det = flows.inverse(out, context)
    torch.testing.assert_close(back, z)
    torch.testing.assert_close(minus_log_det, -log_det)
    assert log_det.shape == (2, 5)


def test_is_a_sequential():
    flows = chain()
    assert len(flows) == 3
    assert isinstance(flows[1], HouseholderFlow)
    assert isinstance(flows[-1], FlowSequence)
    assert isinstance(flows[:2], FlowSequence)
    assert [type(flow) for flow in flows[1:]] == [HouseholderFlow, FlowSequence]
    assert "2.0.bias" in flows.state_dict()
    named = FlowSequence(OrderedDict(first=PlanarFlow(4)))
    named.append(PlanarFlow(4))
    assert [name for name, _ in named.named_children()] == ["first", "1"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_empty_is_the_identity(dtype):
    z = torch.randn(2, 3, 4, dtype=dtype)
    for out, log_det in (FlowSequence()(z), FlowSequence().inverse(z)):
        assert torch.equal(out, z)
        assert log_det.shape == (2, 3)
        assert not log_det.any()


def test_flow_without_inverse_is_named():
    z = torch.randn(2, 4)
    with pytest.raises(NotImplementedError, match=r"no inverse: flow 1 \(PlanarFlow\) has none"):
        FlowSequence(HouseholderFlow(4), PlanarFlow(4)).inverse(z)
    nested = FlowSequence(HouseholderFlow(4), FlowSequence(PlanarFlow(4)))
    with pytest.raises(NotImplementedError, match=r"flow 1 \(flow 0 \(PlanarFlow\)\) has none"):
        nested.inverse(z)


def test_context_nobody_takes():
    flows = FlowSequence(HouseholderFlow(4), FlowSequence(PlanarFlow(4)))
    for direction in (flows.forward, flows.inverse):
        with pytest.raises(ValueError, match="context must be None: none of the flows takes one"):
            direction(torch.randn(2, 4), torch.randn(2, 3))


def test_missing_context():
    with pytest.raises(ValueError, match="context must be given"):
        chain()(torch.randn(5, 4).double())


class Shift(nn.Module):
    """A flow of a user's own, which says nothing about contexts."""

    def forward(self, z, context=None):
        return z if context is None else z + context, z.new_zeros(z.shape[:-1])


def test_flows_of_ones_own():
    z, context = torch.randn(2, 4), torch.randn(2, 4)
    flows = FlowSequence(PlanarFlow(4), Shift())
    torch.testing.assert_close(flows(z, context)[0] - flows(z)[0], context)
