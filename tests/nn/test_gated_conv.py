import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional

from fastvae.nn.gated_conv import GatedActivation, GatedMaskedConv2d
from fastvae.nn.shifted_conv import DownRightShiftedConv2d, DownShiftedConv2d

IMPLEMENTATIONS = ("reference", "cpp")
every_impl = pytest.mark.parametrize("impl", IMPLEMENTATIONS)
CONTEXTS = [{}, {"context_features": 3}, {"context_channels": 2}]
contexts = pytest.mark.parametrize("context", CONTEXTS, ids=["plain", "vector", "map"])


class Stack(nn.Module):
    def __init__(self, in_channels, channels, layers, kernel_size=3, first_kernel_size=3, **options):
        super().__init__()
        self.layers = nn.ModuleList(
            GatedMaskedConv2d(
                channels if i else in_channels,
                channels,
                kernel_size if i else first_kernel_size,
                first=i == 0,
                last=i == layers - 1,
                **options,
            )
            for i in range(layers)
        )

    def forward(self, x, context=None):
        vertical = horizontal = x
        for layer in self.layers:
            vertical, horizontal = layer(vertical, horizontal, context)
        return horizontal


def context_of(context, n, h, w):
    if "context_features" in context:
        return torch.randn(n, context["context_features"])
    return torch.randn(n, context["context_channels"], h, w) if context else None


def dependence(network, channels, h, w):
    """Which outputs depend on which inputs: bool (out, H, W, in, H, W), over a few random points."""
    outputs = network(torch.zeros(1, channels, h, w, dtype=torch.float64)).shape[1]
    count, points = outputs * h * w, 3
    # One image for each output and point: a single backward pass gives the whole Jacobian.
    x = torch.randn(points, 1, channels, h, w, dtype=torch.float64).expand(-1, count, -1, -1, -1)
    x = x.reshape(-1, channels, h, w).requires_grad_()
    picked = network(x).view(points, count, count).diagonal(dim1=1, dim2=2)
    (entries,) = torch.autograd.grad(picked.sum(), x)
    return (entries != 0).view(points, outputs, h, w, channels, h, w).any(0)


def reach(layers, first, k, h, w):
    """Pixels that each stream of the last layer sees, by sets: {(row, column): pixels}."""
    pixels = [(y, x) for y in range(h) for x in range(w)]
    vertical = horizontal = {p: {p} for p in pixels}
    for layer in range(layers):
        r = (k if layer else first) // 2
        rows = range(-r, 1 if layer else 0)
        above = {
            (y, x): set().union(*(vertical.get((y + dy, x + dx), set()) for dy in rows for dx in range(-r, r + 1)))
            for y, x in pixels
        }
        columns = range(-r, 1 if layer else 0)
        horizontal = {
            (y, x): above[y, x].union(*(horizontal.get((y, x + dx), set()) for dx in columns)) for y, x in pixels
        }
        vertical = above
    return horizontal


@every_impl
@pytest.mark.parametrize(("layers", "first", "k"), [(1, 3, 3), (1, 5, 3), (2, 3, 3), (3, 3, 3), (2, 5, 3), (2, 3, 5)])
def test_receptive_field(layers, first, k, impl):
    h, w = 5, 6
    found = dependence(Stack(1, 4, layers, k, first, impl=impl).double(), 1, h, w).any(3).any(0)
    expected = reach(layers, first, k, h, w)
    for (y, x), seen in expected.items():
        assert {tuple(p) for p in found[y, x].nonzero().tolist()} == seen, (y, x)


@every_impl
def test_no_blind_spot(impl):
    """Deep enough, a pixel sees all pixels before it and none from its own on."""
    h, w = 5, 5
    found = dependence(Stack(1, 2, 5, impl=impl).double(), 1, h, w).any(3).any(0).view(h * w, h * w)
    assert torch.equal(found, torch.ones(h * w, h * w, dtype=torch.bool).tril(-1))


