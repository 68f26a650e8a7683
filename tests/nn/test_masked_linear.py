"""The masked linear layer as a module."""

import copy
import pickle

import pytest
import torch
from torch import nn

from fastvae.nn import MaskedLinear
from fastvae.reference.masked_linear import ACTIVATIONS, mask_of
from tests.support.implementations import IMPLEMENTATIONS, device_of

INS, OUTS = [1, 3, 2, 1, 4], [0, 2, 4, 1, 3, 2]
every_impl = pytest.mark.parametrize("impl", IMPLEMENTATIONS)


def layer_of(**options):
    return MaskedLinear(5, 6, INS, OUTS, **options)


def plain(layer, x):
    """What the layer computes, from nn.Linear's own formula."""
    weight = layer.weight * mask_of(layer.in_degrees, layer.out_degrees)
    if layer.weight_gain is not None:
        norm = weight.norm(dim=-1, keepdim=True)
        weight = layer.weight_gain.unsqueeze(-1) * weight / norm.where(norm > 0, 1.0)
    return ACTIVATIONS[layer.activation or "identity"](nn.functional.linear(x, weight, layer.bias))


def test_is_a_linear_layer():
    """Same parameters, same initialisation, same checkpoint as nn.Linear."""
    torch.manual_seed(1)
    layer = layer_of()
    torch.manual_seed(1)
    linear = nn.Linear(5, 6)
    assert isinstance(layer, nn.Linear)
    assert layer.state_dict().keys() == linear.state_dict().keys()
    for name, value in linear.state_dict().items():
        assert torch.equal(layer.state_dict()[name], value)
    fresh = layer_of()
    fresh.load_state_dict(linear.state_dict())
    assert torch.equal(fresh.weight, linear.weight)


@every_impl
@pytest.mark.parametrize("options", [{}, {"bias": False}, {"activation": "elu"}, {"weight_norm": True}])
@pytest.mark.parametrize("batch", [(7,), (2, 3), (), (0,)])
def test_forward_and_gradients(batch, options, impl):
    device = device_of(impl)
    layer = layer_of(impl=impl, device=device, **options)
    x = torch.randn(*batch, 5, device=device, requires_grad=True)
    leaves = [x, *layer.parameters()]
    y, expected = layer(x), plain(layer, x)
    torch.testing.assert_close(y, expected)
    gradients, oracle = (torch.autograd.grad(t.square().sum(), leaves) for t in (y, expected))
    torch.testing.assert_close(gradients, oracle, rtol=1e-4, atol=1e-5)


@every_impl
def test_masked_gradients_are_exactly_zero(impl):
    device = device_of(impl)
    for weight_norm in (False, True):
        layer = layer_of(weight_norm=weight_norm, impl=impl, device=device)
        layer(torch.randn(7, 5, device=device)).square().sum().backward()
        mask = mask_of(layer.in_degrees, layer.out_degrees)
        assert (layer.weight.grad[~mask] == 0).all()
        assert (layer.weight.grad[mask] != 0).all()


def test_an_optimiser_without_decay_leaves_masked_weights_alone():
    layer = layer_of()
    before = layer.weight.detach().clone()
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        layer(torch.randn(7, 5)).square().sum().backward()
        optimizer.step()
    mask = mask_of(layer.in_degrees, layer.out_degrees)
    assert torch.equal(layer.weight[~mask], before[~mask])
    assert (layer.weight[mask] != before[mask]).all()


@pytest.mark.parametrize("dtype", [torch.bool, torch.float32, torch.uint8])
def test_checkpoint_with_a_mask_loads(dtype):
    """Other libraries keep the mask as a buffer of the layer."""
    layer, fresh = layer_of(), layer_of()
    state = layer.state_dict() | {"mask": mask_of(layer.in_degrees, layer.out_degrees).to(dtype)}
    fresh.load_state_dict(state)
    assert torch.equal(fresh.weight, layer.weight)
    assert "mask" in state, "the caller's own dictionary stays as it was"
    nested = nn.Sequential(layer_of())
    nested.load_state_dict({f"0.{name}": value for name, value in state.items()})
    assert torch.equal(nested[0].weight, layer.weight)


def test_checkpoint_with_another_mask_is_refused():
    layer = layer_of()
    mask = mask_of(layer.in_degrees, layer.out_degrees)
    with pytest.raises(ValueError, match="mask in the checkpoint has other connections"):
        layer_of().load_state_dict(layer.state_dict() | {"mask": ~mask})


def test_degrees_are_structure_not_state():
    layer = MaskedLinear(5, 6, torch.tensor(INS), torch.tensor(OUTS, dtype=torch.int32))
    assert set(layer.state_dict()) == {"weight", "bias"}
    assert (layer.in_degrees.tolist(), layer.out_degrees.tolist()) == (INS, OUTS)
    moved = layer.to(torch.float64).half()
    assert (moved.in_degrees.dtype, moved.weight.dtype) == (torch.int64, torch.float16)
    assert layer.to("meta").in_degrees.device.type == "meta"


def test_given_degrees_are_copied():
    degrees = torch.tensor(INS)
    layer = MaskedLinear(5, 6, degrees, OUTS)
    degrees.zero_()
    assert layer.in_degrees.tolist() == INS


