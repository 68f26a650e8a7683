import copy
import itertools
import pickle

import pytest
import torch
from torch import nn

from fastvae.nn.gated_conv import GatedActivation
from fastvae.nn.gated_pixelcnn import GatedPixelCNN
from fastvae.nn.masked_conv2d import MaskedConv2d
from fastvae.nn.pixelcnn import PixelCNN
from fastvae.nn.pixelcnnpp import PixelCNNpp, concat_elu
from fastvae.sampling.likelihoods import Bernoulli, Categorical, LogisticMixture
from tests.support.pixel_networks import CONTEXTS, context_of, contexts, make_net

every_network = pytest.mark.parametrize("network", [PixelCNN, GatedPixelCNN, PixelCNNpp])
LIKELIHOODS = [
    ("bernoulli", 1),
    ("bernoulli", 3),
    (Categorical(4), 1),
    (Categorical(4), 3),
    (LogisticMixture(2, 8), 1),
    (LogisticMixture(2, 8), 3),
]
likelihoods = pytest.mark.parametrize(("likelihood", "channels"), LIKELIHOODS)


def images(likelihood, n, channels, h, w):
    """Random images of values that the likelihood knows."""
    if isinstance(likelihood, LogisticMixture):
        return torch.randint(0, likelihood.levels, (n, channels, h, w)) / (likelihood.levels - 1) * 2 - 1
    levels = likelihood.levels if isinstance(likelihood, Categorical) else 2
    return torch.randint(0, levels, (n, channels, h, w)) / (levels - 1)


