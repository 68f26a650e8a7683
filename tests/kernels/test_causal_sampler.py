"""The Triton sampler against the cached reference, in the interpreter or on a GPU: every op, every head."""

import math

import pytest
import torch

from fastvae.kernels import causal_sampler
from fastvae.kernels._launch import forget_rules
from fastvae.nn import GatedPixelCNN
from fastvae.sampling import CausalSampler
from tests.support.causal_stacks import Stack, scale_weights, stacks
from tests.support.implementations import GPU, device_of

STACKS = stacks()
# The interpreter takes a second for ten nodes at one pixel.
SIZE = (6, 7) if GPU else (2, 2)
NAMES = tuple(STACKS) if GPU else ("gated map", "colored categorical", "colored mixture", "embedded", "normed")


def draw(network, stack, context, impl, given=None):
    device = device_of(impl)
    network = network.to(device)
    context = None if context is None else context.to(device)
    sampler = CausalSampler(network, stack.likelihood, in_channels=stack.channels, impl=impl)
    given = None if given is None else given.to(device)
    images, parameters = sampler.sample_with_parameters(
        2, SIZE, context=context, given=given, temperature=0.8, generator=torch.Generator(device).manual_seed(1)
    )
    again = sampler.parameters(images, context) if GPU or stack.channels == 1 else None
    return images.cpu(), parameters.cpu(), None if again is None else again.cpu()


@pytest.mark.parametrize("name", NAMES)
def test_draws_what_the_reference_draws(name):
    stack = STACKS[name]
    network = scale_weights(stack.make())
    context = None if stack.context is None else stack.context(2, *SIZE)
    given = None
    if stack.channels > 1:
        given = torch.full((2, stack.channels, *SIZE), math.nan)
        given[0, :, 0, 1] = given[1, :, 1, 0] = 1.0
    images, parameters, again = draw(network, stack, context, "triton", given)
    expected, expected_parameters, _ = draw(network, stack, context, "reference", given)
    torch.testing.assert_close(images, expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(parameters, expected_parameters, rtol=1e-5, atol=1e-5)
    if again is not None:
        assert torch.equal(again, parameters)


def test_blocks_and_runs_of_any_length():
    """More columns than a block has, gates across blocks, and more terms than a run has."""
    network = scale_weights(GatedPixelCNN(1, 66, 2, first_kernel_size=3, impl="reference"), 1.5)
    stack = Stack(lambda: network)
    images, parameters, again = draw(network, stack, None, "triton")
    expected, expected_parameters, _ = draw(network, stack, None, "reference")
    torch.testing.assert_close(images, expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(parameters, expected_parameters, rtol=1e-5, atol=1e-5)
    assert torch.equal(again, parameters)


def test_images_of_one_program(monkeypatch):
    """Programs of two images, the last of which has one, draw what programs of one image draw."""
    stack = STACKS["gated"]
    sampler = CausalSampler(scale_weights(stack.make()).to(device_of("triton")), stack.likelihood, impl="triton")
    drawn = []
    for wave in (3, 2):
        monkeypatch.setattr(causal_sampler, "_WAVE", wave)
        forget_rules()
        generator = torch.Generator(device_of("triton")).manual_seed(1)
        drawn.append(sampler.sample_with_parameters(3, (2, 2), generator=generator))
    torch.testing.assert_close(drawn[1], drawn[0], rtol=1e-5, atol=1e-5)
    assert drawn[0][0].std() > 0.1
