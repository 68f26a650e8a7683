"""The sampler knows layers by what they offer: a class of another library that follows a protocol is one of them."""

import torch
from torch import nn

from fastvae.nn import CodeEmbedding, GatedActivation, MaskedConv2d
from fastvae.reference.causal_sampler import naive_sample
from fastvae.sampling import Categorical, CausalSampler
from fastvae.sampling.layers import find_role


class Gate(nn.Module):
    """No relative of fastvae's gate."""

    sampled_as = "gate"
    kind = "linear"

    def forward(self, x, condition=None):
        a, b = (x if condition is None else x + condition).chunk(2, 1)
        return a * torch.sigmoid(b)


class Silenced(MaskedConv2d):
    """With a forward of its own, which the protocol says nothing about."""

    def forward(self, input):
        return 0.0 * super().forward(input)


class Named(MaskedConv2d):
    """A subclass that computes the same."""


def stack():
    return nn.Sequential(MaskedConv2d(1, 8, 3, padding=1, mask_type="A"), Gate(), MaskedConv2d(4, 3, 1, mask_type="B"))


def test_a_foreign_layer_is_sampled_by_its_protocol():
    torch.manual_seed(0)
    network = stack()
    sampler = CausalSampler(network, Categorical(3))
    images = sampler.sample(4, (5, 5), generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(sampler.parameters(images), network(images).detach())
    uniforms = sampler.uniforms(4, (5, 5), generator=torch.Generator().manual_seed(1))
    found = torch.zeros_like(images)
    naive_sample(network, Categorical(3), found, None, uniforms)
    assert torch.equal(found, images)


def test_the_class_that_has_the_forward_names_the_protocol():
    assert find_role(MaskedConv2d(1, 1, 3, mask_type="A")) == "masked_conv"
    assert find_role(Named(1, 1, 3, mask_type="A")) == "masked_conv"
    assert find_role(GatedActivation()) == "gate"
    assert find_role(CodeEmbedding(4, 2)) == "code_table"
    assert find_role(Silenced(1, 1, 3, mask_type="A")) is None
    assert find_role(nn.Conv2d(1, 1, 1)) is None