def dependence(network, channels, h, w):
    """Which outputs depend on which inputs: bool (out, H, W, in, H, W), over a few random points."""
    count, points = network.parameter_channels * h * w, 3
    x = torch.randn(points, 1, channels, h, w, dtype=torch.float64).expand(-1, count, -1, -1, -1)
    x = x.reshape(-1, channels, h, w).requires_grad_()
    picked = network(x).view(points, count, count // (h * w), h, w).flatten(2).diagonal(dim1=1, dim2=2)
    (entries,) = torch.autograd.grad(picked.sum(), x)
    return (entries != 0).view(points, -1, h, w, channels, h, w).any(0)


# Structure


@pytest.mark.parametrize("network", [GatedPixelCNN, PixelCNNpp])
@pytest.mark.parametrize("likelihood", ["bernoulli", LogisticMixture(1)])
def test_sees_every_earlier_pixel_and_no_other(network, likelihood):
    h, w = 4, 4
    found = dependence(make_net(network, 1, 3, likelihood=likelihood).double(), 1, h, w)
    earlier = torch.ones(h * w, h * w, dtype=torch.bool).tril(-1)
    for parameter in found:
        assert torch.equal(parameter.reshape(h * w, h * w), earlier)


def test_blind_spot_of_stacked_convolutions():
    """Nothing from the own pixel on is seen; of the row above, more than one column to the right is missed."""
    h, w = 4, 6
    found = dependence(make_net(PixelCNN, layers=6, width=24).double(), 1, h, w)[0, :, :, 0]
    pixels = list(itertools.product(range(h), range(w)))
    for (y, x), (v, u) in itertools.product(pixels, pixels):
        seen = (v < y and u - x <= y - v) or (v == y and u < x)
        assert found[y, x, v, u] == seen, (y, x, v, u)


@every_network
def test_colors(network):
    """Parameters of a channel see the channels before it at their own pixel, and all channels of earlier ones."""
    h, w, levels = 3, 3, 2
    # Wide enough that no colour loses all of its rectifiers.
    net = make_net(network, 3, 4, width=24, likelihood=Categorical(levels)).double()
    found = dependence(net, 3, h, w)
    earlier = torch.ones(h * w, h * w, dtype=torch.bool).tril(-1).view(h, w, h, w)
    if network is PixelCNN:  # the blind spot
        earlier = earlier & dependence(make_net(network, 1, 4, width=24).double(), 1, h, w)[0, :, :, 0]
    own = torch.eye(h * w, dtype=torch.bool).view(h, w, h, w)
    for o, i in itertools.product(range(3 * levels), range(3)):
        assert torch.equal(found[o, :, :, i], earlier | own if i < o // levels else earlier), (o, i)


@every_network
def test_channels_of_a_mixture_are_drawn_together(network):
    found = dependence(make_net(network, 3, 2, likelihood=LogisticMixture(1)).double(), 3, 2, 2)
    assert not torch.einsum("oyxiyx->oyxi", found.float()).any()
    assert found[:, 1, 1, :, 0, 0].all()


@every_network
@contexts
def test_every_parameter_is_used(network, context):
    net = make_net(network, 3, 2, **context)
    net.log_prob(torch.randint(0, 2, (2, 3, 4, 4)).float(), context_of(context, 2, 4, 4)).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())


@every_network
@pytest.mark.parametrize("context", CONTEXTS[1:], ids=["vector", "map"])
def test_first_pixel_sees_the_context(network, context):
    net = make_net(network, **context)
    given = context_of(context, 1, 3, 3).requires_grad_()
    (d_given,) = torch.autograd.grad(net(torch.zeros(1, 1, 3, 3), given)[0, 0, 0, 0], given)
    assert (d_given.flatten(2)[..., 0] != 0).all() if d_given.dim() > 2 else (d_given != 0).all()


# Values


class _MaskedByHand(nn.Conv2d):
    """A torch convolution with its weight multiplied by a stored mask."""

    @classmethod
    def of(cls, layer):
        top, left, bottom, right = layer.structure.padding(layer.dilation)
        conv = cls(layer.in_channels, layer.out_channels, layer.kernel_size, bias=layer.bias is not None).double()
        conv.load_state_dict(layer.state_dict())
        conv.mask, conv.pads, conv.rectified = layer.mask().double(), (left, right, top, bottom), layer.activation
        return conv

    def forward(self, x):
        y = torch.conv2d(nn.functional.pad(x, self.pads), self.weight * self.mask, self.bias)
        return y.relu() if self.rectified else y


def by_hand(module):
    twin = copy.deepcopy(module)
    for path, layer in list(twin.named_modules()):
        if isinstance(layer, (MaskedConv2d, GatedActivation)):
            owner, _, name = path.rpartition(".")
            if isinstance(layer, GatedActivation):
                layer.impl = "reference"
            else:
                setattr(twin.get_submodule(owner), name, _MaskedByHand.of(layer))
    return twin


@every_network
@contexts
@pytest.mark.parametrize("channels", [1, 3])
def test_gradients_are_those_of_masked_weights(network, context, channels):
    """In float64, against torch's own convolutions with masks multiplied into their weights."""
    net = make_net(network, channels, **context).double()
    twin = by_hand(net)
    x, given = torch.randn(2, channels, 5, 4).double(), context_of(context, 2, 5, 4)
    given = None if given is None else given.double()
    upstream = torch.randn(2, channels, 5, 4).double()
    expected, got = twin(x, given), net(x, given)
    torch.testing.assert_close(got, expected)
    gradients = torch.autograd.grad(expected, tuple(twin.parameters()), upstream)
    named = dict(zip([name for name, _ in twin.named_parameters()], gradients, strict=True))
    for name, gradient in zip(
        [n for n, _ in net.named_parameters()],
        torch.autograd.grad(got, tuple(net.parameters()), upstream),
        strict=True,
    ):
        torch.testing.assert_close(gradient, named[name])


@every_network
def test_log_prob_of_bits(network):
    net = make_net(network, 3)
    x = images(None, 4, 3, 5, 4)
    bits = torch.distributions.Bernoulli(logits=net(x))
    torch.testing.assert_close(net.log_prob(x), bits.log_prob(x).sum((1, 2, 3)))


@every_network
def test_log_prob_of_levels(network):
    net = make_net(network, 2, likelihood=Categorical(5))
    x = images(net.likelihood, 4, 2, 3, 4)
    levels = torch.distributions.Categorical(logits=net(x).view(4, 2, 5, 3, 4).movedim(2, -1))
    torch.testing.assert_close(net.log_prob(x), levels.log_prob((x * 4).round()).sum((1, 2, 3)))


@every_network
@pytest.mark.parametrize(("channels", "h", "w"), [(1, 2, 4), (3, 1, 2)])
def test_probabilities_of_all_images_add_up_to_one(network, channels, h, w):
    net = make_net(network, channels, layers=3).double()
    x = torch.tensor(list(itertools.product([0.0, 1.0], repeat=channels * h * w)), dtype=torch.float64)
    total = net.log_prob(x.view(-1, channels, h, w)).exp().sum()
    torch.testing.assert_close(total, torch.ones_like(total))


# Sampling


@every_network
@likelihoods
def test_sampler_agrees_with_forward(network, likelihood, channels):
    net = make_net(network, channels, likelihood=likelihood)
    x = net.sample(2, (4, 5), generator=torch.Generator().manual_seed(1))
    assert x.shape == (2, channels, 4, 5)
    net.likelihood.check("x", x)
    torch.testing.assert_close(net._sampler().parameters(x), net(x), rtol=1e-4, atol=1e-5)
    again = net.sample(2, (4, 5), generator=torch.Generator().manual_seed(1))
    assert torch.equal(again, x)


@every_network
@contexts
def test_sample_with_context(network, context):
    net = make_net(network, **context)
    given = context_of(context, 3, 4, 4)
    x = net.sample(3, (4, 4), context=given, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(net._sampler().parameters(x, given), net(x, given), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("network", [PixelCNN, GatedPixelCNN])
@contexts
def test_parameters_are_those_of_forward_for_every_batch_size(network, context):
    """An entropy coder may decode in other batches than those that were coded."""
    net = make_net(network, width=24, **context)
    given = context_of(context, 37, 3, 4)
    x = net.sample(37, (3, 4), context=given)
    expected = net._sampler().parameters(x, given)
    for start, count in ((0, 37), (0, 1), (5, 1), (36, 1), (3, 17)):
        part = slice(start, start + count)
        own = None if given is None else given[part]
        assert torch.equal(net._sampler().parameters(x[part], own), expected[part])
        assert torch.equal(net(x[part], own), expected[part])


def test_parameters_of_pixelcnnpp_are_those_of_forward_to_a_few_ulp():
    net = make_net(PixelCNNpp, 3, width=24, likelihood=LogisticMixture(2, 8))
    x = net.sample(5, (4, 6))
    expected, got = net(x), net._sampler().parameters(x)
    assert (got - expected).abs().max() <= 8 * torch.finfo(torch.float32).eps * expected.abs().max()
    assert torch.equal(net._sampler().parameters(x[3:4]), got[3:4])


@every_network
def test_samples_follow_the_weights(network):
    """The sampler reads weights at every call, those of copies too."""
    net = make_net(network)
    net.sample(1, (3, 3))
    twins = copy.deepcopy(net), pickle.loads(pickle.dumps(net))
    for twin, bias in zip(twins, (40.0, -40.0), strict=True):
        with torch.no_grad():
            (twin.output if network is PixelCNNpp else twin.head.second).bias.fill_(bias)
        assert (twin.sample(2, (3, 3)) == (bias > 0)).all()
    assert net.sample(64, (3, 3)).unique().tolist() == [0.0, 1.0]


@every_network
def test_given_pixels_are_kept(network):
    net = make_net(network)
    given = torch.full((2, 1, 4, 4), float("nan"))
    given[:, :, :2] = torch.randint(0, 2, (2, 1, 2, 4)).float()
    x = net.sample(2, (4, 4), given=given, temperature=0.5)
    assert torch.equal(x[:, :, :2], given[:, :, :2])
    assert not x.isnan().any()


def test_dropout():
    net = PixelCNNpp(1, 4, 1, likelihood="bernoulli")
    x = torch.zeros(2, 1, 4, 4)
    assert not torch.equal(net(x), net(x))
    with pytest.raises(ValueError, match="evaluation mode"):
        net.sample(1, (3, 3))
    net.eval()
    assert torch.equal(net(x), net(x))
    net.sample(1, (3, 3))


def test_concat_elu():
    x = torch.tensor([[1.0, -1.0]])
    torch.testing.assert_close(concat_elu(x), torch.tensor([[1.0, -0.632121, -0.632121, 1.0]]))


# Module behaviour


@every_network
@contexts
def test_persistence(network, context):
    net, other = make_net(network, 3, **context), make_net(network, 3, **context)
    x, given = images(None, 2, 3, 4, 4), context_of(context, 2, 4, 4)
    expected = net.log_prob(x, given)
    other.load_state_dict(net.state_dict())
    for twin in (other, copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert torch.equal(twin.log_prob(x, given), expected)


@every_network
@pytest.mark.parametrize("impl", ["reference", "cpp"])
def test_compile_fullgraph(network, impl):
    torch._dynamo.reset()
    net = make_net(network, layers=1 if network is PixelCNNpp else 2, context_features=4, impl=impl)
    x, context = images(None, 2, 1, 5, 4), torch.randn(2, 4)
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    expected = torch.autograd.grad(net(x, context).square().sum(), tuple(net.parameters()))
    got = torch.autograd.grad(compiled(x, context).square().sum(), tuple(net.parameters()))
    torch.testing.assert_close(got, expected)


@every_network
@pytest.mark.parametrize("impl", ["reference", "cpp"])
def test_channels_last(network, impl):
    net = make_net(network, 3, impl=impl)
    x = images(None, 2, 3, 5, 4)
    last = net(x.contiguous(memory_format=torch.channels_last))
    assert last.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(last, net(x))


@every_network
def test_parameters_of_a_pixel(network):
    for likelihood, channels, parameters, num_colors in (
        ("bernoulli", 3, 3, 3),
        ("categorical", 1, 256, 1),
        (Bernoulli(), 1, 1, 1),
        ("logistic_mixture", 1, 30, 1),
        ("logistic_mixture", 3, 100, 1),
    ):
        net = make_net(network, channels, likelihood=likelihood)
        assert (net.parameter_channels, net.num_colors) == (parameters, num_colors)


X, C = torch.zeros(2, 1, 4, 4), torch.zeros(2, 3)
ERRORS = [
    (lambda n: n(0, 4, 1), "in_channels must be >= 1, got 0"),
    (lambda n: n(1, 0, 1), "hidden_channels must be >= 1, got 0"),
    (lambda n: n(1, 4, 0), "num_layers must be >= 1, got 0"),
    (lambda n: n(3, 4, 1, likelihood="bernoulli"), "hidden_channels must be a multiple of in_channels, 3.*got 4"),
    (lambda n: n(1, 4, 2, kernel_size=2), "kernel_size"),
    (
        lambda n: make_net(n, likelihood="categorical").log_prob(X + 2),
        r"x must be one of the levels k / 255.*got 2",
    ),
    (
        lambda n: make_net(n, context_channels=3)(X, X.expand(2, 3, 4, 4)[:, :, :3]),
        r"must.*4.*(is|got) \(2, \d+, 3, 4\)",
    ),
    (lambda n: n(1, 4, 2, first_kernel_size=4), "kernel"),
    (lambda n: n(1, 4, 1, likelihood="normal"), "likelihood must be one of.*got 'normal'"),
    (lambda n: n(2, 4, 1, likelihood="logistic_mixture"), "in_channels must be 1 or 3"),
    (lambda n: n(1, 4, 1, context_features=3, context_channels=2), "exclude each other"),
    (lambda n: make_net(n, context_features=3)(X), "context must be given"),
    (lambda n: make_net(n)(X, C), "context must be None"),
    (
        lambda n: make_net(n, context_features=4).log_prob(X, C),
        r"context must have shape \(N, 4\), got \(2, 3\)",
    ),
    (
        lambda n: make_net(n, context_features=3).log_prob(X, C[:1]),
        r"context must belong to 2 images, got shape \(1, 3\)",
    ),
    (lambda n: make_net(n).log_prob(X[0]), r"x must have shape \(N, 1, H, W\), got \(1, 4, 4\)"),
    (lambda n: make_net(n, 3).log_prob(X), r"x must have shape \(N, 3, H, W\), got \(2, 1, 4, 4\)"),
    (lambda n: make_net(n).sample(2, (4, 4), temperature=0.0), "temperature must be"),
    (lambda n: make_net(n).sample(2, (4, 4), given=X + 2), "given must be 0 or 1"),
    (lambda n: make_net(n).sample(2, (4, 5), given=X), "given must have shape"),
    (lambda n: make_net(n).sample(2, (4, 4), context=C), "context must be None"),
    (lambda n: make_net(n, context_features=3).sample(2, (4, 4)), "context must be given"),
    (
        lambda n: make_net(n, context_features=3).sample(2, (4, 4), context=C[:, :2]),
        "context must have shape",
    ),
]


@every_network
@pytest.mark.parametrize(("wrong", "message"), ERRORS)
def test_errors_name_the_argument(network, wrong, message):
    with pytest.raises(ValueError, match=message):
        wrong(network)


@pytest.mark.parametrize("network", [PixelCNN, GatedPixelCNN])
def test_head_channels(network):
    assert make_net(network, head_channels=20).head.first.out_channels == 20
    with pytest.raises(ValueError, match="head_channels must be a multiple, at least 1, of the 3 colours, got 4"):
        make_net(network, 3, head_channels=4)
