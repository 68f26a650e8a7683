"""A whole masked network, alone or with the affine step it parametrises, in one call."""

from __future__ import annotations

from torch import Tensor

from ..reference import made as reference
from ..reference.made import MadeParameters
from ..structure import MadeStructure


def made(
    x: Tensor,
    context_term: Tensor | None,
    parameters: MadeParameters,
    structure: MadeStructure,
    *,
    impl: str = "auto",
) -> Tensor:
    return reference.made(x, context_term, parameters, structure)


def autoregressive_flow(
    z: Tensor,
    context_term: Tensor | None,
    parameters: MadeParameters,
    structure: MadeStructure,
    *,
    kind: str = "gated",
    impl: str = "auto",
) -> tuple[Tensor, Tensor]:
    return reference.autoregressive_flow(z, context_term, parameters, structure, kind)
