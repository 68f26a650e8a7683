"""Two diagonal Gaussians merged by their precisions: a sample with its densities and divergence in one pass."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import backend, rng
from ..backend import Route
from ..precision import compute_dtype
from ..reference import gaussian_merge as reference
from . import _checks, _layout
from ._contracts import Call, check_row_offset
from ._library import Differentiable, apply, define, extension, keep_none, needs_grad, with_reference

# The prior has one row for each point, M = K N; the rows of the other Gaussian, N, are those of each of K samples.
# `noise` is a 0-d int64 seed or the normals themselves. Backward reads the normals on a CPU, where drawing them again
# would cost more; on a GPU it draws them again.


def _fwd_cpu(
    mu: Tensor,
    log_sigma: Tensor,
    prior_mu: Tensor,
    prior_log_sigma: Tensor,
    noise: Tensor,
    shape: Sequence[int],
    row_offset: int,
    by_dimension: bool,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]:
    tensors = _layout.all_to_compute_dtype((mu, log_sigma, prior_mu, prior_log_sigma), mu.dtype)
    if noise.dim() > 0:
        noise = _layout.cast(noise, tensors[0].dtype)
    z, log_q, log_p, kl, kept = extension().gaussian_merge_fwd(*tensors, noise, shape, row_offset, by_dimension, keep)
    return _layout.cast(z, mu.dtype), log_q, log_p, kl, kept


def _fwd_triton(
    launcher: Any,
    mu: Tensor,
    log_sigma: Tensor,
    prior_mu: Tensor,
    prior_log_sigma: Tensor,
    noise: Tensor,
    shape: Sequence[int],
    row_offset: int,
    by_dimension: bool,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    if noise.dim() > 0:
        noise = _layout.stack_samples(noise, *mu.shape)
    z, log_q, log_p, kl = launcher(mu, log_sigma, prior_mu, prior_log_sigma, noise, row_offset, by_dimension)
    points = shape[:-1]
    kl = kl.view(shape if by_dimension else points)
    return z.view(shape), log_q.view(points), log_p.view(points), kl, mu.new_empty(0)


def _fwd_fake(
    mu: Tensor,
    log_sigma: Tensor,
    prior_mu: Tensor,
    prior_log_sigma: Tensor,
    noise: Tensor,
    shape: Sequence[int],
    row_offset: int,
    by_dimension: bool,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    log_q = mu.new_empty(shape[:-1], dtype=compute_dtype(mu.dtype))
    keeps = keep and mu.device.type == "cpu" and noise.dim() == 0
    kept = log_q.new_empty(shape) if keeps else mu.new_empty(0)
    kl = log_q.new_empty(shape if by_dimension else shape[:-1])
    return mu.new_empty(shape), log_q, torch.empty_like(log_q), kl, kept


def _bwd_cpu(
    d_z: Tensor,
    d_log_q: Tensor,
    d_log_p: Tensor,
    d_kl: Tensor,
    mu: Tensor,
    log_sigma: Tensor,
    prior_mu: Tensor,
    prior_log_sigma: Tensor,
    noise: Tensor,
    row_offset: int,
) -> Any:
    dtype = mu.dtype
    g, *parameters = _layout.all_to_compute_dtype((d_z, mu, log_sigma, prior_mu, prior_log_sigma), dtype)
    noise = _layout.cast(noise, g.dtype)
    return _layout.all_to(extension().gaussian_merge_bwd(g, d_log_q, d_log_p, d_kl, *parameters, noise), dtype)


def _bwd_triton(
    launcher: Any,
    d_z: Tensor,
    d_log_q: Tensor,
    d_log_p: Tensor,
    d_kl: Tensor,
    mu: Tensor,
    log_sigma: Tensor,
    prior_mu: Tensor,
    prior_log_sigma: Tensor,
    noise: Tensor,
    row_offset: int,
) -> Any:
    if noise.dim() > 0:
        noise = _layout.stack_samples(noise, *mu.shape)
    return launcher(d_z, d_log_q, d_log_p, d_kl, mu, log_sigma, prior_mu, prior_log_sigma, noise, row_offset)


def _bwd_fake(
    d_z: Any, d_log_q: Any, d_log_p: Any, d_kl: Any, mu: Any, log_sigma: Any, prior_mu: Tensor, *_: Any
) -> Any:
    return tuple(prior_mu.new_empty(prior_mu.shape) for _ in range(4))


def _check_rows(call: Call, shape: Sequence[int]) -> None:
    n, m, d = call.sizes["N"], call.sizes["M"], call.sizes["D"]
    call.require(d > 0, "mu", "have one feature or more", 0)
    call.require(n > 0 and m > 0 and m % n == 0, "prior_mu", f"have a multiple of {n} rows, one or more", m)
    noise = call.get_tensor("noise")
    if noise.dim() == 0:
        call.tensor("noise", noise, (), "i")
    else:
        call.require(tuple(noise.shape) == tuple(shape), "noise", f"have shape {tuple(shape)}", tuple(noise.shape))
        call.tensor("noise", noise.detach(), ("S", "D"), "ca")
    check_row_offset(call)


def _check_fwd(call: Call) -> None:
    shape, m, d = tuple(call["shape"]), call.sizes["M"], call.sizes["D"]
    fits = len(shape) > 0 and shape[-1] == d and min(shape) >= 0 and math.prod(shape[:-1]) == m
    call.require(fits, "shape", f"be that of {m} points of {d} features", shape)
    _check_rows(call, shape)


def _check_bwd(call: Call) -> None:
    d_kl = call.get_tensor("d_kl")
    call.tensor("d_kl", d_kl, ("S", "D") if tuple(d_kl.shape) == tuple(call["d_z"].shape) else ("S",), "cw")
    points, m = call.sizes["S"], call.sizes["M"]
    call.require(math.prod(points) == m, "d_z", f"hold {m} points", points)
    _check_rows(call, (*points, call.sizes["D"]))
    given = not call.is_cpu or call["noise"].dim() > 0
    call.require(given, "noise", "be the normals for tensors on a CPU", "a seed")


_PARAMETERS = "mu[N,D]r log_sigma[N,D]r prior_mu[M,D]r prior_log_sigma[M,D]r"
FWD = define(
    "gaussian_merge_fwd(Tensor mu, Tensor log_sigma, Tensor prior_mu, Tensor prior_log_sigma, Tensor noise,"
    " SymInt[] shape, SymInt row_offset, bool by_dimension, bool keep)"
    " -> (Tensor z, Tensor log_q, Tensor log_p, Tensor kl, Tensor kept)",
    tensors=_PARAMETERS, more=_check_fwd,
    module="gaussian_merge", cpu=_fwd_cpu, fake=_fwd_fake, adapt=_fwd_triton,
)  # fmt: skip
BWD = define(
    "gaussian_merge_bwd(Tensor d_z, Tensor d_log_q, Tensor d_log_p, Tensor d_kl, Tensor mu, Tensor log_sigma,"
    " Tensor prior_mu, Tensor prior_log_sigma, Tensor noise, SymInt row_offset)"
    " -> (Tensor d_mu, Tensor d_log_sigma, Tensor d_prior_mu, Tensor d_prior_log_sigma)",
    tensors=f"{_PARAMETERS} d_z[S,D]c d_log_q[S]cw d_log_p[S]cw", more=_check_bwd,
    module="gaussian_merge", cpu=_bwd_cpu, fake=_bwd_fake, adapt=_bwd_triton,
)  # fmt: skip

_Call = tuple[tuple[int, ...], int, bool, Route]


def _rebuild(ctx: Any) -> Differentiable:
    (shape, row_offset, by_dimension, route), (*parameters, noise) = ctx.call, ctx.saved_tensors
    n, (m, d) = parameters[0].shape[0], parameters[2].shape
    if noise.dim() == 0:
        zero = parameters[2].new_zeros(m, d, dtype=compute_dtype(parameters[2].dtype))
        # Of N(0, 1) merged with a Gaussian without precision the sample is the noise.
        wide = torch.full_like(zero[:n], 40.0)
        op = FWD.on(backend.route_of(route.impl, zero))
        noise = op(zero[:n], wide, zero, zero, noise, shape, row_offset, False, False)[0]
    stacked = (m // n, n, d)
    eps = noise.reshape(stacked)

    def sample(mu: Tensor, log_sigma: Tensor, prior_mu: Tensor, prior_log_sigma: Tensor, *_: None) -> Any:
        prior = prior_mu.view(stacked), prior_log_sigma.view(stacked)
        z, *densities, kl = reference.rsample(mu, log_sigma, *prior, eps, None, by_dimension)
        return z.view(shape), *(t.view(shape[:-1]) for t in densities), kl.view(shape if by_dimension else shape[:-1])

    return sample, (*parameters, None, None)


class _GaussianMerge(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        mu: Tensor,
        log_sigma: Tensor,
        prior_mu: Tensor,
        prior_log_sigma: Tensor,
        noise: Tensor,
        call: _Call,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        shape, row_offset, by_dimension, route = call
        parameters = mu, log_sigma, prior_mu, prior_log_sigma
        *found, kept = FWD.on(route)(*parameters, noise, shape, row_offset, by_dimension, True)
        ctx.save_for_backward(*parameters, kept if route.impl == "cpp" and noise.dim() == 0 else noise)
        ctx.call, ctx.route = call, route
        keep_none(ctx)
        return tuple(found)

    @staticmethod
    @with_reference(_rebuild)
    def backward(
        ctx: Any,
        route: Route,
        d_z: Tensor | None,
        d_log_q: Tensor | None,
        d_log_p: Tensor | None,
        d_kl: Tensor | None,
    ) -> Any:
        (shape, row_offset, *_), (*parameters, noise) = ctx.call, ctx.saved_tensors
        mu, prior_mu = parameters[0], parameters[2]
        wide = compute_dtype(mu.dtype)
        d_z = prior_mu.new_zeros(shape) if d_z is None else d_z.contiguous()
        of_points = [
            prior_mu.new_zeros(shape[:-1], dtype=wide) if g is None else g.contiguous() for g in (d_log_q, d_log_p)
        ]
        if d_kl is None:
            d_kl = prior_mu.new_zeros(shape[:-1], dtype=wide)
        d_mu, d_log_sigma, *of_prior = BWD.on(route)(d_z, *of_points, d_kl.contiguous(), *parameters, noise, row_offset)
        if len(prior_mu) != len(mu):
            d_mu, d_log_sigma = (g.view(-1, *mu.shape).sum(0) for g in (d_mu, d_log_sigma))
        return d_mu, d_log_sigma, *of_prior, None, None


def gaussian_merge(mu: Tensor, log_sigma: Tensor, prior_mu: Tensor, prior_log_sigma: Tensor) -> tuple[Tensor, Tensor]:
    r"""Merges two diagonal Gaussians by their precisions: the normalised product of their densities.

    .. math::
        \sigma^{-2} = \hat\sigma^{-2} + \sigma_p^{-2}, \qquad
        \mu = \sigma^2 \left(\hat\mu\, \hat\sigma^{-2} + \mu_p\, \sigma_p^{-2}\right)

    Args:
        mu: mean of the first Gaussian, ``(*, D)``.
        log_sigma: natural logarithm of its standard deviation, ``(*, D)``.
        prior_mu: mean of the second, ``(*, D)``.
        prior_log_sigma: natural logarithm of its standard deviation, ``(*, D)``.

    Returns:
        Mean and logarithm of the standard deviation of the merged Gaussian, ``(*, D)``; shapes broadcast.

    Raises:
        TypeError: an argument is no floating-point tensor, or dtypes differ outside autocast.
        ValueError: shapes do not fit, or devices differ.

    Note:
        In plain PyTorch. To draw from the merged Gaussian see :func:`gaussian_merge_rsample`.

    Reference:
        *Ladder Variational Autoencoders* (Sønderby, Raiko, Maaløe, Sønderby, Winther, 2016), equations 12 and 13.

    Example:
        >>> zero = torch.zeros(3)
        >>> mu, log_sigma = gaussian_merge(zero + 1.0, zero, zero, zero)
        >>> mu, (2 * log_sigma).exp()
        (tensor([0.5000, 0.5000, 0.5000]), tensor([0.5000, 0.5000, 0.5000]))
    """
    named = {"mu": mu, "log_sigma": log_sigma, "prior_mu": prior_mu, "prior_log_sigma": prior_log_sigma}
    named = dict(zip(named, _checks.to_same_kind(**named), strict=True))
    _checks.check_features(**named)
    return reference.merge(**named)


def gaussian_merge_rsample(
    mu: Tensor,
    log_sigma: Tensor,
    prior_mu: Tensor,
    prior_log_sigma: Tensor,
    *,
    kl: str = "sum",
    eps: Tensor | None = None,
    generator: torch.Generator | None = None,
    row_offset: int = 0,
    impl: str = "auto",
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    r"""Merges two diagonal Gaussians, and draws a sample with its densities and its divergence from the second.

    A level of a ladder VAE: the first Gaussian is what the data say of the latents, the second is the prior given the
    level above, and the posterior q merges both by their precisions, as :func:`gaussian_merge` does.

    .. math::
        z = \mu + \sigma \odot \epsilon, \qquad \log q(z) = \log N(z; \mu, \sigma^2), \qquad
        \log p(z) = \log N(z; \mu_p, \sigma_p^2), \qquad \mathrm{KL}(q \,\|\, p)

    One pass over the four parameters computes all results, and one pass their gradients.

    Args:
        mu: mean of the first Gaussian, ``(*, D)``; float16, bfloat16, float32 or float64.
        log_sigma: natural logarithm of its standard deviation, ``(*, D)``.
        prior_mu: mean of the prior, ``(*sample_shape, *, D)``: the prior depends on samples of the level above. Batches
            broadcast.
        prior_log_sigma: natural logarithm of its standard deviation, ``(*sample_shape, *, D)``.
        kl: ``"sum"`` for the divergence of every point; ``"dimensions"`` for its parts, which
            :func:`fastvae.objectives.free_bits` takes.
        eps: the noise, ``(*sample_shape, *, D)``, instead of drawing it.
        generator: the torch generator that the seed of the noise is drawn from; the device's default if None.
        row_offset: number of the first row within a joint batch, see :func:`diag_gaussian_rsample`.
        impl: ``"auto"``, ``"triton"``, ``"cpp"`` or ``"reference"``, see :mod:`fastvae.backend`.

    Returns:
        ``z``, ``(*sample_shape, *, D)``, dtype of ``mu``; ``log_q`` and ``log_p``, ``(*sample_shape, *)``; and the
        divergence, ``(*sample_shape, *)`` or ``(*sample_shape, *, D)``. The last three are in nats, float32 (float64
        for float64 inputs).

    Raises:
        TypeError: an argument is no floating-point tensor, or dtypes differ outside autocast.
        ValueError: shapes do not fit, devices differ, ``eps`` and ``generator`` are both given, or ``kl`` is neither
            name.
        RuntimeError: ``impl`` cannot run here.

    Note:
        Noise and determinism are those of :func:`diag_gaussian_rsample` with as many samples. Without a point to draw
        the reference runs. Differentiable any number of times, by the reference from the second time on.

    Reference:
        *Ladder Variational Autoencoders* (Sønderby, Raiko, Maaløe, Sønderby, Winther, 2016).

    Example:
        >>> prior_mu, prior_log_sigma = torch.zeros(5, 4, 8), torch.zeros(5, 4, 8)
        >>> z, log_q, log_p, kl = gaussian_merge_rsample(
        ...     torch.ones(4, 8), torch.zeros(4, 8), prior_mu, prior_log_sigma
        ... )
        >>> z.shape, kl.shape
        (torch.Size([5, 4, 8]), torch.Size([5, 4]))
    """
    by_dimension = _checks.is_by_dimension(kl)
    names = ("mu", "log_sigma", "prior_mu", "prior_log_sigma", "eps")
    route, (mu, log_sigma, prior_mu, prior_log_sigma, eps) = backend.route(
        impl, mu, log_sigma, prior_mu, prior_log_sigma, eps, names=names, eps=eps, floats=4, required=4
    )
    named = {"mu": mu, "log_sigma": log_sigma, "prior_mu": prior_mu, "prior_log_sigma": prior_log_sigma}
    if not route.alike:
        named = dict(zip(named, _checks.to_same_kind(**named), strict=True))
    _checks.check_features(**named)
    mu, log_sigma, prior_mu, prior_log_sigma = _align(**named)
    row_offset = _checks.check_row_offset(row_offset)
    shape = tuple(prior_mu.shape)
    if eps is not None:
        eps = _checks.check_noise(eps, mu, shape, generator)
    if route.impl == "reference" or 0 in shape:
        rng.check_generator(generator, mu.device)
        return reference.rsample(mu, log_sigma, prior_mu, prior_log_sigma, eps, generator, by_dimension)
    noise = rng.draw_seed_for(route, mu.device, generator) if eps is None else eps.contiguous()
    rows = [_layout.to_rows(t, shape[-1]) for t in (mu, log_sigma, prior_mu, prior_log_sigma)]
    if needs_grad(*rows):
        found: tuple[Tensor, Tensor, Tensor, Tensor] = apply(
            _GaussianMerge, *rows, noise, (shape, row_offset, by_dimension, route)
        )
        return found
    z, log_q, log_p, divergence, _ = FWD.on(route)(*rows, noise, shape, row_offset, by_dimension, False)
    return z, log_q, log_p, divergence


def _align(mu: Tensor, log_sigma: Tensor, prior_mu: Tensor, prior_log_sigma: Tensor) -> list[Tensor]:
    """The parameters, ``(*, D)`` of the first Gaussian and ``(*sample_shape, *, D)`` of the prior, expanded."""
    if mu.shape == log_sigma.shape == prior_mu.shape == prior_log_sigma.shape:
        return [mu, log_sigma, prior_mu, prior_log_sigma]
    mu, log_sigma = _checks.broadcast_batch((1, 1), mu=mu, log_sigma=log_sigma)
    prior_mu, prior_log_sigma = _checks.broadcast_batch((1, 1), prior_mu=prior_mu, prior_log_sigma=prior_log_sigma)
    try:
        joint = torch.broadcast_shapes(mu.shape, prior_mu.shape)
    except RuntimeError:
        raise ValueError(
            f"prior_mu must have shape (*sample_shape, *, D) for mu of shape (*, D) = {tuple(mu.shape)}, "
            f"got {tuple(prior_mu.shape)}"
        ) from None
    # Leading dimensions of the prior that the first Gaussian lacks are samples.
    batch = joint[len(joint) - mu.dim() :]
    return [mu.expand(batch), log_sigma.expand(batch), prior_mu.expand(joint), prior_log_sigma.expand(joint)]
