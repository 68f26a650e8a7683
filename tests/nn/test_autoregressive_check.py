"""The check of autoregressive structure: passes what is right, names what is not."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

from fastvae.nn import (
    MADE,
    AutoregressiveError,
    InverseAutoregressiveFlow,
    MaskedAutoregressiveFlow,
    PlanarFlow,
    check_autoregressive,
)

D = 5


@pytest.mark.parametrize("context_features", [0, 2])
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("order", [None, [3, 0, 4, 1, 2]])
def test_made(order, residual, context_features):
    widths = (24, 24, 24)
    made = MADE(D, widths, params_per_feature=3, context_features=context_features, order=order, residual=residual)
    report = check_autoregressive(made)
    assert (report.points, report.forbidden, report.used, report.unused) == (16, 3 * 15, 3 * 10, 0)
    assert report.smallest_used > 0


@pytest.mark.parametrize("flow_class", [InverseAutoregressiveFlow, MaskedAutoregressiveFlow])
@pytest.mark.parametrize("kind", ["gated", "location_only"])
@pytest.mark.parametrize("weight_norm", [False, True])
def test_flows(flow_class, kind, weight_norm):
    flow = flow_class(D, (24, 24), steps=2, context_features=2, kind=kind, weight_norm=weight_norm)
    params = 1 if kind == "location_only" else 2
    report = check_autoregressive(flow)
    # Of each step its network, and the map: what stands behind a feature.
    assert report.forbidden == 2 * (params * 15 + 10)
    assert report.used == 2 * (params * 10 + 15)


def test_both_directions_of_a_flow():
    flow = InverseAutoregressiveFlow(D, (24,), order=[4, 3, 2, 1, 0])
    for direction in (flow.forward, flow.inverse):
        check = check_autoregressive(
            lambda z, call=direction: call(z.float())[0].double(), D, order=[4, 3, 2, 1, 0], diagonal="required"
        )
        assert check.forbidden == 10


def test_module_stays_as_it_was():
    made = MADE(D, (24,), weight_norm=True)
    before = copy.deepcopy(made.state_dict())
    state = torch.get_rng_state()
    first, second = check_autoregressive(made), check_autoregressive(made)
    assert first == second
    assert made.training
    assert torch.equal(state, torch.get_rng_state())
    for name, t in made.state_dict().items():
        assert t.dtype == before[name].dtype
        assert torch.equal(t, before[name])
    assert all(p.requires_grad and p.grad is None for p in made.parameters())


def test_under_no_grad():
    with torch.no_grad():
        assert check_autoregressive(MADE(D, (24,))).used == 20


def test_one_feature():
    report = check_autoregressive(MADE(1, (4,), context_features=2))
    assert (report.forbidden, report.used) == (2, 0)


class Net(nn.Module):
    """A network of two masked layers, written as people write it, to be broken in various ways."""

    def __init__(self, hidden=24, first_degree=1, context_features=0, strict=True):
        super().__init__()
        degrees = first_degree + torch.arange(hidden) % (D - first_degree + (0 if strict else 1))
        self.hidden, self.out = nn.Linear(D, hidden), nn.Linear(hidden, D)
        self.context = nn.Linear(context_features, hidden) if context_features else None
        places = torch.arange(D)
        self.register_buffer("mask_in", (places + 1 <= degrees[:, None]).float())
        self.register_buffer("mask_out", (degrees <= places[:, None] + (0 if strict else 1)).float())

    def forward(self, x, context=None):
        h = functional.linear(x, self.hidden.weight * self.mask_in, self.hidden.bias)
        if context is not None:
            h = h + self.context(context)
        return functional.linear(h.relu(), self.out.weight * self.mask_out, self.out.bias)


def test_network_of_ones_own():
    assert check_autoregressive(Net(), D).forbidden == 15
    assert check_autoregressive(Net(first_degree=0, context_features=2), D, context_features=2).used == 10


def test_catches_a_feature_that_sees_itself():
    with pytest.raises(
        AutoregressiveError, match=r"output 0 depends on input 0, which does not stand before"
    ) as caught:
        check_autoregressive(Net(strict=False), D)
    assert (caught.value.output, caught.value.input) == (0, 0)
    assert isinstance(caught.value, ValueError)
    # What is wrong for parameters is right for a map of the features themselves.
    assert check_autoregressive(Net(strict=False), D, diagonal="required").forbidden == 10
    assert check_autoregressive(Net(), D, diagonal="allowed").forbidden == 10
    with pytest.raises(AutoregressiveError, match="output 0 does not depend on input 0"):
        check_autoregressive(Net(), D, diagonal="required")


def test_catches_a_context_that_misses_the_first_feature():
    # The mask rule of nflows: degrees of hidden units begin at 1, and none carries the context to the first output.
    net = Net(first_degree=1, context_features=2)
    with pytest.raises(AutoregressiveError, match="output 0 does not depend on the context") as caught:
        check_autoregressive(net, D, context_features=2)
    assert (caught.value.output, caught.value.input) == (0, None)


def test_catches_a_wrong_order():
    made = MADE(D, (24,), order=[4, 3, 2, 1, 0])
    with pytest.raises(AutoregressiveError, match=r"output 0 \(parameter 0\) depends on input 1"):
        check_autoregressive(lambda x: made(x.float()).double(), D)


def test_catches_one_weight_and_names_it():
    net = Net()
    unit = int(net.mask_in[:, 3].argmax())  # sees inputs 0 to 3
    net.mask_out[2, unit] = 1.0
    with pytest.raises(AutoregressiveError, match=r"output 2 depends on input 2.* \(2 such pairs\)"):
        check_autoregressive(net, D)


def test_catches_a_mask_applied_once():
    # Zeros that no forward pass enforces last until the first step of an optimiser.
    net = Net()
    with torch.no_grad():
        net.hidden.weight *= net.mask_in
        net.out.weight *= net.mask_out
    net.mask_in.fill_(1.0)
    net.mask_out.fill_(1.0)
    check_autoregressive(net, D, perturb=False)
    with pytest.raises(AutoregressiveError, match="output 0 depends on input 0"):
        check_autoregressive(net, D)


def test_weights_that_happen_to_be_zero():
    net = Net()
    nn.init.zeros_(net.out.weight)
    check_autoregressive(net, D)
    with pytest.raises(AutoregressiveError, match=r"output 1 does not depend on input 0, .* \(10 such pairs\)"):
        check_autoregressive(net, D, perturb=False)


def test_layers_too_narrow_to_use_all():
    made = MADE(6, (2,))
    with pytest.raises(AutoregressiveError, match="does not depend on input"):
        check_autoregressive(made)
    report = check_autoregressive(made, require_used=False)
    assert report.forbidden == 2 * 21
    assert report.used + report.unused == 2 * 15
    assert report.unused > 0


def test_names_the_network_of_a_flow():
    flow = InverseAutoregressiveFlow(D, (24,), steps=2)
    flow.networks[1].context_term = lambda x, context: x.sum(-1, keepdim=True).expand(*x.shape[:-1], 24)
    with pytest.raises(AutoregressiveError, match=r"^network 1: output 0 \(parameter 0\) depends on input 0"):
        check_autoregressive(flow)


def test_flows_that_are_not_autoregressive():
    with pytest.raises(AutoregressiveError):
        check_autoregressive(PlanarFlow(4), 4, diagonal="allowed")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"features": 4}, "features must be None or those of the module, 5, got 4"),
        ({"diagonal": "any"}, "diagonal must be 'forbidden', 'required' or 'allowed', got 'any'"),
        ({"points": 0}, "points must be >= 1, got 0"),
        ({"order": [4, 3, 2, 1, 0]}, "order and context_features must not be given for a MADE: it has its own"),
        ({"context_features": 2}, "order and context_features must not be given for a MADE: it has its own"),
    ],
)
def test_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        check_autoregressive(MADE(D, (8,)), **arguments)


def test_errors_of_callables():
    with pytest.raises(ValueError, match="features must be given, >= 1, for a function, got None"):
        check_autoregressive(lambda x: x)
    with pytest.raises(ValueError, match=r"order must be a permutation of 0, ..., 1, got \[0, 2\]"):
        check_autoregressive(lambda x: x, 2, order=[0, 2])
    with pytest.raises(ValueError, match=r"module must return shape \(16, \*, 2\) for 16 points, got \(16, 3\)"):
        check_autoregressive(lambda x: x.new_zeros(16, 3), 2)
    with pytest.raises(ValueError, match="must return finite numbers"):
        check_autoregressive(lambda x: x / 0.0, 2)
