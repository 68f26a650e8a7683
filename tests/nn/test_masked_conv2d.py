"""The masked convolution as a module."""

import copy
import pickle

import pytest
import torch
from torch import nn

from fastvae.nn.masked_conv2d import MaskedConv2d
from fastvae.reference.masked_linear import ACTIVATIONS
from tests.support.convolutions import Form
from tests.support.implementations import IMPLEMENTATIONS, device_of

every_impl = pytest.mark.parametrize("impl", IMPLEMENTATIONS)
OPTIONS = {
    "A": {"mask_type": "A", "padding": 1},
    "B, colours": {"mask_type": "B", "num_colors": 3, "padding": "same"},
    "interleaved": {"mask_type": "A", "num_colors": 3, "color_layout": "interleaved", "dilation": 2, "padding": 2},
    "degrees": {"mask_type": "A", "in_degrees": [1, 0, 2], "out_degrees": [0, 1, 2, 3, 1, 2], "order": "reversed"},
    "vertical": {"mask_type": "vertical_B", "bias": False, "activation": "elu"},
    "groups": {"mask_type": "B", "groups": 3, "activation": "gelu"},
}
every_option = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)


def layer_of(kernel_size=3, **options):
    return MaskedConv2d(3, 6, kernel_size, **options)


def plain(layer, x):
    """What the layer computes, from nn.Conv2d's own formula."""
    weight = layer.weight * layer.mask()
    y = nn.functional.conv2d(x, weight, layer.bias, 1, layer.padding, layer.dilation, layer.groups)
    return ACTIVATIONS[layer.activation or "identity"](y)


def test_is_a_convolution():
    """Same parameters, same initialisation, same checkpoint as nn.Conv2d."""
    torch.manual_seed(1)
    layer = layer_of(mask_type="A", num_colors=3, groups=3, padding=1)
    torch.manual_seed(1)
    convolution = nn.Conv2d(3, 6, 3, groups=3, padding=1)
    assert isinstance(layer, nn.Conv2d)
    assert layer.state_dict().keys() == convolution.state_dict().keys()
    for name, value in convolution.state_dict().items():
        assert torch.equal(layer.state_dict()[name], value)
    fresh = layer_of(mask_type="A", groups=3)
    fresh.load_state_dict(convolution.state_dict())
    assert torch.equal(fresh.weight, layer.weight)


def test_positional_arguments_are_those_of_conv2d():
    ours = MaskedConv2d(3, 6, (3, 5), 1, (1, 2), 1, 3, False, "zeros", None, torch.float64, mask_type="B")
    theirs = nn.Conv2d(3, 6, (3, 5), 1, (1, 2), 1, 3, False, "zeros", None, torch.float64)
    for name in ("kernel_size", "stride", "padding", "dilation", "groups", "bias", "padding_mode"):
        assert getattr(ours, name) == getattr(theirs, name)
    assert ours.weight.dtype == torch.float64


@every_impl
@every_option
def test_forward_and_gradients(options, impl):
    device = device_of(impl)
    layer = layer_of(impl=impl, device=device, **options)
    for shape in ((2, 3, 5, 6), (3, 5, 5), (0, 3, 5, 5)):
        x = torch.randn(*shape, device=device, requires_grad=True)
        leaves = [x, *layer.parameters()]
        y, expected = layer(x), plain(layer, x)
        torch.testing.assert_close(y, expected)
        gradients, oracle = (torch.autograd.grad(t.square().sum(), leaves) for t in (y, expected))
        torch.testing.assert_close(gradients, oracle, rtol=1e-4, atol=1e-5)


@every_option
def test_mask(options):
    layer = layer_of(**options)
    degrees = (options["in_degrees"], options["out_degrees"]) if "in_degrees" in options else None
    named = {n: options[n] for n in ("mask_type", "num_colors", "color_layout", "order", "groups") if n in options}
    assert torch.equal(layer.mask(), Form(3, 6, degrees=degrees, **named).mask())


@pytest.mark.parametrize(("kernel", "mask_type"), [((2, 3), "vertical_B"), ((2, 2), "B")])
def test_even_kernels(kernel, mask_type):
    """The down-shifted and down-right-shifted convolutions of PixelCNN++: padding in front only."""
    layer = layer_of(kernel, mask_type=mask_type, origin=(1, 1), padding="same")
    x = torch.randn(2, 3, 5, 6)
    shifted = nn.functional.pad(x, (1, 1 if kernel[1] == 3 else 0, 1, 0))
    torch.testing.assert_close(layer(x), nn.functional.conv2d(shifted, layer.weight, layer.bias))
    assert layer.mask().all()