@every_impl
def test_colors(impl):
    """Channels of colour c see the colours before c at the own pixel, and all of earlier pixels."""
    h, w, channels = 3, 4, 6
    found = dependence(Stack(3, channels, 4, num_colors=3, impl=impl).double(), 3, h, w)
    earlier = torch.ones(h * w, h * w, dtype=torch.bool).tril(-1).view(h, w, h, w)
    own = torch.eye(h * w, dtype=torch.bool).view(h, w, h, w)
    for o in range(channels):
        for i in range(3):
            assert torch.equal(found[o, :, :, i], earlier | own if i < o // 2 else earlier), (o, i)


@every_impl
def test_colors_of_later_layers(impl):
    """At its own pixel a layer that is not the first sees colours up to its own."""
    layer = GatedMaskedConv2d(4, 4, num_colors=2, impl=impl).double()
    found = dependence(lambda x: layer(torch.zeros_like(x), x)[1], 4, 1, 3)
    for o in range(4):
        for i in range(4):
            assert found[o, 0, 1, i, 0].tolist() == [True, i // 2 <= o // 2, False]


def plain(layer, vertical, horizontal, context):
    """The layer in terms of torch's own convolutions, weights multiplied with masks made by hand."""
    k, first = layer.horizontal.kernel_size[1], layer.horizontal.mask_type == "A"
    r, f = k // 2, layer.output.out_channels
    above = torch.ones_like(layer.vertical.weight)
    above[:, :, r + (not first) :] = 0
    left = torch.ones_like(layer.horizontal.weight)
    left[..., r + (not first) :] = 0
    u = functional.conv2d(vertical, layer.vertical.weight * above, layer.vertical.bias, padding=r)
    h = functional.conv2d(horizontal, layer.horizontal.weight * left, layer.horizontal.bias, padding=(0, r))
    h = h + functional.conv2d(u, layer.vertical_to_horizontal.weight)

    def gate(x, conditioning):
        if context is not None and context.dim() == 2:
            x = x + functional.linear(context, conditioning.layer.weight)[:, :, None, None]
        elif context is not None:
            x = x + functional.conv2d(context, conditioning.layer.weight)
        return torch.tanh(x[:, :f]) * torch.sigmoid(x[:, f:])

    out = functional.conv2d(gate(h, layer.horizontal_condition), layer.output.weight, layer.output.bias)
    out = out if first else out + horizontal
    return gate(u, layer.vertical_condition), out


@every_impl
@contexts
@pytest.mark.parametrize(("first", "k"), [(True, 7), (False, 3), (False, 5)])
def test_values_and_gradients(first, k, context, impl):
    layer = GatedMaskedConv2d(3 if first else 4, 4, k, first=first, impl=impl, **context).double()
    inputs = [torch.randn(2, layer.vertical.in_channels, 6, 5).double().requires_grad_() for _ in range(2)]
    given = context_of(context, 2, 6, 5)
    if given is not None:
        inputs.append(given.double().requires_grad_())
    leaves = [*inputs, *layer.parameters()]
    expected = plain(layer, *(*inputs, None)[:3])
    upstream = [torch.randn_like(t) for t in expected]
    gradients = torch.autograd.grad(expected, leaves, upstream)
    got = layer(*inputs)
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(torch.autograd.grad(got, leaves, upstream), gradients)


def test_masked_weights_get_no_gradient():
    layer = GatedMaskedConv2d(4, 4, 3, num_colors=2)
    x = torch.randn(2, 4, 5, 5)
    sum(t.square().sum() for t in layer(x, x)).backward()
    for conv in (layer.vertical, layer.horizontal, layer.output):
        assert (conv.weight.grad[~conv.mask()] == 0).all()
        assert (conv.weight.grad[conv.mask()] != 0).all()


@every_impl
def test_channels_last(impl):
    network = Stack(2, 4, 3, context_features=3, impl=impl)
    x, context = torch.randn(2, 2, 6, 5), torch.randn(2, 3)
    expected = network(x, context)
    got = network(x.contiguous(memory_format=torch.channels_last), context)
    assert got.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(got, expected)


@contexts
def test_last_layer_has_no_vertical_gate(context):
    """What nobody reads is not computed and has no parameters: every parameter gets a gradient."""
    network = Stack(1, 4, 2, **context)
    network(torch.randn(2, 1, 4, 4), context_of(context, 2, 4, 4)).sum().backward()
    assert all(p.grad is not None for p in network.parameters())
    x = torch.randn(2, 4, 4, 4)
    assert GatedMaskedConv2d(4, 6, residual=False, last=True)(x, x)[0].shape == (2, 12, 4, 4)


@contexts
def test_persistence(context):
    network = Stack(2, 4, 2, num_colors=2, **context)
    x, given = torch.randn(2, 2, 5, 5), context_of(context, 2, 5, 5)
    expected = network(x, given)
    other = Stack(2, 4, 2, num_colors=2, **context)
    other.load_state_dict(network.state_dict())
    for twin in (other, copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
        assert torch.equal(twin(x, given), expected)


@every_impl
@contexts
def test_compile_fullgraph(context, impl):
    torch._dynamo.reset()
    network = Stack(1, 4, 2, impl=impl, **context)
    x, given = torch.randn(2, 1, 5, 4), context_of(context, 2, 5, 4)
    compiled = torch.compile(network, fullgraph=True, backend="aot_eager")
    expected = torch.autograd.grad(network(x, given).square().sum(), tuple(network.parameters()))
    got = torch.autograd.grad(compiled(x, given).square().sum(), tuple(network.parameters()))
    torch.testing.assert_close(got, expected)


@contexts
def test_traceable(context):
    class Tracer(torch.fx.Tracer):
        def is_leaf_module(self, m, name):
            return isinstance(m, (nn.Conv2d, GatedActivation, nn.Linear))

    network = Stack(1, 4, 2, **context)
    graph = Tracer().trace(network, concrete_args=None if context else {"context": None})
    x, given = torch.randn(2, 1, 5, 4), context_of(context, 2, 5, 4)
    traced = torch.fx.GraphModule(network, graph)
    assert torch.equal(traced(x, given), network(x, given))


# The shifted convolutions of PixelCNN++


def shift(x, left, right, top):
    return functional.pad(x, (left, right, top, 0))


@every_impl
@pytest.mark.parametrize(("height", "width"), [(2, 3), (1, 3), (3, 5), (2, 1)])
def test_down_shifted(height, width, impl):
    layer = DownShiftedConv2d(2, 4, (height, width), impl=impl)
    x = torch.randn(2, 2, 5, 6)
    expected = functional.conv2d(shift(x, width // 2, width // 2, height - 1), layer.weight, layer.bias)
    torch.testing.assert_close(layer(x), expected)


@every_impl
@pytest.mark.parametrize(("height", "width"), [(2, 2), (2, 1), (1, 2), (3, 3)])
def test_down_right_shifted(height, width, impl):
    layer = DownRightShiftedConv2d(2, 4, (height, width), impl=impl)
    x = torch.randn(2, 2, 5, 6)
    expected = functional.conv2d(shift(x, width - 1, 0, height - 1), layer.weight, layer.bias)
    torch.testing.assert_close(layer(x), expected)


@every_impl
def test_first_shifted_layers_are_shifted_once_more(impl):
    """A kernel whose last row never counts is the kernel without it, moved down by a row."""
    x = torch.randn(1, 1, 5, 6)
    down = DownShiftedConv2d(1, 3, (3, 3), first=True, bias=False, impl=impl)
    whole = functional.conv2d(shift(x, 1, 1, 1), down.weight[:, :, :2])
    torch.testing.assert_close(down(x), shift(whole, 0, 0, 1)[:, :, :-1])
    right = DownRightShiftedConv2d(1, 3, (1, 3), first=True, bias=False, impl=impl)
    whole = functional.conv2d(shift(x, 1, 0, 0), right.weight[..., :2])
    torch.testing.assert_close(right(x), shift(whole, 1, 0, 0)[..., :-1])


def test_names_are_those_of_plain_convolutions():
    layer = DownShiftedConv2d(2, 4, activation="elu", dilation=2)
    assert set(layer.state_dict()) == {"weight", "bias"}
    assert layer(torch.randn(1, 2, 6, 6)).min() > -1


def test_gate_module():
    x, condition = torch.randn(2, 6, 3, 3), torch.randn(2, 6)
    moved = (x + condition[:, :, None, None]).chunk(2, 1)
    torch.testing.assert_close(GatedActivation()(x, condition), moved[0].tanh() * moved[1].sigmoid())
    torch.testing.assert_close(GatedActivation("linear")(x, condition), moved[0] * moved[1].sigmoid())
    assert repr(GatedActivation()) == "GatedActivation(kind=tanh)"


X = torch.zeros(2, 4, 5, 5)
ERRORS = [
    (lambda: GatedActivation("relu"), "kind must be one of tanh, linear, got 'relu'"),
    (lambda: GatedMaskedConv2d(4, 4, 2), "kernel_size must be an odd integer, got 2"),
    (lambda: GatedMaskedConv2d(4, 6), "out_channels must be in_channels, 4, for residual=True, got 6"),
    (lambda: GatedMaskedConv2d(4, 4, num_colors=3), "num_colors must divide in_channels, 4, got 3"),
    (lambda: GatedMaskedConv2d(3, 4, num_colors=3, first=True), "num_colors must divide out_channels, 4, got 3"),
    (lambda: GatedMaskedConv2d(4, 4, context_features=-1), "context_features must be >= 0, got -1"),
    (lambda: GatedMaskedConv2d(4, 4, context_features=2, context_channels=3), "exclude each other.*2 and 3"),
    (lambda: GatedMaskedConv2d(4, 4)(X, X, torch.zeros(2, 3)), "context must be None"),
    (lambda: GatedMaskedConv2d(4, 4, context_features=3)(X, X), r"context must be given, shape \(N, 3\)"),
    (lambda: GatedMaskedConv2d(4, 4, context_channels=3)(X, X), r"context must be given, shape \(N, 3, H, W\)"),
    (
        lambda: GatedMaskedConv2d(4, 4, context_features=3)(X, X, torch.zeros(2, 4)),
        r"context must have shape \(N, 3\), got \(2, 4\)",
    ),
    (
        lambda: GatedMaskedConv2d(4, 4, context_channels=3)(X, X, torch.zeros(2, 3)),
        r"context must have shape \(N, 3, H, W\), got \(2, 3\)",
    ),
    (lambda: GatedMaskedConv2d(4, 4, context_channels=3)(X, X, torch.zeros(2, 3, 4, 5)), "context must belong to"),
    (lambda: GatedMaskedConv2d(4, 4, context_features=3)(X, X, torch.zeros(5, 3)), "context must belong to"),
    (lambda: DownShiftedConv2d(1, 1, (2, 2)), r"kernel_size must have an odd width, got \(2, 2\)"),
    (lambda: DownRightShiftedConv2d(1, 1, 0), "kernel_size must be >= 1, got 0"),
]


@pytest.mark.parametrize(("wrong", "message"), ERRORS)
def test_errors_name_the_argument(wrong, message):
    with pytest.raises(ValueError, match=message):
        wrong()


@pytest.mark.parametrize(("context", "kind"), [([0.0], "list"), (torch.tensor([[3], [7]]), "torch.int64")])
def test_context_must_be_a_tensor(context, kind):
    with pytest.raises(TypeError, match=f"context must be a floating-point tensor .*Embedding.*, got {kind}"):
        GatedMaskedConv2d(4, 4, context_features=1)(X, X, context)
