"""Diagonal Gaussian: sample, log-density and divergence from N(0, I) in one pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..backend import Route
from ..precision import compute_dtype
from ..reference import diag_gaussian as reference
from . import _checks, _layout
from ._contracts import check_sample_with_kl, check_sample_with_kl_gradient
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
from .diag_gaussian import SampleCall, check_call, lay_out, rebuild_sample, sample_gradients

# `kl` has one number for each row, or with `by_dimension` one for each dimension. `noise` and `kept` are those of
# diag_gaussian.py.


def _fwd_cpu(
    mu: Tensor,
    log_sigma: Tensor,
    noise: Tensor,
    shape: Sequence[int],
    row_offset: int,
    by_dimension: bool,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    x, log_s = _layout.all_to_compute_dtype((mu, log_sigma), mu.dtype)
    if noise.dim() > 0:
        noise = _layout.cast(noise, x.dtype)
    z, log_q, kl, kept = extension().diag_gaussian_with_kl_fwd(x, log_s, noise, shape, row_offset, by_dimension, keep)
    return _layout.cast(z, mu.dtype), log_q, kl, kept


def _fwd_triton(
    launcher: Any,
    mu: Tensor,
    log_sigma: Tensor,
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
    z, log_q, kl = launcher(mu, log_sigma, noise, samples, row_offset, by_dimension)
    return z.view(shape), log_q.view(shape[:-1]), kl, mu.new_empty(0)


def _fwd_fake(
    mu: Tensor,
    log_sigma: Tensor,
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
    noise: Any,
    kept: Tensor,
    row_offset: int,
) -> Any:
    dtype = mu.dtype
    g, x, log_s = _layout.all_to_compute_dtype((d_z, mu, log_sigma), dtype)
    return _layout.all_to(extension().diag_gaussian_with_kl_bwd(g, d_log_q, d_kl, x, log_s, kept), dtype)


def _bwd_triton(
    launcher: Any,
    d_z: Tensor,
    d_log_q: Tensor | None,
    d_kl: Tensor,
    mu: Tensor,
    log_sigma: Tensor,
    noise: Tensor,
    kept: Any,
    row_offset: int,
) -> Any:
    d_z = _layout.stack_samples(d_z, *mu.shape)
    if noise.dim() > 0:
        noise = _layout.stack_samples(noise, *mu.shape)
    d_log_q = d_kl.new_zeros(d_z.shape[:-1]) if d_log_q is None else d_log_q.view(d_z.shape[:-1])
    return launcher(d_z, d_log_q, d_kl, mu, log_sigma, noise, row_offset)


def _bwd_fake(
    d_z: Tensor, d_log_q: Any, d_kl: Tensor, mu: Tensor, log_sigma: Tensor, noise: Any, kept: Any, row_offset: int
) -> tuple[Tensor, Tensor]:
    return mu.new_empty(mu.shape), mu.new_empty(mu.shape)


FWD = define(
    "diag_gaussian_with_kl_fwd(Tensor mu, Tensor log_sigma, Tensor noise, SymInt[] shape, SymInt row_offset,"
    " bool by_dimension, bool keep) -> (Tensor z, Tensor log_q, Tensor kl, Tensor kept)",
    tensors="mu[N,D]r log_sigma[N,D]r", more=check_sample_with_kl,
    module="diag_gaussian", cpu=_fwd_cpu, fake=_fwd_fake, adapt=_fwd_triton,
)  # fmt: skip
BWD = define(
    "diag_gaussian_with_kl_bwd(Tensor d_z, Tensor? d_log_q, Tensor d_kl, Tensor mu, Tensor log_sigma, Tensor? noise,"
    " Tensor? kept, SymInt row_offset) -> (Tensor d_mu, Tensor d_log_sigma)",
    tensors="mu[N,D]r log_sigma[N,D]r d_z[S,D]c d_log_q?[S]cw kept?[S,D]cw", more=check_sample_with_kl_gradient,
    module="diag_gaussian", cpu=_bwd_cpu, fake=_bwd_fake, adapt=_bwd_triton,
)  # fmt: skip


def _rebuild(ctx: Any) -> Differentiable:
    mu, log_sigma, saved = ctx.saved_tensors
    sample, by_dimension = rebuild_sample(ctx.call, log_sigma, saved), ctx.by_dimension

    def sample_with_kl(mu: Tensor, log_sigma: Tensor, *_: None) -> tuple[Tensor, ...]:
        return *sample(mu, log_sigma), reference.standard_kl(mu, log_sigma, by_dimension)

    return sample_with_kl, (mu, log_sigma, None, None, None)


class _DiagGaussianRsampleWithKL(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, mu: Tensor, log_sigma: Tensor, noise: Tensor, call: SampleCall, by_dimension: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        shape, row_offset, route = call
        z, log_q, kl, kept = FWD.on(route)(mu, log_sigma, noise, shape, row_offset, by_dimension, True)
        ctx.save_for_backward(mu, log_sigma, kept if route.impl == "cpp" else noise)
        ctx.call, ctx.route, ctx.by_dimension = call, route, by_dimension
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
        mu, log_sigma, saved = ctx.saved_tensors
        if d_z is None or d_kl is None:
            return *sample_gradients(route, ctx.call, d_z, d_log_q, log_sigma, saved), None, None, None
        d_log_q = None if d_log_q is None else d_log_q.contiguous()
        noise, kept = (None, saved) if route.impl == "cpp" else (saved, None)
        gradients = BWD.on(route)(d_z.contiguous(), d_log_q, d_kl.contiguous(), mu, log_sigma, noise, kept, ctx.call[1])
        return *gradients, None, None, None


def diag_gaussian_rsample_with_kl(
    mu: Tensor,
    log_sigma: Tensor,
    sample_shape: Sequence[int] = (),
    *,
    kl: str = "sum",
    eps: Tensor | None = None,
    generator: torch.Generator | None = None,
    row_offset: int = 0,
    impl: str = "auto",
) -> tuple[Tensor, Tensor, Tensor]:
    r"""Draws a reparameterised sample of a diagonal Gaussian with its log-density and the divergence from N(0, I).

    .. math::
        z = \mu + \sigma \odot \epsilon, \quad \epsilon \sim N(0, I), \qquad
        \log q(z) = -\sum_i \left(\tfrac12 \epsilon_i^2 + \log\sigma_i + \tfrac12 \log 2\pi\right), \qquad
        \mathrm{KL} = \sum_i \left(\tfrac12 (\sigma_i^2 + \mu_i^2 - 1) - \log\sigma_i\right)

    The sample and its log-density are those of :func:`diag_gaussian_rsample` for the same noise, bit for bit, and the
    divergence is that of :func:`diag_gaussian_kl`. One pass over the parameters computes all three, and one pass
    their gradients.

    Args:
        mu: mean, ``(*, D)``; float16, bfloat16, float32 or float64.
        log_sigma: natural logarithm of the standard deviation, ``(*, D)``; batches broadcast.
        sample_shape: shape of the samples drawn for every row. The divergence does not depend on the samples, and has
            no sample dimensions.
        kl: ``"sum"`` for the divergence of every row; ``"dimensions"`` for its parts, the terms of the sum, which
            :func:`fastvae.objectives.free_bits` takes.
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
        Noise, dtypes and determinism are those of :func:`diag_gaussian_rsample`. Without a row or a sample to draw,
        the reference computes the divergence. Differentiable any number of times, by the reference from the second
        time on.

    Reference:
        *Auto-Encoding Variational Bayes* (Kingma, Welling, 2013), section 2.3 and appendix B.

    Example:
        >>> mu, log_sigma = torch.ones(4, 8), torch.zeros(4, 8)
        >>> z, log_q, kl = diag_gaussian_rsample_with_kl(mu, log_sigma)
        >>> z.shape, kl
        (torch.Size([4, 8]), tensor([4., 4., 4., 4.]))
    """
    by_dimension = _checks.is_by_dimension(kl)
    route, mu, log_sigma, sample_shape, eps, row_offset = check_call(
        mu, log_sigma, sample_shape, eps, generator, row_offset, impl
    )
    shape, batch = (*sample_shape, *mu.shape), mu.shape[:-1]
    if route.impl == "reference" or 0 in shape:
        return reference.rsample_with_kl(mu, log_sigma, sample_shape, eps, generator, by_dimension)
    mu, log_sigma, noise = lay_out(route, mu, log_sigma, eps, generator)
    if needs_grad(mu, log_sigma):
        call = (shape, row_offset, route)
        z, log_q, divergence = apply(_DiagGaussianRsampleWithKL, mu, log_sigma, noise, call, by_dimension)
    else:
        z, log_q, divergence, _ = FWD.on(route)(mu, log_sigma, noise, shape, row_offset, by_dimension, False)
    return z, log_q, _layout.to_shape(divergence, (*batch, mu.shape[-1]) if by_dimension else batch)
