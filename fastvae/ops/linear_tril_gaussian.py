"""Full-covariance Gaussian behind the linear layer that predicts it: the factor's entries are used as they are made."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import backend, rng
from ..precision import compute_dtype
from ..reference import linear_tril_gaussian as reference
from ..reference import tril_gaussian
from . import _checks, _layout, diag_gaussian
from ._contracts import Call, check_row_offset
from ._library import (
    Differentiable,
    apply,
    define,
    extension,
    keep_none,
    needs_grad,
    reference_gradients,
    with_reference,
)
from ._network import LANES
from .tril_gaussian_with_kl import tril_gaussian_rsample_with_kl

# `noise` is a 0-d int64 seed or the normals, (N, D). The backward pass reads `kept`, whose layout is the kernels'.
#
# With fewer rows the lanes of the kernels are mostly empty.
_LEAST_ROWS = 16


def _count_kept(rows: int, latents: int) -> int:
    return (rows + LANES - 1) // LANES * LANES * (3 * latents + latents * (latents - 1) // 2)


def _fwd_cpu(
    h: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    noise: Tensor,
    latents: int,
    tril_scale: float,
    lower: float,
    upper: float,
    row_offset: int,
    by_dimension: bool,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    tensors = _layout.all_to_compute_dtype((h, weight, bias), h.dtype)
    if noise.dim() > 0:
        noise = _layout.cast(noise, compute_dtype(h.dtype))
    z, log_q, kl, kept = extension().linear_tril_gaussian_fwd(
        *tensors, noise, latents, tril_scale, lower, upper, row_offset, by_dimension, keep
    )
    return _layout.cast(z, h.dtype), log_q, kl, kept


def _fwd_fake(
    h: Tensor,
    weight: Tensor,
    bias: Any,
    noise: Any,
    latents: int,
    tril_scale: float,
    lower: float,
    upper: float,
    row_offset: int,
    by_dimension: bool,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    rows = h.shape[0]
    log_q = h.new_empty(rows, dtype=compute_dtype(h.dtype))
    kl = log_q.new_empty((rows, latents) if by_dimension else rows)
    kept = log_q.new_empty(_count_kept(rows, latents)) if keep else h.new_empty(0)
    return h.new_empty((rows, latents)), log_q, kl, kept


def _bwd_cpu(
    d_z: Tensor,
    d_log_q: Tensor | None,
    d_kl: Tensor | None,
    h: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    kept: Tensor,
    latents: int,
    tril_scale: float,
    lower: float,
    upper: float,
    needs: Sequence[bool],
) -> tuple[Tensor | None, ...]:
    dtype = h.dtype
    g, x, w, b = _layout.all_to_compute_dtype((d_z, h, weight, bias), dtype)
    gradients = extension().linear_tril_gaussian_bwd(
        g, d_log_q, d_kl, x, w, b, kept, latents, tril_scale, lower, upper, needs
    )
    return tuple([None if t is None else _layout.cast(t, dtype) for t in gradients])


def _bwd_fake(
    d_z: Any,
    d_log_q: Any,
    d_kl: Any,
    h: Tensor,
    weight: Tensor,
    bias: Any,
    kept: Any,
    latents: Any,
    tril_scale: Any,
    lower: Any,
    upper: Any,
    needs: Sequence[bool],
) -> tuple[Tensor, ...]:
    shapes = h.shape, weight.shape, weight.shape[:1]
    return tuple(h.new_empty(shape if need else 0) for shape, need in zip(shapes, needs, strict=True))


def _check_head(call: Call) -> None:
    latents = call["latents"]
    call.require(latents >= 1, "latents", "be >= 1", latents)
    outputs = latents * (latents + 3) // 2
    call.require(call.sizes["P"] == outputs, "weight", f"have {outputs} rows", call.sizes["P"])


def _check_forward(call: Call) -> None:
    _check_head(call)
    noise, rows = call.get_tensor("noise"), call.sizes["N"]
    if noise.dim() == 0:
        call.tensor("noise", noise, (), "i")
    else:
        call.tensor("noise", noise, (str(rows), str(call["latents"])), "ca")
    check_row_offset(call)


def _check_backward(call: Call) -> None:
    _check_head(call)
    rows, latents, needs, d_kl = call.sizes["N"], call["latents"], call["needs"], call["d_kl"]
    call.tensor("d_z", call.get_tensor("d_z"), (str(rows), str(latents)), "c")
    call.tensor("kept", call.get_tensor("kept"), (str(_count_kept(rows, latents)),), "cw")
    if d_kl is not None:
        sizes = (str(rows), str(latents)) if d_kl.dim() == 2 else (str(rows),)
        call.tensor("d_kl", d_kl, sizes, "cw")
    call.require(len(needs) == 3, "needs", "be three truth values", needs)
    call.require(not needs[2] or call["bias"] is not None, "needs", "want no gradient of an absent bias", needs)


_TENSORS = "h[N,H]r weight[P,H]r bias?[P]c"
_HEAD = "SymInt latents, float tril_scale, float lower, float upper"
_INSTEAD = "fastvae.functional.linear_tril_gaussian_rsample_with_kl"
FWD = define(
    f"linear_tril_gaussian_fwd(Tensor h, Tensor weight, Tensor? bias, Tensor noise, {_HEAD}, SymInt row_offset,"
    " bool by_dimension, bool keep) -> (Tensor z, Tensor log_q, Tensor kl, Tensor kept)",
    tensors=_TENSORS, more=_check_forward,
    module=None, instead=_INSTEAD, cpu=_fwd_cpu, fake=_fwd_fake,
)  # fmt: skip
BWD = define(
    "linear_tril_gaussian_bwd(Tensor d_z, Tensor? d_log_q, Tensor? d_kl, Tensor h, Tensor weight, Tensor? bias,"
    f" Tensor kept, {_HEAD}, bool[] needs) -> (Tensor d_h, Tensor d_weight, Tensor d_bias)",
    tensors=f"{_TENSORS} d_log_q?[N]cw", more=_check_backward,
    module=None, instead=_INSTEAD, cpu=_bwd_cpu, fake=_bwd_fake,
)  # fmt: skip


def _rebuild(ctx: Any) -> Differentiable:
    h, weight, bias, _, noise = ctx.saved_tensors
    (latents, tril_scale, lower, upper), row_offset, by_dimension = ctx.head, ctx.row_offset, ctx.by_dimension
    # Of the standard normal the sample is the noise, with the bits of the forward pass.
    zero = h.new_zeros((h.shape[0], latents), dtype=compute_dtype(h.dtype))
    eps = diag_gaussian.FWD.on(backend.route_of("cpp", zero))(zero, zero, noise, zero.shape, row_offset, False)[0]

    def sample(h: Tensor, weight: Tensor, bias: Tensor | None, *_: None) -> tuple[Tensor, ...]:
        found = reference.parameters(h, weight, bias, latents, tril_scale, (lower, upper))
        return tril_gaussian.rsample_with_kl(*found, True, (), eps, None, by_dimension)

    return sample, (h, weight, bias, None, None, None, None)


class _LinearTrilGaussian(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        h: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        noise: Tensor,
        head: tuple[int, float, float, float],
        options: tuple[int, bool],
        route: backend.Route,
    ) -> tuple[Tensor, Tensor, Tensor]:
        z, log_q, kl, kept = FWD.on(route)(h, weight, bias, noise, *head, *options, True)
        ctx.save_for_backward(h, weight, bias, kept, noise)
        ctx.head, ctx.route = head, route
        ctx.row_offset, ctx.by_dimension = options
        keep_none(ctx)
        return z, log_q, kl

    @staticmethod
    @with_reference(_rebuild)
    def backward(
        ctx: Any, route: backend.Route, d_z: Tensor | None, d_log_q: Tensor | None, d_kl: Tensor | None
    ) -> tuple[Any, ...]:
        if d_z is None:
            # Few want a gradient without that of the sample: no kernel.
            return reference_gradients(_rebuild, ctx, (d_z, d_log_q, d_kl))
        h, weight, bias, kept, _ = ctx.saved_tensors
        d_log_q, d_kl = (None if g is None else g.contiguous() for g in (d_log_q, d_kl))
        needs = list(ctx.needs_input_grad[:3])
        found = BWD.on(route)(d_z.contiguous(), d_log_q, d_kl, h, weight, bias, kept, *ctx.head, needs)
        return *(g if need else None for g, need in zip(found, needs, strict=True)), None, None, None, None


def _count_latents(outputs: int) -> int:
    """The most dimensions whose parameters are no more than ``outputs``."""
    if not torch.compiler.is_compiling():
        return (math.isqrt(9 + 8 * outputs) - 3) // 2
    # A compiler has no integer root of a size that may vary.
    latents = 0
    while (latents + 1) * (latents + 4) // 2 <= outputs:
        latents += 1
    return latents


def _check_layer(h: Tensor, weight: Tensor, bias: Tensor | None) -> int:
    """The dimensions of z."""
    if weight.dim() != 2:
        raise ValueError(f"weight must have shape (D(D+3)/2, H), got {tuple(weight.shape)}")
    outputs, features = weight.shape
    latents = _count_latents(outputs)
    if latents < 1 or latents * (latents + 3) // 2 != outputs:
        raise ValueError(f"weight must have D(D+3)/2 rows for D >= 1 dimensions, got {outputs}")
    if h.dim() == 0 or h.shape[-1] != features:
        raise ValueError(f"h must have shape (*, {features}), got {tuple(h.shape)}")
    if bias is not None and bias.shape != (outputs,):
        raise ValueError(f"bias must have shape ({outputs},), got {tuple(bias.shape)}")
    return latents


def _check_scale(tril_scale: float) -> float:
    if not isinstance(tril_scale, (int, float)) or not -math.inf < tril_scale < math.inf:
        raise ValueError(f"tril_scale must be a finite number, got {tril_scale!r}")
    return float(tril_scale)


def linear_tril_gaussian_rsample_with_kl(
    h: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    tril_scale: float = 1.0,
    log_sigma_bounds: Sequence[float] | None = None,
    kl: str = "sum",
    eps: Tensor | None = None,
    generator: torch.Generator | None = None,
    row_offset: int = 0,
    impl: str = "auto",
) -> tuple[Tensor, Tensor, Tensor]:
    r"""Draws a sample of a full-covariance Gaussian whose parameters a linear layer predicts.

    .. math::
        (\mu, \log\sigma, t) = W h + b, \qquad L = s \operatorname{strictly\,lower}(t) + \operatorname{diag}(\sigma),
        \qquad z = \mu + L\epsilon

    It is :func:`torch.nn.functional.linear`, a clamp and :func:`tril_gaussian_rsample_with_kl` in one call, for the
    last layer of an encoder: the D(D-1)/2 entries below the diagonal are by far its largest output. The CPU kernel
    multiplies each entry by its noise while it is in a register, and backward makes the entry's gradient where the
    weight's gradient needs it.

    Args:
        h: features, ``(*, H)``; float16, bfloat16, float32 or float64.
        weight: W, ``(D(D+3)/2, H)``: the rows of mu, of log-sigma, then of the entries, packed row by row, as
            :class:`fastvae.nn.TriangularGaussianHead` has it.
        bias: b, ``(D(D+3)/2,)``, or None.
        tril_scale: s, the factor on the entries below the diagonal.
        log_sigma_bounds: smallest and largest log-sigma, nats, see :func:`fastvae.nn.bound_log_sigma`; None for no
            bound.
        kl: ``"sum"`` or ``"dimensions"``, see :func:`tril_gaussian_rsample_with_kl`.
        eps: the noise, ``(*, D)``, instead of drawing it.
        generator: the torch generator that the seed of the noise is drawn from; the device's default if None.
        row_offset: number of the first row within a joint batch, see :func:`diag_gaussian_rsample`.
        impl: ``"auto"``, ``"triton"``, ``"cpp"`` or ``"reference"``, see :mod:`fastvae.backend`. A GPU runs the layer
            and then the kernel of the Gaussian.

    Returns:
        ``z``, ``(*, D)``, in the dtype of ``h``; ``log_q``, ``(*)``; and the divergence from N(0, I), ``(*)`` or
        ``(*, D)``. The last two are in nats, float32 (float64 for float64 inputs).

    Raises:
        TypeError: an argument is no floating-point tensor, or dtypes differ outside autocast.
        ValueError: shapes do not fit, devices differ, bounds do not increase, ``eps`` and ``generator`` are both given,
            or ``kl`` is neither name.
        RuntimeError: ``impl`` cannot run here.

    Note:
        Under autocast the layer runs in its dtype, as :func:`torch.nn.functional.linear` does. Deterministic.
        Differentiable any number of times, by the reference from the second time on. Fewer than 16 rows run the layer
        and then the kernel of the Gaussian.

    Reference:
        *An Introduction to Variational Autoencoders* (Kingma, Welling, 2019), section 2.5.

    Example:
        >>> h, weight, bias = torch.ones(32, 8), torch.zeros(9, 8), torch.zeros(9)
        >>> z, log_q, kl = linear_tril_gaussian_rsample_with_kl(h, weight, bias)
        >>> z.shape, log_q.shape, kl[0].item()
        (torch.Size([32, 3]), torch.Size([32]), 0.0)
    """
    by_dimension = _checks.is_by_dimension(kl)
    names = ("h", "weight", "bias", "eps")
    route, (h, weight, bias, eps) = backend.route(
        impl, h, weight, bias, eps, names=names, eps=eps, floats=3, required=2
    )
    h, weight, bias = _checks.to_kind_of_products(h, weight, bias=bias, alike=route.alike, name="h")
    latents = _check_layer(h, weight, bias)
    scale = _check_scale(tril_scale)
    bounds = None if log_sigma_bounds is None else _checks.check_log_sigma_bounds(log_sigma_bounds)
    batch = h.shape[:-1]
    rows = _layout.product(batch)
    if eps is not None:
        eps = _checks.check_noise(eps, h, (*batch, latents), generator, "h")
    few = not backend.is_asked_for(impl) and not torch.compiler.is_compiling() and rows < _LEAST_ROWS
    if route.impl != "cpp" or rows == 0 or few:
        found = reference.parameters(h, weight, bias, latents, scale, bounds)
        return tril_gaussian_rsample_with_kl(
            *found, kl=kl, eps=eps, generator=generator, row_offset=row_offset, impl=impl
        )
    row_offset = _checks.check_row_offset(row_offset)
    noise = rng.draw_seed(h.device, generator) if eps is None else _layout.to_rows(eps, latents).contiguous()
    h, weight = _layout.to_rows(h, h.shape[-1]), _layout.to_rows(weight, weight.shape[1])
    bias = None if bias is None else bias.contiguous()
    head = latents, scale, *(bounds or (-math.inf, math.inf))
    if needs_grad(h, weight) or (bias is not None and needs_grad(bias)):
        z, log_q, divergence = apply(
            _LinearTrilGaussian, h, weight, bias, noise, head, (row_offset, by_dimension), route
        )
    else:
        z, log_q, divergence, _ = FWD.on(route)(h, weight, bias, noise, *head, row_offset, by_dimension, False)
    each = (*batch, latents)
    return (
        _layout.to_shape(z, each),
        _layout.to_shape(log_q, batch),
        _layout.to_shape(divergence, each if by_dimension else batch),
    )
