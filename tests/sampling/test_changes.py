"""A sampler draws from the network as it is at the call, whatever was replaced, wrapped, dropped or set since."""

import abc
import copy
import dataclasses
import pickle
import types

import numpy as np
import pytest
import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

from fastvae.nn import GatedPixelCNN, PixelCNN
from fastvae.nn.gated_conv import GatedActivation
from fastvae.sampling import Categorical, CausalSampler
from fastvae.sampling.snapshot import Snapshot
from tests.support.causal_networks import make_masked
from tests.support.causal_stacks import SIZE, make_generator, scale_weights


class Network(nn.Module):
    """Layers, and attributes of every sort that the forward reads."""

    slope = 1.0

    def __init__(self):
        super().__init__()
        self.first = make_masked(1, 4, 3, "A")
        self.layers = nn.ModuleList(
            [make_masked(4, 4, 3, "B"), nn.ReLU(), make_masked(4, 4, 3, "B", activation="tanh")]
        )
        self.gate = GatedActivation(impl="reference")
        self.last = nn.Conv2d(2, 1, 1)
        self.scale, self.skips, self.config = 1.0, [0], types.SimpleNamespace(shift=0.5)
        self.factors, self.plain = np.ones(2), torch.ones(())
        self.register_buffer("offset", torch.zeros(()))

    def forward(self, x):
        h = self.first(x)
        for index, layer in enumerate(self.layers):
            h = layer(h) if index not in self.skips[1:] else h
        h = self.turn(h * self.scale + self.config.shift) * float(self.factors[0])
        h = h * (self.plain * self.slope) + (self.offset + 1.0)
        return self.last(self.gate(h))

    def turn(self, h):
        return h


