"""Full-covariance Gaussian: sample, log-density and divergence from N(0, I) in one pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..backend import Route
from ..precision import compute_dtype
from ..reference import tril_gaussian as reference
from . import _checks, _layout
from ._contracts import Call, check_sample_with_kl, check_sample_with_kl_gradient
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
from .tril_gaussian import check_call, check_tril, lay_out, rebuild_sample, sample_gradients

# `kl` has one number for each row, or with `by_dimension` one for each dimension. `noise` and `kept` are those of
# tril_gaussian.py.


def _check_forward(call: Call) -> None:
    check_tril(call)
    check_sample_with_kl(call)


def _check_backward(call: Call) -> None:
    check_tril(call)
    check_sample_with_kl_gradient(call)


def _fwd_cpu(
    mu: Tensor,
    log_sigma: Tensor,
    tril: Tensor,
    noise: Tensor,
    shape: Sequence[int],
    row_offset: int,
    by_dimension: bool,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    x, log_s, t = _layout.all_to_compute_dtype((mu, log_sigma, tril), mu.dtype)
    if noise.dim() > 0:
        noise = _layout.cast(noise, x.dtype)
    z, log_q, kl, kept = extension().tril_gaussian_with_kl_fwd(
        x, log_s, t, noise, shape, row_offset, by_dimension, keep
    )
    return _layout.cast(z, mu.dtype), log_q, kl, kept


def _fwd_triton(
    launcher: Any,
    mu: Tensor,
    log_sigma: Tensor,
    tril: Tensor,
    noise: Tensor,
    shape: Sequence[int],
    row_offset: int,
    by_dimension: bool,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    n, d = mu.shape
    if noise.dim() > 0:
        noise = _layout.stack_samples(noise, n, d)
    samples = _layout.count_samples(_layout.product(shape), n, d)
    z, log_q, parts = launcher(mu, log_sigma, tril, noise, samples, row_offset)
    # A row's programs compute parts of its divergence; they share no sum.
    return z.view(shape), log_q.view(shape[:-1]), parts if by_dimension else parts.sum(-1), mu.new_empty(0)


def _fwd_fake(
    mu: Tensor,
    log_sigma: Tensor,
    tril: Tensor,
    noise: Tensor,
    shape: Sequence[int],
    row_offset: int,
    by_dimension: bool,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    log_q = mu.new_empty(shape[:-1], dtype=compute_dtype(mu.dtype))
    kept = log_q.new_empty(shape) if keep and mu.device.type == "cpu" else mu.new_empty(0)
    return mu.new_empty(shape), log_q, log_q.new_empty(mu.shape if by_dimension else mu.shape[:1]), kept


def _bwd_cpu(
    d_z: Tensor,
    d_log_q: Tensor | None,
    d_kl: Tensor,
    mu: Tensor,
    log_sigma: Tensor,
    tril: Tensor,
    noise: Any,
    kept: Tensor,
    row_offset: int,
) -> Any:
    dtype = mu.dtype
    g, x, log_s, t = _layout.all_to_compute_dtype((d_z, mu, log_sigma, tril), dtype)
    return _layout.all_to(extension().tril_gaussian_with_kl_bwd(g, d_log_q, d_kl, x, log_s, t, kept), dtype)


def _bwd_triton(
    launcher: Any,
    d_z: Tensor,
    d_log_q: Tensor | None,
    d_kl: Tensor,
    mu: Tensor,
    log_sigma: Tensor,
    tril: Tensor,
    noise: Tensor,
    kept: Any,
    row_offset: int,
) -> Any:
    d_z = _layout.stack_samples(d_z, *mu.shape)
    if noise.dim() > 0:
        noise = _layout.stack_samples(noise, *mu.shape)
    d_log_q = d_kl.new_zeros(d_z.shape[:-1]) if d_log_q is None else d_log_q.view(d_z.shape[:-1])
    return launcher(d_z, d_log_q, d_kl, mu, log_sigma, tril, noise, row_offset)


def _bwd_fake(
    d_z: Tensor,
    d_log_q: Any,
    d_kl: Tensor,
    mu: Tensor,
    log_sigma: Tensor,
    tril: Tensor,
    noise: Any,
    kept: Any,
    row_offset: int,
) -> tuple[Tensor, ...]:
    return tuple(p.new_empty(p.shape) for p in (mu, log_sigma, tril))


FWD = define(
    "tril_gaussian_with_kl_fwd(Tensor mu, Tensor log_sigma, Tensor tril, Tensor noise, SymInt[] shape,"
    " SymInt row_offset, bool by_dimension, bool keep) -> (Tensor z, Tensor log_q, Tensor kl, Tensor kept)",
    tensors="mu[N,D]r log_sigma[N,D]r", more=_check_forward,
    module="tril_gaussian", cpu=_fwd_cpu, fake=_fwd_fake, adapt=_fwd_triton,
)  # fmt: skip
BWD = define(
    "tril_gaussian_with_kl_bwd(Tensor d_z, Tensor? d_log_q, Tensor d_kl, Tensor mu, Tensor log_sigma, Tensor tril,"
    " Tensor? noise, Tensor? kept, SymInt row_offset) -> (Tensor d_mu, Tensor d_log_sigma, Tensor d_tril)",
    tensors="mu[N,D]r log_sigma[N,D]r d_z[S,D]c d_log_q?[S]cw kept?[S,D]cw", more=_check_backward,
    module="tril_gaussian", cpu=_bwd_cpu, fake=_bwd_fake, adapt=_bwd_triton,
)  # fmt: skip


def _rebuild(ctx: Any) -> Differentiable:
    mu, log_sigma, tril, saved = ctx.saved_tensors
    sample = rebuild_sample(ctx.route, ctx.call, log_sigma, saved)
    packed, divergence = tril.dim() == 2, reference.kl_by_dimension if ctx.by_dimension else reference.kl

    def sample_with_kl(mu: Tensor, log_sigma: Tensor, tril: Tensor, *_: None) -> tuple[Tensor, ...]:
        return *sample(mu, log_sigma, tril), divergence(mu, log_sigma, tril, packed)

    return sample_with_kl, (mu, log_sigma, tril, None, None, None)


class _TrilGaussianRsampleWithKL(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        mu: Tensor,
        log_sigma: Tensor,
        tril: Tensor,
        noise: Tensor,
        call: tuple[tuple[int, ...], int, Route],
        by_dimension: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        shape, row_offset, route = call
        z, log_q, kl, kept = FWD.on(route)(mu, log_sigma, tril, noise, shape, row_offset, by_dimension, True)
        ctx.save_for_backward(mu, log_sigma, tril, kept if route.impl == "cpp" else noise)
        ctx.call, ctx.route, ctx.by_dimension = (shape, row_offset, tril.dim() == 3), route, by_dimension
        keep_none(ctx)
        return z, log_q, kl

    @staticmethod
    @with_reference(_rebuild)
    def backward(
        ctx: Any, route: Route, d_z: Tensor | None, d_log_q: Tensor | None, d_kl: Tensor | None
    ) -> tuple[Any, ...]:
        if d_z is None and d_kl is not None:
            # Few want the gradient of a divergence without that of the sample: no kernel.
            return reference_gradients(_rebuild, ctx, (d_z, d_log_q, d_kl))
        mu, log_sigma, tril, saved = ctx.saved_tensors
        if d_z is None or d_kl is None:
            return *sample_gradients(route, ctx.call, d_z, d_log_q, log_sigma, saved), None, None, None
        d_log_q = None if d_log_q is None else d_log_q.contiguous()
        noise, kept = (None, saved) if route.impl == "cpp" else (saved, None)
        gradients = BWD.on(route)(
            d_z.contiguous(), d_log_q, d_kl.contiguous(), mu, log_sigma, tril, noise, kept, ctx.call[1]
        )
        return *gradients, None, None, None


def tril_gaussian_rsample_with_kl(
    mu: Tensor,
    log_sigma: Tensor,
    tril: Tensor,
    sample_shape: Sequence[int] = (),
    *,
    kl: str = "sum",
    eps: Tensor | None = None,
    generator: torch.Generator | None = None,
    row_offset: int = 0,
    impl: str = "auto",
) -> tuple[Tensor, Tensor, Tensor]:
    r"""Draws a reparameterised sample of a full-covariance Gaussian with its log-density and divergence from N(0, I).

    .. math::
        L = \operatorname{strictly\,lower}(T) + \operatorname{diag}(\sigma), \quad z = \mu + L\epsilon, \quad
        \log q(z) = -\sum_i \left(\tfrac12 \epsilon_i^2 + \log\sigma_i + \tfrac12 \log 2\pi\right)

    .. math::
        \mathrm{KL} = \sum_i \left(\tfrac12 \Big(\sum_{j<i} T_{ij}^2 + \sigma_i^2 + \mu_i^2 - 1\Big)
            - \log\sigma_i\right)

    The sample and its log-density are those of :func:`tril_gaussian_rsample` for the same noise, bit for bit, and the
    divergence is that of :func:`tril_gaussian_kl`. One pass over the parameters computes all three, and one pass
    their gradients: the factor, the largest of them, is read once and its gradient written once.

    Args:
        mu: mean, ``(*, D)``; float16, bfloat16, float32 or float64.
        log_sigma: natural logarithm of the diagonal of the factor, ``(*, D)``; batches broadcast.
        tril: below the diagonal of the factor, packed ``(*, D(D-1)/2)`` or dense ``(*, D, D)``, see
            :func:`tril_gaussian_rsample`.
        sample_shape: shape of the samples drawn for every row. The divergence does not depend on the samples, and has
            no sample dimensions.
        kl: ``"sum"`` for the divergence of every row; ``"dimensions"`` for its parts, the terms of the sum over i,
            which :func:`fastvae.objectives.free_bits` takes. Term i is the expected divergence of
            :math:`q(z_i \mid z_{<i})`.
        eps: the noise, ``(*sample_shape, *, D)``, instead of drawing it.
        generator: the torch generator that the seed of the noise is drawn from; the device's default if None.
        row_offset: number of the first row within a joint batch, see :func:`diag_gaussian_rsample`.
        impl: ``"auto"``, ``"triton"``, ``"cpp"`` or ``"reference"``, see :mod:`fastvae.backend`.

    Returns:
        ``z``, shape ``(*sample_shape, *, D)``, dtype of ``mu``; ``log_q``, ``(*sample_shape, *)``; and the divergence,
        ``(*)`` or ``(*, D)``. The last two are in nats, float32 (float64 for float64 inputs).

    Raises:
        TypeError: an argument is no floating-point tensor, or dtypes differ outside autocast.
        ValueError: shapes do not fit, devices differ, ``eps`` and ``generator`` are both given, or ``kl`` is neither
            name.
        RuntimeError: ``impl`` cannot run here.

    Note:
        Noise, dtypes and determinism are those of :func:`tril_gaussian_rsample`. Without a row or a sample to draw,
        the reference computes the divergence. Differentiable any number of times, by the reference from the second
        time on.

    Reference:
        *An Introduction to Variational Autoencoders* (Kingma, Welling, 2019), full-covariance Gaussian posteriors.

    Example:
        >>> mu, log_sigma, tril = torch.zeros(2, 3), torch.zeros(2, 3), torch.ones(2, 3)
        >>> z, log_q, kl = tril_gaussian_rsample_with_kl(mu, log_sigma, tril, kl="dimensions")
        >>> kl
        tensor([[0.0000, 0.5000, 1.0000],
                [0.0000, 0.5000, 1.0000]])
    """
    by_dimension = _checks.is_by_dimension(kl)
    route, mu, log_sigma, tril, packed, sample_shape, eps, row_offset = check_call(
        mu, log_sigma, tril, sample_shape, eps, generator, row_offset, impl
    )
    shape, batch = (*sample_shape, *mu.shape), mu.shape[:-1]
    if route.impl == "reference" or 0 in shape:
        return reference.rsample_with_kl(mu, log_sigma, tril, packed, sample_shape, eps, generator, by_dimension)
    mu, log_sigma, tril, noise = lay_out(route, mu, log_sigma, tril, packed, eps, generator)
    if needs_grad(mu, log_sigma, tril):
        call = (shape, row_offset, route)
        z, log_q, divergence = apply(_TrilGaussianRsampleWithKL, mu, log_sigma, tril, noise, call, by_dimension)
    else:
        z, log_q, divergence, _ = FWD.on(route)(mu, log_sigma, tril, noise, shape, row_offset, by_dimension, False)
    return z, log_q, _layout.to_shape(divergence, (*batch, mu.shape[-1]) if by_dimension else batch)