@every_impl
@every_option
def test_masked_gradients_are_exactly_zero(options, impl):
    device = device_of(impl)
    layer = layer_of(impl=impl, device=device, **options)
    layer(torch.randn(2, 3, 6, 6, device=device)).square().sum().backward()
    assert (layer.weight.grad[~layer.mask()] == 0).all()
    assert (layer.weight.grad[layer.mask()] != 0).all()


def test_an_optimiser_without_decay_leaves_masked_weights_alone():
    layer = layer_of(mask_type="A", num_colors=3)
    before = layer.weight.detach().clone()
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        layer(torch.randn(7, 3, 5, 5)).square().sum().backward()
        optimizer.step()
    assert torch.equal(layer.weight[~layer.mask()], before[~layer.mask()])
    assert (layer.weight[layer.mask()] != before[layer.mask()]).all()


@pytest.mark.parametrize("dtype", [torch.bool, torch.float32, torch.uint8])
@every_option
def test_checkpoint_with_a_mask_loads(options, dtype):
    """Other libraries keep the mask as a buffer of the layer."""
    layer, fresh = layer_of(**options), layer_of(**options)
    state = layer.state_dict() | {"mask": layer.mask().to(dtype)}
    fresh.load_state_dict(state)
    assert torch.equal(fresh.weight, layer.weight)
    assert "mask" in state, "the caller's own dictionary stays as it was"
    nested = nn.Sequential(layer_of(**options))
    nested.load_state_dict({f"0.{name}": value for name, value in state.items()})
    assert torch.equal(nested[0].weight, layer.weight)


@pytest.mark.parametrize("shape", [(3, 3), (1, 1, 3, 3), (6, 1, 3, 3), (1, 3, 3, 3)])
def test_a_mask_of_the_taps_alone_loads(shape):
    layer = layer_of(mask_type="B")
    state = layer.state_dict() | {"mask": layer.mask()[0, 0].expand(shape)}
    layer_of(mask_type="B").load_state_dict(state)
    with pytest.raises(ValueError, match="other connections"):
        layer_of(mask_type="A").load_state_dict(state)


@pytest.mark.parametrize("mask", [torch.ones(6, 3, 3, 3), torch.zeros(5, 5), torch.ones(2, 6, 3, 3, 3)])
def test_checkpoint_with_another_mask_is_refused(mask):
    layer = layer_of(mask_type="A")
    with pytest.raises(ValueError, match=r"\bmask in the checkpoint"):
        layer.load_state_dict(layer.state_dict() | {"mask": mask})


@every_option
def test_degrees_are_structure_not_state(options):
    layer = layer_of(**options)
    assert set(layer.state_dict()) == {"weight", "bias"} - (set() if options.get("bias", True) else {"bias"})
    moved = copy.deepcopy(layer).to(torch.float64).half()
    ruled = layer.structure.has_rule
    assert ruled == ("num_colors" in options or "in_degrees" in options)
    for degrees in (moved.in_degrees, moved.out_degrees):
        assert (degrees is not None) == ruled
        assert degrees is None or degrees.dtype == torch.int64
    assert not ruled or layer.to("meta").in_degrees.device.type == "meta"


def test_given_degrees_are_copied():
    ins, outs = torch.arange(3), torch.arange(6)
    layer = layer_of(mask_type="B", in_degrees=ins, out_degrees=outs)
    ins.zero_()
    outs.zero_()
    assert layer.in_degrees.tolist() == [0, 1, 2]
    assert layer.out_degrees.tolist() == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
@every_option
def test_copies(options, duplicate):
    layer = layer_of(**options)
    x = torch.randn(2, 3, 6, 6)
    assert torch.equal(duplicate(layer)(x), layer(x))


