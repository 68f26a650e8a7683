"""Flows as Pyro's transforms; importing this imports Pyro."""

from __future__ import annotations

from pyro.distributions.conditional import ConditionalTransformModule
from pyro.distributions.torch_transform import TransformModule
from torch import Tensor, nn

from .torch_distributions import FlowTransform


class FlowTransformModule(FlowTransform, TransformModule):
    """A flow, with its context if it takes one, as a ``TransformModule``."""


class ConditionalFlowTransformModule(ConditionalTransformModule):
    """A flow that takes a context as a ``ConditionalTransformModule``."""

    def __init__(self, flow: nn.Module, cache_size: int) -> None:
        super().__init__()
        self.flow, self.cache_size = flow, cache_size

    def condition(self, context: Tensor) -> FlowTransformModule:
        return FlowTransformModule(self.flow, context, cache_size=self.cache_size)
