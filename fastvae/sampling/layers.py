"""The protocols of layers that the sampler computes pixel by pixel.

A class names its protocol in the attribute ``sampled_as``, beside its ``forward``. The sampler reads that attribute and
what the protocol lists; it knows no class.
"""

from __future__ import annotations

from typing import Any, Literal, Protocol

from torch import Tensor, nn

from ..structure.convolution import ConvStructure

__all__ = ["CodeTable", "Gate", "MaskedConvolution", "Role", "find_role"]

Role = Literal["masked_conv", "gate", "code_table"]


class MaskedConvolution(Protocol):
    """``"masked_conv"``: a convolution that keeps the taps and weights of its structure."""

    structure: ConvStructure
    in_channels: int
    out_channels: int
    kernel_size: tuple[int, ...]
    padding: str | tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    activation: str | None

    @property
    def mask_type(self) -> str: ...

    @property
    def in_degrees(self) -> Tensor | None: ...

    @property
    def out_degrees(self) -> Tensor | None: ...

    def scaled_weight(self) -> Tensor:
        """The weight that the layer multiplies by; without this method it is the parameter ``weight``."""


class Gate(Protocol):
    """``"gate"``: the gated activation of ``kind``, called with ``x`` and maybe ``condition``."""

    kind: str


class CodeTable(Protocol):
    """``"code_table"``: the row of a table at the level of a pixel."""

    weight: Tensor
    num_embeddings: int
    embedding_dim: int
    max_norm: float | None


def find_role(module: nn.Module) -> Role | None:
    """The protocol of ``module``; None without one, also for a class with a forward of its own."""
    forward: Any = type(module).forward
    for kind in type(module).__mro__:
        role: Role | None = vars(kind).get("sampled_as")
        if role is not None and vars(kind).get("forward") is forward:
            return role
    return None