class Doubling(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return 2 * self.layer(x)


def put(name, value):
    return lambda net: setattr(net, name, value)


def item(container, index, value):
    return lambda net: getattr(net, container).__setitem__(index, value)


def patch_method(net):
    net.turn = lambda h: -h


def patch_forward(net):
    inner = net.last
    net.last = nn.Sequential(inner)
    forward = net.last.forward
    net.last.forward = lambda h: forward(h) * 3


def change_in_place(name, value):
    def change(net):
        with torch.no_grad():
            getattr(net, name).fill_(value)

    return change


def hooked_container(net):
    net.last = nn.Sequential(net.last)
    net.last.register_forward_hook(lambda module, args, out: out + 5)


CHANGES = {
    "replaced layer": lambda net: setattr(net, "last", scale_weights(nn.Conv2d(2, 1, 1), 9.0)),
    "replaced in a list": item("layers", 0, scale_weights(make_masked(4, 4, 3, "B"), 9.0)),
    "wrapped": lambda net: setattr(net, "last", nn.Sequential(net.last, nn.Tanh())),
    "wrapped by a module": lambda net: net.layers.__setitem__(2, Doubling(net.layers[2])),
    "checkpointed": lambda net: net.layers.__setitem__(0, checkpoint_wrapper(Doubling(net.layers[0]))),
    "compiled": lambda net: net.layers.__setitem__(
        0, torch.compile(scale_weights(make_masked(4, 4, 3, "B"), 9.0), backend="eager")
    ),
    "dropped": lambda net: setattr(net, "layers", net.layers[:-1]),
    "identity": item("layers", 2, nn.Identity()),
    "order": lambda net: setattr(net, "layers", nn.ModuleList(list(net.layers)[::-1])),
    "re-typed": item("layers", 1, nn.ELU()),
    "kind": lambda net: setattr(net.gate, "kind", "linear"),
    "activation": lambda net: setattr(net.layers[0], "activation", "softplus"),
    "dilation": lambda net: setattr(net.layers[0], "dilation", (2, 2)),
    "structure": lambda net: setattr(net.layers[0], "structure", make_masked(4, 4, 3, "A").structure),
    "parametrised": lambda net: nn.utils.parametrizations.spectral_norm(net.last),
    "method": patch_method,
    "forward": patch_forward,
    "hook of a container": hooked_container,
    "bias": lambda net: setattr(net.last, "bias", None),
    "number": put("scale", 3.0),
    "list": lambda net: net.skips.append(0),
    "attribute's attribute": lambda net: setattr(net.config, "shift", 4.0),
    "array": lambda net: net.factors.__setitem__(0, -2.0),
    "tensor": change_in_place("plain", -3.0),
    "other tensor": put("plain", torch.full((), -3.0)),
    "buffer": change_in_place("offset", 4.0),
}


@pytest.mark.parametrize("impl", ["reference", "cpp"])
@pytest.mark.parametrize("name", CHANGES)
def test_sampler_follows(name, impl):
    torch.manual_seed(1)
    net = scale_weights(Network(), 1.5)
    sampler = CausalSampler(net, impl=impl)
    x = sampler.sample(8, SIZE, generator=make_generator())
    before = net(x)
    torch.testing.assert_close(sampler.parameters(x), before, rtol=1e-4, atol=1e-4)
    CHANGES[name](net)
    net.eval()
    after = net(x)
    assert not torch.allclose(after, before, rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(sampler.parameters(x), after, rtol=1e-4, atol=1e-4)
    fresh = CausalSampler(net, impl=impl).sample(8, SIZE, generator=make_generator())
    assert torch.equal(sampler.sample(8, SIZE, generator=make_generator()), fresh)


def test_sampler_follows_classes(monkeypatch):
    net = scale_weights(Network())
    sampler = CausalSampler(net)
    x = sampler.sample(2, SIZE)
    for name, value in (("slope", -2.0), ("turn", lambda self, h: -h)):
        monkeypatch.setattr(Network, name, value)
        torch.testing.assert_close(sampler.parameters(x), net(x), rtol=1e-4, atol=1e-4)


def test_compiled_in_place():
    net = scale_weights(Network())
    sampler = CausalSampler(net)
    x = sampler.sample(2, SIZE)
    expected = sampler.parameters(x)
    net.layers[0].compile(backend="eager")
    net.compile(backend="eager")
    assert torch.equal(sampler.parameters(x), expected)
    assert torch.equal(CausalSampler(torch.compile(net, backend="eager")).parameters(x), expected)


def test_untied_parameters():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = make_masked(1, 1, 3, "A")
            self.a = self.b = nn.Parameter(torch.ones(()))

        def forward(self, x):
            return self.layer(x) * self.a + self.b

    net = Tied()
    sampler = CausalSampler(net)
    x = sampler.sample(2, SIZE)
    net.b = nn.Parameter(torch.ones(()))
    torch.testing.assert_close(sampler.parameters(x), net(x))
    with torch.no_grad():
        net.b.fill_(7.0)
    torch.testing.assert_close(sampler.parameters(x), net(x))


@pytest.mark.parametrize("register", ["register_forward_hook", "register_forward_pre_hook"])
def test_hooks_of_leaves_are_refused_later_too(register):
    net = Network().eval()
    sampler = CausalSampler(net)
    sampler.sample(1, SIZE)
    handle = getattr(net.layers[0], register)(lambda module, args, *out: None)
    for _ in range(2):
        with pytest.raises(ValueError, match=r"layer 'layers.0' \(MaskedConv2d\): has forward hooks"):
            sampler.sample(1, SIZE)
    handle.remove()
    sampler.sample(1, SIZE)


def test_backward_hooks_do_not_matter():
    net = Network().eval()
    sampler = CausalSampler(net)
    net.layers[0].register_full_backward_hook(lambda module, d_in, d_out: None)
    net.last.register_full_backward_pre_hook(lambda module, d_out: None)
    assert sampler.sample(1, SIZE).shape == (1, 1, *SIZE)


def test_forward_of_a_leaf():
    """It is followed, or refused where it cannot be."""
    net = Network().eval()
    sampler = CausalSampler(net)
    x = sampler.sample(2, SIZE)
    net.layers[1].forward = lambda h: h.tanh() * 5
    torch.testing.assert_close(sampler.parameters(x), net(x), rtol=1e-4, atol=1e-4)
    forward = net.last.forward
    net.last.forward = lambda h: forward(h) * 3
    with pytest.raises(ValueError, match=r"conv2d.*Supported: "):
        sampler.sample(1, SIZE)


def test_a_failed_change_leaves_nothing_stale():
    net = Network().eval()
    sampler = CausalSampler(net)
    sampler.sample(1, SIZE)
    last = net.last
    net.last = nn.Conv2d(2, 1, 3, padding=1)
    for _ in range(2):
        with pytest.raises(ValueError, match="must have kernel_size 1"):
            sampler.sample(1, SIZE)
    net.last = last
    sampler.sample(1, SIZE)


def test_the_forward_is_recorded_once_as_long_as_nothing_changes(monkeypatch):
    net = Network().eval()
    sampler = CausalSampler(net)
    reading = sampler._reading
    with torch.no_grad():
        net.last.weight.mul_(2.0)
    for _ in range(2):
        sampler.sample(1, SIZE)
        net(torch.zeros(1, 1, *SIZE)).sum().backward()
    assert sampler._reading is reading
    own = GatedPixelCNN(1, 6, 2).eval()
    own.sample(1, SIZE)
    reading = own._sampler()._reading
    own.sample(1, SIZE)
    own.load_state_dict(own.state_dict())
    own.sample(1, SIZE)
    assert own._sampler()._reading is reading


def test_attributes_of_any_kind():
    """They are looked at without harm, and the same ones are no change."""

    @dataclasses.dataclass(frozen=True)
    class Options(abc.ABC):
        sizes: list

    net = nn.Sequential(make_masked(1, 1, 3, "A"))
    options = Options([1, 2])
    ring = [options]
    ring.append(ring)
    for index, value in enumerate((Options, options, ring, {1, 2}, {"a": ring}, np.float32(2), object(), net.children)):
        setattr(net[0], f"attribute{index}", value)
    sampler = CausalSampler(net)
    reading = sampler._reading
    sampler.sample(1, SIZE)
    assert sampler._reading is reading
    options.sizes.append(3)
    sampler.sample(1, SIZE)
    assert sampler._reading is not reading


def test_order_of_children():
    net = nn.Sequential(make_masked(1, 2, 3, "A"))
    net.add_module("a", nn.ReLU())
    net.add_module("b", nn.Tanh())
    net.add_module("c", nn.Conv2d(2, 1, 1))
    snapshot = Snapshot(net)
    assert snapshot.is_current()
    relu = net._modules.pop("a")
    last = net._modules.pop("c")
    net._modules["a"], net._modules["c"] = relu, last
    assert not snapshot.is_current()


# Networks over pixels


@pytest.mark.parametrize("kind", [PixelCNN, GatedPixelCNN])
def test_head_is_replaced(kind):
    net = kind(1, 6, 2).eval()
    net.sample(1, SIZE)
    for value in (50.0, -50.0):
        net.head = kind(1, 6, 2).head
        with torch.no_grad():
            net.head.second.bias.fill_(value)
        assert (net.sample(2, SIZE) == (value > 0)).all()


def test_likelihood_and_impl_are_followed():
    net = GatedPixelCNN(1, 6, 2, likelihood=Categorical(3)).eval()
    net.sample(1, SIZE)
    net.likelihood, net.head = Categorical(5), GatedPixelCNN(1, 6, 2, likelihood=Categorical(5)).head.eval()
    x = net.sample(4, SIZE)
    assert net.parameter_channels == 5
    net.likelihood.check("x", x)
    torch.testing.assert_close(net._sampler().log_prob(x), net.log_prob(x), rtol=1e-4, atol=1e-4)
    net.likelihood = Categorical(4)
    with pytest.raises(ValueError, match="must have 4 output channels for its likelihood and in_channels=1, got 5"):
        net.sample(1, SIZE)
    net.likelihood, net.impl = Categorical(5), "nothing"
    with pytest.raises(ValueError, match="impl must be one of"):
        net.sample(1, SIZE)


def test_copies_follow_their_own_network():
    net = GatedPixelCNN(1, 6, 2).eval()
    sampler = CausalSampler(net)
    net.sample(1, SIZE)
    twins = copy.deepcopy(net), pickle.loads(pickle.dumps(net)), copy.deepcopy(sampler).network
    for index, twin in enumerate((*twins, net)):
        with torch.no_grad():
            twin.head.second.bias.fill_(50.0 if index % 2 else -50.0)
        assert (twin.sample(1, SIZE) == index % 2).all()
    twin = copy.deepcopy(sampler)
    with torch.no_grad():
        twin.network.head.second.bias.fill_(-50.0)
    assert not twin.sample(1, SIZE).any()
