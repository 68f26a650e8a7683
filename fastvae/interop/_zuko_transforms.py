"""Flows as zuko's lazy transforms; importing this imports zuko."""

from __future__ import annotations

from torch import Tensor, nn
from torch.distributions import Transform
from zuko.lazy import LazyTransform

from .torch_distributions import FlowTransform


class LazyFlowTransform(LazyTransform):
    """A flow as a lazy transform from data to latents."""

    def __init__(self, flow: nn.Module) -> None:
        super().__init__()
        self.flow = flow

    def forward(self, c: Tensor | None = None) -> Transform:
        return FlowTransform(self.flow, c).inv