@pytest.mark.parametrize("channels_last", [False, True])
def test_memory_format(channels_last):
    """A model moved to channels last hands channels-last images on, and its parameters' gradients keep their layout."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    net = nn.Sequential(layer_of(mask_type="A", padding=1), MaskedConv2d(6, 4, 3, mask_type="B", padding=1))
    x = torch.randn(2, 3, 5, 5)
    expected = net(x)
    net = net.to(memory_format=layout)
    y = net(x.to(memory_format=layout))
    assert y.is_contiguous(memory_format=layout)
    torch.testing.assert_close(y, expected)
    y.sum().backward()
    for layer in net:
        assert layer.weight.grad.is_contiguous(memory_format=layout)


def test_functional_call_and_per_example_gradients():
    layer, x = layer_of(mask_type="A", num_colors=3, activation="tanh"), torch.randn(4, 3, 5, 5)
    weights = {name: p.detach() for name, p in layer.named_parameters()}

    def loss(weights, x):
        return torch.func.functional_call(layer, weights, (x,)).square().sum()

    together = torch.func.vmap(torch.func.grad(loss), (None, 0))(weights, x)
    for n in range(4):
        expected = torch.autograd.grad(layer(x[n]).square().sum(), layer.weight)[0]
        torch.testing.assert_close(together["weight"][n], expected, rtol=1e-4, atol=1e-5)


def test_autocast():
    layer, x = layer_of(mask_type="A", activation="elu"), torch.randn(2, 3, 5, 5)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    torch.testing.assert_close(y.float(), layer(x), rtol=0.03, atol=0.03)
    y.float().sum().backward()
    assert layer.weight.grad.dtype == torch.float32


def test_compile_fullgraph():
    net = nn.Sequential(
        layer_of(mask_type="A", num_colors=3, padding=1, activation="relu"),
        MaskedConv2d(6, 3, (2, 3), mask_type="vertical_B", origin=(1, 1), padding="same"),
    )
    torch._dynamo.reset()
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    x = torch.randn(2, 3, 5, 5)
    parameters = list(net.parameters())
    expected = torch.autograd.grad(net(x).square().sum(), parameters)
    torch.testing.assert_close(torch.autograd.grad(compiled(x).square().sum(), parameters), expected)


def test_representation():
    text = repr(layer_of((2, 2), mask_type="B", num_colors=3, origin=(1, 1), order="reversed", activation="elu"))
    for part in ("3, 6", "kernel_size=(2, 2)", "mask_type=B", "origin=(1, 1)", "order=reversed", "activation=elu"):
        assert part in text


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: MaskedConv2d("A", 1, 8, 7),
        lambda: MaskedConv2d(1, 8, 7, "A"),
        lambda: MaskedConv2d(1, 8, 7, "A", mask_type="A"),
    ],
)
def test_the_type_by_position_shows_the_right_spelling(wrong):
    spelling = r"MaskedConv2d\(in_channels, out_channels, kernel_size, mask_type='A'\)"
    with pytest.raises(TypeError, match=spelling):
        wrong()


def test_the_type_is_that_of_a_first_layer_unless_named():
    assert MaskedConv2d(1, 8, 7).mask_type == "A"


def test_a_kernel_without_weights_is_meant_when_its_type_is_named():
    x = torch.randn(2, 3, 4, 4)
    layer = layer_of((1, 1), mask_type="A")
    torch.testing.assert_close(layer(x), layer.bias.view(1, 6, 1, 1).expand(2, 6, 4, 4))
    with pytest.raises(ValueError, match=r"mask_type must be given for a kernel of \(1, 1\)"):
        MaskedConv2d(3, 6, 1)


ERRORS = [
    ({"mask_type": "C"}, ValueError, "mask_type"),
    ({"mask_type": "A", "stride": 2}, ValueError, "stride"),
    ({"mask_type": "A", "stride": (1, 2)}, ValueError, "stride"),
    ({"mask_type": "A", "padding_mode": "circular"}, ValueError, "padding_mode"),
    ({"mask_type": "A", "padding": "valid"}, ValueError, "padding"),
    ({"mask_type": "A", "padding": -1}, ValueError, "padding"),
    ({"mask_type": "A", "kernel_size": 2}, ValueError, "origin"),
    ({"mask_type": "A", "origin": (3, 3)}, ValueError, "origin"),
    ({"mask_type": "A", "order": "backwards"}, ValueError, "order"),
    ({"mask_type": "A", "num_colors": 2}, ValueError, "num_colors"),
    ({"mask_type": "A", "color_layout": "rgb"}, ValueError, "color_layout"),
    ({"mask_type": "A", "in_degrees": [0, 1, 2]}, ValueError, "out_degrees"),
    ({"mask_type": "A", "in_degrees": [0, 1], "out_degrees": [0] * 6}, ValueError, "in_degrees"),
    ({"mask_type": "A", "in_degrees": [0.0] * 3, "out_degrees": [0] * 6}, TypeError, "in_degrees"),
    ({"mask_type": "A", "activation": "swish"}, ValueError, "activation"),
    ({"mask_type": "A", "groups": 2}, ValueError, "groups"),
]


@pytest.mark.parametrize(("options", "error", "name"), ERRORS)
def test_errors_name_the_argument(options, error, name):
    with pytest.raises(error, match=rf"\b{name}\b"):
        layer_of(**options)
