"""Kernels compute with the weights of the call, however they were written.

A tensor's version does not rise when it is written through ``.data``, nor when a CUDA graph is replayed. What kernels
pack or sort of weights therefore must not be kept from call to call.
"""

from __future__ import annotations

import copy

import pytest
import torch

from fastvae import backend
from fastvae.nn import InverseAutoregressiveFlow, MaskedConv2d, MaskedLinear, PixelCNN
from tests.support.implementations import device_of

DEVICE = device_of("triton")


def convolution(**options):
    return MaskedConv2d(4, 4, 3, mask_type="B", padding=1, **options), lambda layer: layer(images(4))


def images(channels):
    return torch.linspace(-1.0, 1.0, 2 * channels * 9, device=DEVICE).view(2, channels, 3, 3)


def rows():
    return torch.linspace(-1.0, 1.0, 12, device=DEVICE).view(3, 4)


def channels_last():
    layer, call = convolution()
    return layer.to(memory_format=torch.channels_last), call


def flow(direction, **options):
    return InverseAutoregressiveFlow(4, (8, 8), **options), lambda step: getattr(step, direction)(rows())[0]


def sampler():
    network = PixelCNN(1, 4, 1, kernel_size=3).eval()
    return network, lambda network: network.sample(16, (1, 3), generator=torch.Generator(DEVICE).manual_seed(3))


CASES = {
    "linear": lambda: (MaskedLinear(4, 4, torch.arange(4), torch.arange(4)), lambda layer: layer(rows())),
    "convolution": convolution,
    "convolution, colours": lambda: convolution(num_colors=2),
    "convolution, channels last": channels_last,
    "flow": lambda: flow("forward"),
    "flow, weight norm": lambda: flow("forward", weight_norm=True),
    "inverse": lambda: flow("inverse"),
    "sampler": sampler,
}
NAMES = [pytest.param(name, marks=pytest.mark.thorough) if name == "sampler" else name for name in CASES]


def write(module):
    """Other weights in the same memory, which no version tells."""
    for p in module.parameters():
        version, address = p._version, p.data_ptr()
        p.data.mul_(-1.5).add_(0.1)
        assert (p._version, p.data_ptr()) == (version, address)


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_weights_are_those_of_the_call(name):
    torch.manual_seed(5)
    module, call = CASES[name]()
    module = module.to(DEVICE)
    with backend.use("triton"):
        before = call(module)
        write(module)
        after, fresh = call(module), call(copy.deepcopy(module))
    assert torch.equal(after, fresh)
    assert not torch.equal(after, before)


def test_gradients_too():
    module, x = convolution(num_colors=2)[0].to(DEVICE), images(4).requires_grad_()

    def gradient(module):
        return torch.autograd.grad(module(x).square().sum(), x)[0]

    with backend.use("triton"):
        before = gradient(module)
        write(module)
        after, fresh = gradient(module), gradient(copy.deepcopy(module))
    assert torch.equal(after, fresh)
    assert not torch.equal(after, before)
