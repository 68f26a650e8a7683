r"""Affine flow step in plain PyTorch: :math:`z' = a(s)\, z + c(s)\, m`, ``log_det`` = sum of :math:`\log a(s)`.

=============  ==========================================  =====================  ==================
kind           log a(s)                                    c(s)                   range of log a(s)
=============  ==========================================  =====================  ==================
gated          -softplus(-s), s clamped to ±30             1 - a(s)               [-30, 0)
exp            s / (1 + abs(s) / log 1000)                 1                      (-6.91, 6.91)
clamped_exp    s clamped to [-5, 3]                        1                      [-5, 3]
softplus       log(softplus(s) + 0.001)                    1                      [-6.91, log s]
sigmoid        log(sigmoid(s) + 0.001)                     1                      [-6.91, 0.001]
location_only  0                                           1                      0
iaf_release    -0.1 s, s clamped to ±300                   -0.1 a(s)              [-30, 30]
=============  ==========================================  =====================  ==================
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from ..precision import compute_dtype

KINDS = ("gated", "exp", "clamped_exp", "softplus", "sigmoid", "location_only", "iaf_release")

GATE_BOUND = 30.0
EXP_BOUND = math.log(1000.0)
CLAMPED_EXP = (-5.0, 3.0)
LEAST_SCALE = 1e-3
RELEASE_FACTOR, RELEASE_BOUND = 0.1, 300.0


def log_scale(scale_logit: Tensor, kind: str) -> Tensor:
    """log a(s)."""
    if kind == "gated":
        return functional.logsigmoid(scale_logit.clamp(-GATE_BOUND, GATE_BOUND))
    if kind == "exp":
        return scale_logit / (1.0 + scale_logit.abs() / EXP_BOUND)
    if kind == "clamped_exp":
        return scale_logit.clamp(*CLAMPED_EXP)
    if kind == "softplus":
        return torch.log(functional.softplus(scale_logit) + LEAST_SCALE)
    if kind == "sigmoid":
        return torch.log(torch.sigmoid(scale_logit) + LEAST_SCALE)
    return -RELEASE_FACTOR * scale_logit.clamp(-RELEASE_BOUND, RELEASE_BOUND)


def scale_shift(shift: Tensor, scale_logit: Tensor, log_a: Tensor, kind: str) -> Tensor:
    """c(s) m, the part of the output that does not depend on z."""
    if kind == "gated":
        return torch.sigmoid(-scale_logit.clamp(-GATE_BOUND, GATE_BOUND)) * shift
    if kind == "iaf_release":
        return -RELEASE_FACTOR * log_a.exp() * shift
    return shift


def affine_flow(
    z: Tensor,
    shift: Tensor,
    scale_logit: Tensor | None,
    kind: str,
    inverse: bool = False,
    log_det_map: bool = False,
) -> tuple[Tensor, Tensor]:
    """``z'`` and ``log_det``; with ``inverse``, z of z' = ``z`` and the log-determinant of that map.

    With ``log_det_map`` every feature's share of ``log_det``, of which it is the sum.
    """
    dtype = compute_dtype(z.dtype)
    x, m = z.to(dtype), shift.to(dtype)
    if kind == "location_only":
        out = x - m if inverse else x + m
        return out.to(z.dtype), torch.zeros_like(out if log_det_map else out[..., 0])
    assert scale_logit is not None
    s = scale_logit.to(dtype)
    log_a = log_scale(s, kind)
    if inverse:
        out, shares = (x - scale_shift(m, s, log_a, kind)) * (-log_a).exp(), -log_a
    else:
        out, shares = torch.addcmul(scale_shift(m, s, log_a, kind), log_a.exp(), x), log_a
    return out.to(z.dtype), shares if log_det_map else shares.sum(-1)
