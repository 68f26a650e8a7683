"""Inverse of an autoregressive affine flow in one sweep over the features, with gradients in one transposed sweep."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import backend
from ..reference import autoregressive_inverse as reference
from ..reference.made import MadeParameters
from ..structure import MadeStructure
from . import _checks, autoregressive_flow
from ._library import define, empty, extension, needs_grad, once_differentiable
from ._network import check_kind, check_network, structure_fields
from .autoregressive_flow import NETWORK, Optional, Tensors, factors, layer_gradients, prepared, unflat


def _fwd_cpu(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    return autoregressive_flow.fwd_cpu("autoregressive_inverse_fwd", *args)


def _bwd_cpu(
    d_x: Tensor,
    d_log_det: Tensor,
    saved: Tensor,
    weights: Tensors,
    scales: Optional,
    degrees: Tensors,
    structure: Sequence[int],
) -> Tensor:
    g = _checks.compute(d_x)
    d_z = empty(g, g.shape)
    w, s = autoregressive_flow.computed(weights), autoregressive_flow.computed(scales)
    extension().autoregressive_inverse_bwd(
        g.dtype == torch.float64, autoregressive_flow.all_layer_fields(w, [None] * len(w), s, degrees),
        list(structure), g.data_ptr(), d_log_det.data_ptr(), saved.data_ptr(), d_z.data_ptr(), g.shape[0],
    )  # fmt: skip
    return _checks.cast(d_z, d_x.dtype)


FWD = define(
    f"autoregressive_inverse_fwd(Tensor z, {NETWORK}, bool keep) -> (Tensor x, Tensor log_det, Tensor saved)",
    module="autoregressive_inverse", cpu=_fwd_cpu, fake=autoregressive_flow.fwd_fake,
)  # fmt: skip
BWD = define(
    "autoregressive_inverse_bwd(Tensor d_x, Tensor d_log_det, Tensor saved, Tensor[] weights,"
    " Tensor?[] weight_scales, Tensor[] degrees, SymInt[] structure) -> Tensor d_z",
    module="autoregressive_inverse", cpu=_bwd_cpu, fake=lambda d_x, *_: d_x.new_empty(d_x.shape),
)  # fmt: skip


class _AutoregressiveInverse(torch.autograd.Function):
    # By the implicit function theorem: with F the step and z = F(x), the gradient d_z solves J^T d_z = d_x (plus what
    # comes through log_det), and parameters get the gradient of F for the upstream (-d_z, -d_log_det).
    @staticmethod
    def forward(ctx: Any, call: tuple[int, list[int], bool], z: Tensor, *tensors: Any) -> tuple[Tensor, Tensor]:
        layers, structure, normalized = call
        context_term, w, b, s, degrees = unflat(tensors, layers)
        s, norms = factors(w, s, degrees, normalized)
        x, log_det, saved = FWD.on("cpp", z)(z, context_term, w, b, s, degrees, structure, True)
        ctx.save_for_backward(saved, *norms, *w, *b, *s, *degrees)
        ctx.call = call
        return x, log_det

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_x: Tensor, d_log_det: Tensor) -> Any:
        layers, structure, _ = ctx.call
        saved, *rest = ctx.saved_tensors
        norms, rest = rest[:layers], rest[layers:]
        _, w, b, s, degrees = unflat((None, *rest), layers)
        needs, d_log_det = ctx.needs_input_grad[2:], d_log_det.contiguous()
        d_z = BWD.on("cpp", d_x)(d_x.contiguous(), d_log_det, saved, w, s, degrees, structure)
        if not any(needs):
            return None, d_z, *(None,) * len(needs)
        _, d_context, *gradients = autoregressive_flow.BWD.on("cpp", d_x)(
            -d_z, -d_log_det, saved, w, b, s, norms, degrees, structure, needs[0], any(needs[1:])
        )
        return None, d_z, *layer_gradients(needs, layers, d_context, tuple(gradients))


class _TritonInverse(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, call: tuple[int, MadeStructure, str], z: Tensor, *tensors: Any) -> tuple[Tensor, Tensor]:
        from ..kernels.autoregressive_inverse import autoregressive_inverse_fwd

        layers, structure, kind = call
        context_term, w, b, s, _ = unflat(tensors, layers)
        x, log_det = autoregressive_inverse_fwd(z, context_term, w, b, s, structure, kind)
        ctx.save_for_backward(x, *tensors)
        ctx.call = call
        return x, log_det

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_x: Tensor, d_log_det: Tensor) -> Any:
        from ..kernels.autoregressive_inverse import autoregressive_inverse_solve

        layers, structure, kind = ctx.call
        x, *tensors = ctx.saved_tensors
        context_term, w, b, s, degrees = unflat(tensors, layers)
        needs = ctx.needs_input_grad[2:]
        args = (d_x.contiguous(), d_log_det.contiguous(), x, context_term, w, b, s, structure, kind)
        d_z = autoregressive_inverse_solve(*args)
        wanted = [i for i, need in enumerate(needs) if need]
        gradients: list[Tensor | None] = [None] * len(needs)
        if wanted:
            with torch.enable_grad():
                leaves = [t.detach().requires_grad_() if needs[i] else t for i, t in enumerate(tensors)]
                context_term, w, b, s, degrees = unflat(leaves, layers)
                out, log_det = autoregressive_flow.autoregressive_flow(
                    x, context_term, MadeParameters(w, b, s, degrees), structure, kind=kind, impl="triton"
                )
                found = torch.autograd.grad((out, log_det), [leaves[i] for i in wanted], (-d_z, -d_log_det))
            for i, gradient in zip(wanted, found, strict=True):
                gradients[i] = gradient
        return None, d_z, *gradients


def autoregressive_inverse(
    z: Tensor,
    context_term: Tensor | None,
    parameters: MadeParameters,
    structure: MadeStructure,
    *,
    kind: str = "gated",
    impl: str = "auto",
) -> tuple[Tensor, Tensor]:
    r"""The point x that one autoregressive flow step maps to ``z``.

    One sweep over the features: when feature i is known, the hidden units of degree i are computed, and with them the
    parameters of the next feature. Every weight is used once, where a fixed point or D passes of the network use it D
    times. The gradient is one transposed sweep, by the implicit function theorem, and one backward pass of the step.

    Args:
        z: points, ``(*, D)``.
        context_term: what is added to the first layer before its activation, ``(*, hidden width)``, or None.
        parameters: weights, biases and row factors of the layers.
        structure: sizes and degrees, see :class:`fastvae.structure.MadeStructure`.
        kind: the affine map, see :func:`fastvae.functional.affine_flow`.
        impl: see :mod:`fastvae.backend`.

    Returns:
        x, ``(*, D)``, dtype of ``z``, and the log-determinant of the inverse map, ``(*)``, float32 (float64 for float64
        inputs).

    Raises:
        TypeError: an argument is no floating-point tensor, or dtypes differ outside autocast.
        ValueError: shapes do not fit, devices differ, or ``kind`` is unknown.
        RuntimeError: ``impl`` cannot run here.

    Note:
        Exact up to rounding, which each feature passes on to the later ones. Where 1 / a(s) meets large points the
        result overflows to inf, as the reference's does. Differentiable once (the reference, any number of times).
    """
    check_kind(kind, structure)
    z, context_term, parameters = check_network("z", z, context_term, parameters, structure)
    chosen = backend.resolve(impl, z)
    if chosen == "reference":
        return reference.autoregressive_inverse(z, context_term, parameters, structure, kind)
    batch, d = z.shape[:-1], z.shape[-1]
    if chosen == "triton":
        parameters = autoregressive_flow.with_factors(parameters, chosen)
    z, tensors = prepared(z, context_term, parameters)
    layers = len(parameters.weights)
    grad = needs_grad(z, *(t for t in tensors if t is not None))
    if chosen == "triton":
        x, log_det = _TritonInverse.apply((layers, structure, kind), z, *tensors)
    elif grad:
        call = layers, structure_fields(structure, kind), parameters.normalized
        x, log_det = _AutoregressiveInverse.apply(call, z, *tensors)
    else:
        context_term, w, b, s, degrees = unflat(tensors, layers)
        s, _ = factors(w, s, degrees, parameters.normalized)
        x, log_det, _ = FWD.on("cpp", z)(z, context_term, w, b, s, degrees, structure_fields(structure, kind), False)
    return _checks.shaped(x, (*batch, d)), _checks.shaped(log_det, batch)
