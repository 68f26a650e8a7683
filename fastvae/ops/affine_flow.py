"""Affine flow step with its log-determinant in one pass."""

from __future__ import annotations

from torch import Tensor

from ..reference import affine_flow as reference


def affine_flow(
    z: Tensor,
    shift: Tensor,
    scale_logit: Tensor | None = None,
    *,
    kind: str = "gated",
    inverse: bool = False,
    impl: str = "auto",
) -> tuple[Tensor, Tensor]:
    return reference.affine_flow(z, shift, scale_logit, kind, inverse)
