"""Flows as nflows' transforms; importing this imports nflows."""

from __future__ import annotations

from typing import Any

from nflows.transforms.base import InverseNotAvailable, Transform
from torch import Tensor, nn

from ..nn.sequence import without_inverse


class NflowsTransform(Transform):
    """A flow as a transform from data to noise."""

    def __init__(self, flow: nn.Module) -> None:
        super().__init__()
        self.flow: Any = flow

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        missing = without_inverse(self.flow)
        if missing is not None:
            raise InverseNotAvailable(f"nflows maps data to noise, which is the flow's inverse: {missing} has none")
        return self.flow.inverse(inputs, context)

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self.flow(inputs, context)
