"""Stacks of causal networks: how each is sampled, and the same samples without caches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fastvae.reference.causal_sampler import naive_sample
from fastvae.sampling import Categorical, CausalSampler, LogisticMixture
from tests.support.causal_networks import (
    Arithmetic,
    Colored,
    Embedded,
    Gated,
    Grouped,
    LookedUp,
    Normed,
    Plain,
    Shifted,
)

# Height and width of images, unless a test says otherwise.
SIZE = (6, 7)


def scale_weights(network: nn.Module, factor: float = 2.0) -> nn.Module:
    """In evaluation mode, with weights that make pixels depend on each other strongly."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(factor)
    return network.eval()


@dataclass(frozen=True)
class Stack:
    """A network and how it is sampled."""

    make: Callable[[], nn.Module]
    likelihood: Any = "bernoulli"
    channels: int = 1
    context: Callable[[int, int, int], Tensor] | None = None


def stacks() -> dict[str, Stack]:
    """One for each thing to get right."""

    def vector(n: int, height: int, width: int) -> Tensor:
        return torch.randn(n, 5)

    def maps(n: int, height: int, width: int) -> Tensor:
        return torch.randn(n, 2, height, width)

    return {
        "plain": Stack(Plain),
        "gated": Stack(Gated),
        "gated vector": Stack(lambda: Gated(vector=5), context=vector),
        "gated map": Stack(lambda: Gated(maps=2, kind="linear"), context=maps),
        "shifted": Stack(Shifted),
        "shifted map": Stack(lambda: Shifted(maps=2), context=maps),
        "colored contiguous": Stack(Colored, channels=3),
        "colored interleaved": Stack(lambda: Colored(layout="interleaved"), channels=3),
        "colored categorical": Stack(lambda: Colored(2, per_channel=5), Categorical(5), channels=2),
        "joint channels": Stack(Grouped, channels=2),
        "arithmetic": Stack(Arithmetic),
        "categorical": Stack(lambda: Plain(outputs=256), "categorical"),
        "mixture": Stack(lambda: Gated(outputs=9), LogisticMixture(3)),
        "embedded": Stack(Embedded, Categorical(7)),
        "looked up": Stack(LookedUp, Categorical(7)),
        "normed": Stack(Normed),
        "colored mixture": Stack(lambda: Plain(3, 20), LogisticMixture(2), channels=3),
    }


def make_generator(seed=3):
    return torch.Generator().manual_seed(seed)


class Case:
    """A stack, its context for n images, and the same call without caches."""

    def __init__(self, stack, n, size=SIZE, dtype=torch.float64):
        self.n, self.size, self.dtype = n, size, dtype
        self.network = scale_weights(stack.make()).to(dtype)
        self.stack = stack
        self.context = None if stack.context is None else stack.context(n, *size).to(dtype)

    def sampler(self, impl):
        return CausalSampler(self.network, self.stack.likelihood, in_channels=self.stack.channels, impl=impl)

    def forward(self, x):
        with torch.no_grad():
            return self.network(x) if self.context is None else self.network(x, self.context)

    def sample(self, impl, **options):
        return self.sampler(impl).sample_with_parameters(
            self.n, self.size, context=self.context, generator=make_generator(), **options
        )

    def naive(self, colors, given=None, temperature=1.0):
        sampler = self.sampler("reference")
        uniforms = sampler.uniforms(self.n, self.size, generator=make_generator())
        images = torch.zeros(self.n, self.stack.channels, *self.size, dtype=self.dtype)
        kept = None
        if given is not None:
            kept = ~given.isnan()
            images = torch.where(kept, given, images)
        parameters = naive_sample(self.forward, sampler.likelihood, images, kept, uniforms, temperature, colors)
        return images, parameters