def test_weight_norm_starts_at_the_plain_layer():
    """The gain starts as the norm: nothing changes until it is trained or initialised from data."""
    layer = layer_of(weight_norm=True)
    x = torch.randn(7, 5)
    weight = layer.weight * mask_of(layer.in_degrees, layer.out_degrees)
    torch.testing.assert_close(layer(x), nn.functional.linear(x, weight, layer.bias))
    torch.testing.assert_close(layer.masked_norm(), weight.norm(dim=-1))
    assert layer.weight_scale()[0] == 0  # the output of degree 0 has no connection
    assert layer_of().weight_scale() is None


def test_weight_norm_does_not_depend_on_the_scale_of_the_weight():
    layer, x = layer_of(weight_norm=True), torch.randn(7, 5)
    before = layer(x)
    with torch.no_grad():
        layer.weight.mul_(37.0)
    torch.testing.assert_close(layer(x), before)


@pytest.mark.parametrize("target_std", [1.0, 0.1])
def test_initialize_from_data(target_std):
    layer, x = layer_of(weight_norm=True), 3 * torch.randn(400, 5) + 2
    layer.initialize(layer(x), target_std)
    rows = layer(x)
    torch.testing.assert_close(rows.mean(0), torch.zeros(6), rtol=0, atol=1e-5)
    connected = mask_of(layer.in_degrees, layer.out_degrees).any(-1)
    std = rows.std(0, correction=0)
    torch.testing.assert_close(std[connected], torch.full((5,), target_std), rtol=1e-4, atol=1e-5)
    assert (std[~connected] == 0).all()


def test_initialize_without_a_spread_stays_finite():
    """One row, or a constant unit, has no standard deviation to divide by."""
    layer = layer_of(weight_norm=True)
    layer.initialize(layer(torch.ones(1, 5)))
    assert torch.isfinite(layer(torch.randn(3, 5))).all()


def test_functional_call_and_per_example_gradients():
    layer, x = layer_of(activation="tanh"), torch.randn(4, 5)
    weights = {name: p.detach() for name, p in layer.named_parameters()}

    def loss(weights, x):
        return torch.func.functional_call(layer, weights, (x,)).square().sum()

    together = torch.func.vmap(torch.func.grad(loss), (None, 0))(weights, x)
    for n in range(4):
        expected = torch.autograd.grad(layer(x[n]).square().sum(), layer.weight)[0]
        torch.testing.assert_close(together["weight"][n], expected)


@pytest.mark.parametrize("weight_norm", [False, True])
def test_compile(weight_norm):
    layer, x = layer_of(activation="elu", weight_norm=weight_norm), torch.randn(7, 5)
    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), layer(x))
    actual, expected = (torch.autograd.grad(f(x).square().sum(), layer.weight) for f in (compiled, layer))
    torch.testing.assert_close(actual, expected)


def test_autocast():
    layer, x = layer_of(activation="elu"), torch.randn(7, 5)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    torch.testing.assert_close(y.float(), layer(x), rtol=0.03, atol=0.03)
    y.float().sum().backward()
    assert layer.weight.grad.dtype == torch.float32


@pytest.mark.parametrize("weight_norm", [False, True])
def test_pickle_deepcopy_and_state_dict(weight_norm):
    layer, x = layer_of(activation="silu", weight_norm=weight_norm), torch.randn(7, 5)
    fresh = layer_of(activation="silu", weight_norm=weight_norm)
    fresh.load_state_dict(layer.state_dict())
    for twin in (pickle.loads(pickle.dumps(layer)), copy.deepcopy(layer), fresh):
        assert torch.equal(twin(x), layer(x))
        assert repr(twin) == repr(layer)


def test_repr_names_what_is_special():
    assert "activation=elu" in repr(layer_of(activation="elu"))
    assert "weight_norm=True" in repr(layer_of(weight_norm=True))
    assert "activation" not in repr(layer_of())


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: MaskedLinear(5, 6, INS[:4], OUTS), ValueError, "in_degrees must be 5 integers"),
        (lambda: MaskedLinear(5, 6, INS, [*OUTS, 1]), ValueError, "out_degrees must be 6 integers"),
        (lambda: MaskedLinear(5, 6, torch.ones(5), OUTS), TypeError, r"in_degrees\[0\] must be an integer, got 1.0"),
        (lambda: MaskedLinear(5, 6, INS, [OUTS]), ValueError, "out_degrees must be 6 integers"),
        (lambda: layer_of(activation="swish"), ValueError, "activation must be None or one of .*'swish'"),
        (lambda: layer_of().initialize(torch.zeros(3, 6)), ValueError, "weight_norm=True"),
        (lambda: layer_of()(torch.zeros(3, 4)), ValueError, r"\bx\b|\binput\b"),
        (lambda: layer_of()(torch.zeros(3, 5).double()), TypeError, r"\b(x|input|weight)\b"),
        (lambda: layer_of(impl="cuda")(torch.zeros(3, 5)), ValueError, "impl must be one of"),
    ],
)
def test_bad_arguments(call, error, match):
    with pytest.raises(error, match=match):
        call()
