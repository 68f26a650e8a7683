"""Weight normalisation of masked convolutions, and the initialisation from data of every network that has it."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrizations

from fastvae.nn import (
    MADE,
    ClassLinear,
    ConvInverseAutoregressiveFlow,
    ConvMADE,
    GatedPixelCNN,
    InverseAutoregressiveFlow,
    MaskedConv2d,
    MaskedLinear,
    PixelCNN,
    PixelCNNpp,
    initialize_from_data,
)
from fastvae.sampling import Categorical
from tests.support.causal_stacks import Case, Stack

LAYERS = {
    "A": lambda **o: MaskedConv2d(2, 3, 3, mask_type="A", padding=1, **o),
    "colours": lambda **o: MaskedConv2d(3, 6, 3, mask_type="A", num_colors=3, padding=1, **o),
    "groups": lambda **o: MaskedConv2d(4, 6, (2, 3), mask_type="B", groups=2, origin=(1, 1), padding="same", **o),
    "reversed": lambda **o: MaskedConv2d(2, 2, 3, mask_type="B", order="reversed", padding=1, activation="elu", **o),
    "unconnected": lambda **o: MaskedConv2d(1, 2, 1, mask_type="A", **o),
}


def layer_of(name, **options):
    layer = LAYERS[name](weight_norm=True, dtype=torch.float64, **options)
    with torch.no_grad():
        layer.weight_gain.uniform_(0.5, 2.0)
    return layer


def kept_norm(weight, mask):
    return torch.where(mask, weight, 0.0).flatten(1).norm(dim=1)


@pytest.mark.parametrize("name", LAYERS)
def test_norm_of_the_weights_that_count_is_the_gain(name):
    layer = layer_of(name)
    mask = layer.mask()
    connected = mask.flatten(1).any(1)
    with torch.no_grad():
        layer.weight[~mask] = torch.nan
    expected = torch.where(connected, layer.weight_gain, 0.0)
    torch.testing.assert_close(kept_norm(layer.scaled_weight(), mask), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("impl", ["reference", "cpp"])
@pytest.mark.parametrize("name", LAYERS)
def test_output_and_gradients_are_those_of_a_normalised_convolution(name, impl):
    layer, x = layer_of(name, impl=impl), torch.randn(2, LAYERS[name]().in_channels, 4, 5, dtype=torch.float64)
    mask = layer.mask()

    def plain(weight, gain, bias):
        norm = kept_norm(weight, mask)
        factor = torch.where(norm > 0, gain / norm, 0.0).view(-1, 1, 1, 1)
        twin = LAYERS[name](impl="reference").double()
        act = {"elu": functional.elu, None: lambda t: t}[twin.activation]
        top = twin.structure.origin[0] if twin.padding == "same" else twin.padding[0]
        x_padded = functional.pad(x, (1, 1, top, 1 - top if name == "groups" else top)) if twin.padding != (0, 0) else x
        return act(functional.conv2d(x_padded, torch.where(mask, weight, 0.0) * factor, bias, groups=layer.groups))

    leaves = [layer.weight, layer.weight_gain, layer.bias]
    actual, expected = layer(x), plain(*leaves)
    torch.testing.assert_close(actual, expected)
    upstream = torch.randn_like(actual)
    found = torch.autograd.grad(actual, leaves, upstream)
    for d, wanted in zip(found, torch.autograd.grad(expected, leaves, upstream), strict=True):
        torch.testing.assert_close(d, torch.where(wanted.isnan(), 0.0, wanted))
    assert (found[0][~mask] == 0).all()


def test_a_new_layer_computes_what_it_does_without_normalisation():
    torch.manual_seed(0)
    plain = MaskedConv2d(2, 3, 3, padding=1)
    torch.manual_seed(0)
    normalised, x = MaskedConv2d(2, 3, 3, padding=1, weight_norm=True), torch.randn(2, 2, 4, 4)
    torch.testing.assert_close(normalised(x), plain(x))
    normalised.reset_parameters()
    torch.testing.assert_close(normalised.masked_norm(), normalised.weight_gain.detach())
    assert "weight_norm=True" in repr(normalised)
    assert "weight_norm" not in repr(plain)


def image(channels):
    return torch.rand(40, channels, 5, 6, dtype=torch.float64).mul(3).round().div(3)


NETWORKS = {
    "PixelCNN": lambda: (PixelCNN(2, 4, 2, likelihood=Categorical(4), weight_norm=True), (image(2),)),
    "GatedPixelCNN": lambda: (
        GatedPixelCNN(1, 4, 2, context_features=3, weight_norm=True),
        (image(1).round(), torch.randn(40, 3, dtype=torch.float64)),
    ),
    "PixelCNNpp": lambda: (PixelCNNpp(1, 4, 1, likelihood="bernoulli", weight_norm=True), (image(1).round(),)),
    "ConvMADE": lambda: (
        ConvMADE(2, (6, 4), context_channels=2, weight_norm=True),
        (torch.randn(40, 2, 4, 4).double(), torch.randn(40, 2, 4, 4).double()),
    ),
    "ConvInverseAutoregressiveFlow": lambda: (
        ConvInverseAutoregressiveFlow(2, (6,), steps=2, weight_norm=True),
        (torch.randn(40, 2, 4, 4).double(),),
    ),
    "MADE": lambda: (MADE(4, (8, 8), weight_norm=True), (torch.randn(50, 4).double(),)),
    "layers": lambda: (
        nn.Sequential(
            MaskedLinear(4, 5, [1, 2, 3, 4], [0, 1, 2, 3, 4], activation="tanh", weight_norm=True),
            nn.utils.parametrizations.weight_norm(nn.Linear(5, 3)),
        ),
        (torch.randn(50, 4).double(),),
    ),
}


def small_layers(module):
    """Those that start at a standard deviation of 0.1."""
    if isinstance(module, PixelCNNpp):
        return [block.second for block in (*module.above, *module.left)]
    if isinstance(module, ConvInverseAutoregressiveFlow):
        return [network.layers[-1] for network in module.networks]
    return [module.layers[-1]] if isinstance(module, ConvMADE | MADE) else []


def pre_activations(module, inputs):
    """Of every normalised masked layer, as the module runs in training mode."""
    seen = {}

    def keep(layer, args, output):
        activation, layer.activation = layer.activation, None
        seen[layer] = layer.forward(*args).movedim(1, -1).flatten(0, -2).detach()
        layer.activation = activation

    masked = [m for m in module.modules() if isinstance(m, MaskedConv2d | MaskedLinear) and m.weight_gain is not None]
    handles = [layer.register_forward_hook(keep) for layer in masked]
    module.train()(*inputs)
    for handle in handles:
        handle.remove()
    assert set(seen) == set(masked)
    return seen


@pytest.mark.parametrize("name", NETWORKS)
def test_initialised_pre_activations_have_mean_0_and_variance_1(name):
    module, inputs = NETWORKS[name]()
    module.double().eval()
    # What dropout drops in the initialisation it drops in the check.
    state = torch.get_rng_state()
    initialize_from_data(module, *inputs)
    assert not any(part.training or part._forward_hooks for part in module.modules())
    torch.set_rng_state(state)
    small = small_layers(module)
    for layer, rows in pre_activations(module, inputs).items():
        std, mean = torch.std_mean(rows, 0, correction=0)
        connected = layer.masked_norm() > 0
        wanted = torch.full_like(std, 0.1 if layer in small else 1.0)
        torch.testing.assert_close(std[connected], wanted[connected], rtol=1e-6, atol=0)
        # A flow moves its last bias to start near the identity.
        if layer.bias is not None and not (layer in small and isinstance(module, ConvInverseAutoregressiveFlow)):
            torch.testing.assert_close(mean, torch.zeros_like(mean), rtol=0, atol=1e-6)


def test_a_flow_keeps_its_start_near_the_identity():
    for flow, z in (
        (ConvInverseAutoregressiveFlow(2, (6,), weight_norm=True), torch.randn(30, 2, 4, 4)),
        (InverseAutoregressiveFlow(4, (8,), weight_norm=True), torch.randn(300, 4)),
    ):
        initialize_from_data(flow, z)
        log_det = flow(z, log_det_map=True)[1]
        assert (log_det - functional.logsigmoid(torch.tensor(2.0))).abs().max() < 0.2


@pytest.mark.parametrize("impl", ["reference", "cpp"])
def test_sampler_reads_normalised_weights(impl):
    for make in (
        lambda: GatedPixelCNN(1, 4, 2, kernel_size=3, first_kernel_size=3, weight_norm=True),
        lambda: PixelCNNpp(1, 4, 1, likelihood="bernoulli", weight_norm=True),
    ):
        case = Case(Stack(make), 2, (4, 5))
        images, parameters = case.sample(impl)
        expected, wanted = case.naive((0,))
        assert torch.equal(images, expected)
        torch.testing.assert_close(parameters, wanted)


@pytest.mark.thorough
def test_compiles_whole_and_trains():
    net, x = PixelCNN(1, 2, 2, first_kernel_size=3, weight_norm=True), torch.rand(2, 1, 5, 5).round()
    compiled = torch.compile(net, backend="aot_eager", fullgraph=True)
    parameters = list(net.parameters())
    expected = torch.autograd.grad(net(x).square().sum(), parameters)
    for d, wanted in zip(torch.autograd.grad(compiled(x).square().sum(), parameters), expected, strict=True):
        torch.testing.assert_close(d, wanted)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    "make",
    [
        lambda bias: nn.Linear(6, 4, bias),
        lambda bias: nn.Conv2d(6, 4, 3, bias=bias),
        lambda bias: nn.ConvTranspose2d(6, 4, 3, 2, bias=bias),
    ],
)
def test_plain_layers_start_as_normalised_ones(make, bias):
    first, second = make(bias), nn.Linear(3, 3)
    network = nn.Sequential(first, nn.ELU())
    x = 3.0 + 2.0 * torch.randn(50, 6, *([] if isinstance(first, nn.Linear) else [5, 5]))
    normalised = copy.deepcopy(network)
    parametrizations.weight_norm(normalised[0], dim=1 if isinstance(first, nn.ConvTranspose2d) else 0)
    initialize_from_data(normalised, x)
    initialize_from_data(network, x, plain=[first])
    torch.testing.assert_close(network(x), normalised(x))
    y = first(x)
    std, mean = torch.std_mean(y, [0, 2, 3][: y.dim() - 1], correction=0)
    torch.testing.assert_close(std, torch.ones(4))
    if bias:
        torch.testing.assert_close(mean, torch.zeros(4), rtol=0, atol=1e-5)
    # A layer that the call does not name keeps its weights.
    both, before = nn.Sequential(nn.Linear(3, 3), second), second.weight.clone()
    initialize_from_data(both, torch.randn(9, 3), plain=[both[0]])
    assert torch.equal(second.weight, before)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("labels", [None, torch.arange(50) % 3])
def test_plain_layers_of_classes_start_from_data(bias, labels):
    """Pre-activations over images and classes, or under labels, start with mean 0 and standard deviation 1."""
    layer, rest = ClassLinear([6, 2], 3, 4, bias, activation="relu"), nn.Linear(4, 5)
    x, a = 3.0 + 2.0 * torch.randn(50, 6), torch.randn(50, 2)
    both = nn.ModuleList([layer, rest])
    initialize_from_data(both, x, run=lambda x: rest(layer(x, a, labels=labels)), plain=both)
    layer.activation = None
    y = layer(x, a, labels=labels).flatten(0, -2)
    std, mean = torch.std_mean(y, 0, correction=0)
    torch.testing.assert_close(std, torch.ones(4), rtol=1e-4, atol=0)
    if bias:
        torch.testing.assert_close(mean, torch.zeros(4), rtol=0, atol=1e-5)
    # The layer above saw the activations of the layer's start.
    std, mean = torch.std_mean(rest(y.relu()), 0, correction=0)
    torch.testing.assert_close(std, torch.ones(5), rtol=1e-4, atol=0)
    torch.testing.assert_close(mean, torch.zeros(5), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "layer",
    [
        nn.BatchNorm1d(3),
        nn.Conv2d(4, 4, 3, groups=2),
        parametrizations.weight_norm(nn.Linear(3, 3)),
        MaskedConv2d(1, 2, 3),
    ],
)
def test_layers_that_are_not_plain(layer):
    with pytest.raises(ValueError, match=f"plain must hold Linear, .* got .*{type(layer).__name__}"):
        initialize_from_data(layer, torch.randn(9, 3), plain=[layer])


def test_errors():
    with pytest.raises(ValueError, match="initialize needs a layer with weight_norm=True"):
        MaskedConv2d(1, 2, 3).initialize(torch.randn(1, 2, 3, 3))
    with pytest.raises(ValueError, match=r"pre_activations must hold one pixel or more .* got \(0, 2, 3, 3\)"):
        MaskedConv2d(1, 2, 3, weight_norm=True).initialize(torch.randn(0, 2, 3, 3))
    with pytest.raises(ValueError, match="module must hold a layer with weight_norm=True, got PixelCNN without one"):
        initialize_from_data(PixelCNN(1, 2, 1), torch.zeros(1, 1, 4, 4))
